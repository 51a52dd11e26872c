import math

import jax
import jax.numpy as jnp
import optax
import pytest

import normopt

SIZE, RATE, DECAY = 100, 0.01, 0.002
ADAM = {"b1": 0.9, "b2": 0.99}
LION = {"b1": 0.9, "b2": 0.98}
SLOW = pytest.mark.slow("two show the balance, the formulas the rest")
RUNS = {
    "adam": (
        {"name": "adamw", "learning_rate": RATE, "weight_decay": DECAY, **ADAM},
        optax.adamw(RATE, weight_decay=DECAY / RATE, **ADAM),
    ),
    "sgd": (
        {
            "name": "chain",
            "links": [
                {"name": "add_decayed_weights", "weight_decay": 0.02},
                {"name": "sgd", "learning_rate": 0.1, "momentum": 0.5},
            ],
        },
        optax.chain(optax.add_decayed_weights(0.02), optax.sgd(0.1, 0.5)),
    ),
    "lion": (
        {"name": "lion", "learning_rate": RATE, "weight_decay": 0.1, **LION},
        optax.lion(RATE, weight_decay=0.1, **LION),
    ),
    "sgdw": (
        {
            "name": "sgdw",
            "learning_rate": 0.1,
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": DECAY,
        },
        normopt.sgdw(0.1, 0.8, nesterov=True, weight_decay=DECAY),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("adam", "sgd") else pytest.param(name, marks=SLOW)
        for name in RUNS
    ],
)
def test_a_block_driven_by_noise_comes_to_it(name):
    config, optimizer = RUNS[name]
    blocks = 64

    def step(carry, key):
        w, state = carry
        noise, length = jax.random.normal(key, w.shape), jnp.linalg.norm(w, axis=0)
        unit = w / length
        g = (noise - unit * jnp.sum(unit * noise, 0)) / length
        updates, state = optimizer.update(g, state, w)
        after = w + updates
        angle = normopt.block_angles(w, after, (-1,))
        return (after, state), (jnp.linalg.norm(after, axis=0), angle)

    expected = normopt.equilibrium(config, size=SIZE)
    w = jax.random.normal(jax.random.key(0), (SIZE, blocks))
    w *= expected.length / jnp.linalg.norm(w, axis=0)
    keys = jax.random.split(jax.random.key(1), 1500)
    scan = jax.jit(lambda start: jax.lax.scan(step, start, keys)[1])
    lengths, angles = scan((w, optimizer.init(w)))
    length = float(jnp.sqrt(jnp.mean(lengths[500:] ** 2)))
    angle = float(jnp.sqrt(jnp.mean(angles[500:] ** 2)))
    assert abs(length / expected.length - 1) < 0.05, (length, expected.length)
    assert abs(angle / expected.angle - 1) < 0.05, (angle, expected.angle)


def test_the_angles_are_those_of_the_paper():
    rate, decay = 1e-3, 0.1

    def angle(*links):
        return normopt.equilibrium({"name": "chain", "links": list(links)}).angle

    scale = {"name": "scale_by_learning_rate", "learning_rate": rate}
    pull = {"name": "add_decay", "weight_decay": decay}
    adam = {"name": "scale_by_adam", "b1": 0.8}
    expected = math.sqrt(2 * rate * decay * 0.2 / 1.8)
    assert angle(adam, pull, scale) == pytest.approx(expected)
    tied = {"name": "decay_weights", "weight_decay": rate * decay}
    assert angle(adam, scale, tied) == pytest.approx(expected)
    assert normopt.equilibrium(
        {
            "name": "adamw",
            "learning_rate": rate,
            "weight_decay": rate * decay,
            "b1": 0.8,
        }
    ) == (None, pytest.approx(expected))
    trace = {"name": "trace", "decay": 0.9}
    expected = math.sqrt(2 * rate * decay / 1.9)
    assert angle(pull, trace, scale) == pytest.approx(expected)
    lion = {"name": "scale_by_lion", "b1": 0.9, "b2": 0.99}
    variance = 0.1**2 + 0.9**2 * 0.01 / 1.99
    expected = math.sqrt(math.pi * rate * decay * variance)
    assert angle(lion, pull, scale) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"name": "adam", "learning_rate": 0.1}, ValueError, "a decay of 0 a step"),
        (
            {"name": "novograd", "learning_rate": 0.1},
            ValueError,
            "'novograd', which is",
        ),
        (
            {"name": "adamw", "learning_rate": 0.1, "weight_decay": {"kernel": 0.1}},
            TypeError,
            "`adamw.weight_decay` must be one number",
        ),
        (
            {"name": "adamw", "learning_rate": 0.1, "weight_decay": 1e-3, "l1": 1e-3},
            ValueError,
            "has l1=0.001, which is not covered",
        ),
        (
            {
                "name": "chain",
                "links": [
                    {"name": "add_decay", "weight_decay": 0.1},
                    {"name": "adam", "learning_rate": 0.1},
                ],
            },
            ValueError,
            "a decay in the gradient, before Adam's",
        ),
        (
            {"name": "chain", "links": [{"name": "trace", "decay": 0.9}] * 2},
            ValueError,
            "two moments in a chain",
        ),
    ],
)
def test_what_the_theory_does_not_cover_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        normopt.equilibrium(config)
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        normopt.equilibrium(RUNS["adam"][0], size=0)
