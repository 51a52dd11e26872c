"""Blocks that noise drives come to the length and the angle that are predicted."""

import math

import jax
import jax.numpy as jnp
import pytest

import normopt

SIZE, BLOCKS, RATE, DECAY = 100, 64, 0.01, 0.002
ADAM = {"b1": 0.9, "b2": 0.99}
LION = {"b1": 0.9, "b2": 0.98}
AXES = {"channel_axes": (-1,)}


def of(name, **options):
    return {"name": name, **options}


def chain(*links):
    return of("chain", links=list(links))


L2 = of("add_decay", weight_decay=0.2)
LR = of("scale_by_learning_rate", learning_rate=RATE)
# Each decays by 0.001 to 0.004 a step: far less than 1 - b1, and often in a test.
RUNS = {
    "adam": of("adamw", learning_rate=RATE, weight_decay=DECAY, **ADAM),
    # A tenth of 1 - b1, as for Lion below of 1 - b2: the most that is vouched for.
    "adam, most": of("adamw", learning_rate=RATE, weight_decay=0.0099, **ADAM),
    "adam, following": of(
        "adamw", learning_rate=2 * RATE, weight_decay=2 * DECAY, schedule=0.5, **ADAM
    ),
    "adam, times lr": chain(of("scale_by_adam", **ADAM), L2, LR),
    "adam, L2": chain(L2, of("scale_by_adam", **ADAM), LR),
    "adams": of("adams", learning_rate=RATE, weight_decay=0.2, **ADAM, **AXES),
    "adamsrt": of("adamsrt", learning_rate=0.02, weight_decay=0.4, **ADAM, **AXES),
    "adamsrt, decay after": chain(
        of("scale_by_block_adam", tangent=True, nesterov=True, **ADAM, **AXES),
        LR,
        of("decay_weights", weight_decay=DECAY),
    ),
    "sgd": chain(
        of("add_decayed_weights", weight_decay=0.02),
        of("sgd", learning_rate=0.1, momentum=0.5),
    ),
    "sgdw": of(
        "sgdw", learning_rate=0.1, momentum=0.8, nesterov=True, weight_decay=DECAY
    ),
    "sgdmrt": of(
        "sgdmrt",
        learning_rate=0.1,
        momentum=0.8,
        dampening=0.2,
        weight_decay=0.04,
        **AXES,
    ),
    "novograd": of(
        "novograd", learning_rate=0.002, weight_decay=0.2, b1=0.8, b2=0.99, **AXES
    ),
    "novograd, averaging": of(
        "novograd",
        learning_rate=RATE,
        weight_decay=0.2,
        **ADAM,
        grad_averaging=True,
        **AXES,
    ),
    "lion": of("lion", learning_rate=RATE, weight_decay=0.1, **LION),
    "lion, most": of("lion", learning_rate=RATE, weight_decay=0.19, **LION),
    "lion, L2": chain(
        of("add_decay", weight_decay=0.01), of("scale_by_lion", **LION), LR
    ),
}
QUICK = ("adam", "adamsrt")
SLOW = pytest.mark.slow("those that are quick show each moment, the formulas the rest")


def follow(optimizer, start, steps, gradient=1.0):
    """Gives lengths and angles, steps x blocks, of blocks that noise drives."""

    def step(carry, key):
        w, state = carry
        noise, length = jax.random.normal(key, w.shape), jnp.linalg.norm(w, axis=0)
        unit = w / length
        g = gradient * (noise - unit * jnp.sum(unit * noise, 0)) / length
        updates, state = optimizer.update(g, state, w)
        after = w + updates
        angle = normopt.block_angles(w, after, (-1,))
        return (after, state), (jnp.linalg.norm(after, axis=0), angle)

    w = jax.random.normal(jax.random.key(0), (SIZE, BLOCKS))
    w *= start / jnp.linalg.norm(w, axis=0)
    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda *carry: jax.lax.scan(step, carry, keys)[1])(
        w, optimizer.init(w)
    )


def means(lengths, angles):
    return [float(jnp.sqrt(jnp.mean(x**2))) for x in (lengths, angles)]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=SLOW) for name in RUNS],
)
def test_a_block_driven_by_noise_comes_to_it(name):
    gradient = 1.0 if name in QUICK else 3.0
    expected = normopt.equilibrium(RUNS[name], size=SIZE, gradient=gradient)
    # Blocks that start too long show a length that is not what pulls them back.
    start = expected.length if name in QUICK else 1.2 * expected.length
    optimizer, rest = normopt.make(**RUNS[name]), 200 if name in QUICK else 2000
    lengths, angles = follow(optimizer, start, rest + 800, gradient)
    found = means(lengths[rest:], angles[rest:])
    assert found == pytest.approx([*expected], rel=0.05), (found, expected)


@pytest.mark.slow("6000 steps each")
@pytest.mark.parametrize(
    ("exponent", "is_level"), [(0.0, False), (1.0, False), (2.0, True)]
)
def test_blocks_follow_a_schedule_and_a_corrected_decay_keeps_their_length(
    exponent, is_level
):
    """The decay is independent, times lr_t, and times lr_t^2 / lr_max."""
    cosine = of("cosine_decay_schedule", decay_steps=12_000)
    config = chain(
        of("scale_by_adam", **ADAM),
        LR | {"learning_rate": {**cosine, "init_value": RATE}},
        of(
            "decay_weights",
            weight_decay=0.004,
            schedule={**cosine, "init_value": 1.0, "exponent": exponent},
        ),
    )
    start = normopt.equilibrium(config, size=SIZE, step=0)
    lengths, angles = follow(normopt.make(**config), start.length, 6050)
    for step in (3000, 6000):
        expected = normopt.equilibrium(config, size=SIZE, step=step)
        near = slice(step - 50, step + 50)
        found = means(lengths[near], angles[near])
        assert found == pytest.approx([*expected], rel=0.05), (step, found, expected)
        level = pytest.approx(start.length, rel=1e-4)
        assert (expected.length == level) == is_level


def test_the_angles_are_those_of_the_paper():
    rate, decay = 1e-3, 0.1

    def angle(*links):
        return normopt.equilibrium(chain(*links)).angle

    scale = of("scale_by_learning_rate", learning_rate=rate)
    pull = of("add_decay", weight_decay=decay)
    adam = of("scale_by_adam", b1=0.8)
    expected = math.sqrt(2 * rate * decay * 0.2 / 1.8)
    assert angle(adam, pull, scale) == pytest.approx(expected)
    tied = of("decay_weights", weight_decay=rate * decay)
    assert angle(adam, scale, tied) == pytest.approx(expected)
    run = of("adamw", learning_rate=rate, weight_decay=rate * decay, b1=0.8)
    assert normopt.equilibrium(run) == (None, pytest.approx(expected))
    trace = of("trace", decay=0.9)
    expected = math.sqrt(2 * rate * decay / 1.9)
    assert angle(pull, trace, scale) == pytest.approx(expected)
    lion = of("scale_by_lion", b1=0.9, b2=0.99)
    variance = 0.1**2 + 0.9**2 * 0.01 / 1.99
    expected = math.sqrt(math.pi * rate * decay * variance)
    assert angle(lion, pull, scale) == pytest.approx(expected)


def test_with_l2_in_adams_gradient_the_length_is_a_cube_root():
    run = of("adams", learning_rate=1e-3, weight_decay=1e-2, **AXES)
    length, angle = normopt.equilibrium(run, size=50, gradient=3.0)
    assert length == pytest.approx((1e-3 * 50 * 3.0 / 2e-2) ** (1 / 3))
    assert angle == pytest.approx(math.sqrt(2e-5 * length / 3.0 / 19))
    # The elements of a leaf without blocks have moments of their own.
    plain = normopt.equilibrium({**run, "channel_axes": None}, size=50, gradient=3.0)
    assert plain == pytest.approx((length, angle))
    with pytest.raises(ValueError, match="`size` must be given, the number of elem"):
        normopt.equilibrium(run)


def test_a_length_that_does_not_depend_on_the_size_is_told_without():
    run = RUNS["novograd"]
    found = normopt.equilibrium(run)
    assert found == normopt.equilibrium(run, size=7)
    assert found.length == pytest.approx(math.sqrt(0.002 / (2 * 0.2 * 0.2)))


def test_schedules_are_read_at_a_step():
    steps = of("exponential_decay", init_value=0.1, transition_steps=1, decay_rate=0.5)
    run = of("adamw", learning_rate=0.1, weight_decay=1e-3, schedule=steps)
    now = {**run, "schedule": 0.025}
    found = normopt.equilibrium(run, size=9, step=2)
    assert found == pytest.approx(normopt.equilibrium(now, size=9))
    with pytest.raises(TypeError, match="got the schedule 'exponential_decay': give"):
        normopt.equilibrium(run)
    run["schedule"] = of("WarmRestarts", cycle_steps=10)
    with pytest.raises(TypeError, match="`schedule` is a WarmRestarts, which keeps"):
        normopt.equilibrium(run, step=2)
    with pytest.raises(ValueError, match="`step` must be at least 0"):
        normopt.equilibrium(RUNS["adam"], step=-1)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (of("adam", learning_rate=0.1), ValueError, "a decay of 0 a step"),
        (
            chain(LR | {"learning_rate": 0.0}, RUNS["adam"]),
            ValueError,
            "a rate of 0 and",
        ),
        (
            of("muon", learning_rate=0.1, weight_decay=0.1),
            ValueError,
            "'muon', whose equilibrium is not known; known are adam, adamw, sgd",
        ),
        (
            of("adamw", learning_rate=0.1, weight_decay={"kernel": 0.1}),
            TypeError,
            "`adamw.weight_decay` must be one number",
        ),
        (
            of("adams", learning_rate=0.1, channel_axes={"kernel": (-1,)}),
            TypeError,
            "`adams.channel_axes` must be those of the block",
        ),
        (
            of("adamw", learning_rate=0.1, weight_decay=1e-3, l1=1e-3),
            ValueError,
            "has l1=0.001, with which no equilibrium is known",
        ),
        (
            of("novograd", learning_rate=0.1, weight_decay=1e-3, amsgrad=True),
            ValueError,
            "has amsgrad=True, with which",
        ),
        (
            chain(L2, RUNS["adam"]),
            ValueError,
            "a decay beside one in the gradient",
        ),
        (chain(of("trace", decay=0.9), L2, RUNS["lion"]), ValueError, "two moments in"),
        (
            chain(of("trace", decay=0.9), of("scale_by_block_rms"), LR),
            ValueError,
            "two moments in",
        ),
        (chain(of("scale_by_adam"), L2), ValueError, "is without a learning rate"),
        (of("decay_weights", weight_decay=0.1), ValueError, "without a learning rate"),
        (chain(RUNS["adam"], LR), ValueError, "has 2 learning rates in a chain"),
        (chain(of("scale_by_adam"), LR, L2), ValueError, "a decay with the wrong sign"),
        (
            chain(of("decay_weights", weight_decay=0.1), LR),
            ValueError,
            "a decay with the wrong sign",
        ),
        (chain(of("trace", decay=1.0), L2, LR), ValueError, "`trace.decay` must be at"),
        (
            chain(of("scale_by_adam"), L2, LR | {"learning_rate": 5.0}),
            ValueError,
            "a decay of 1 a step, which takes off all",
        ),
        ("adamw", TypeError, "`config` must be .*, as normopt.config takes .*'adamw'"),
        (
            {"learning_rate": 0.1},
            TypeError,
            '`config` must be .* got .*"?learning_rate',
        ),
    ],
)
def test_what_is_not_known_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        normopt.equilibrium(config)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (1.5, TypeError, "`size` must be an integer, got size=1.5; the number of elem"),
        (True, TypeError, "`size` must be an integer"),
        (1, ValueError, "`size` must be at least 2"),
    ],
)
def test_a_size_counts_elements(size, error, message):
    with pytest.raises(error, match=message):
        normopt.equilibrium(RUNS["adam"], size=size)


def test_a_gradient_has_a_size():
    with pytest.raises(ValueError, match="`gradient` must be above 0"):
        normopt.equilibrium(RUNS["sgd"], gradient=0.0)
    one, three = (
        normopt.equilibrium(RUNS["sgd"], size=5, gradient=s) for s in (1.0, 3.0)
    )
    assert three == pytest.approx((one.length * math.sqrt(3), one.angle))


def test_observe_is_looked_through_and_numbers_are_plain():
    expected = normopt.equilibrium(RUNS["sgd"], size=5, gradient=3.0)
    found = normopt.equilibrium(
        of("observe", inner=RUNS["sgd"]), size=jnp.int32(5), gradient=jnp.float32(3.0)
    )
    assert found == pytest.approx(expected)
    assert [type(one) for one in found] == [float, float]
    for rate in (1e-200, 1e200):
        with pytest.raises(ValueError, match="a length or an angle beyond the range"):
            normopt.equilibrium(RUNS["adam"] | {"learning_rate": rate}, size=5)
