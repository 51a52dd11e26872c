"""One decay is the same in all its forms, and so is the trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

RATE, DECAY, STEPS = 0.02, 0.3, 30
FORMS = normopt.decay_from(learning_rate=RATE, times_learning_rate=DECAY)


def cosine(lowest):
    return optax.cosine_decay_schedule(RATE, STEPS, lowest)


def trajectory(optimizer):
    """Gives the weights after each of some steps down a noisy bowl."""

    def step(carry, key):
        w, state = carry
        g = w - 1 + jax.random.normal(key, w.shape)
        updates, state = optimizer.update(g, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    w = 3.0 * jax.random.normal(jax.random.key(0), (4, 5))
    keys = jax.random.split(jax.random.key(1), STEPS)
    return jax.jit(lambda *c: jax.lax.scan(step, c, keys)[1])(w, optimizer.init(w))


def in_form(moments, form, rate):
    """Gives a chain whose decay has a form, at a schedule of the learning rate."""
    scale = optax.scale_by_learning_rate(rate)
    decay = getattr(FORMS, form)
    links = {
        "independent": (scale, normopt.decay_weights(decay)),
        "times_learning_rate": (normopt.add_decay(decay), scale),
        "following": (
            scale,
            normopt.decay_weights(decay, schedule=lambda t: rate(t) / RATE),
        ),
        "corrected": (
            scale,
            normopt.decay_weights(decay, schedule=lambda t: rate(t) ** 2 / RATE),
        ),
    }
    return optax.chain(moments, *links[form])


def from_form(form):
    return normopt.decay_from(learning_rate=RATE, **{form: getattr(FORMS, form)})


ADAMW = {
    "independent": lambda: normopt.adamw(
        RATE, weight_decay=from_form("memory").independent
    ),
    "following": lambda: normopt.adamw(
        RATE,
        weight_decay=from_form("angle").following,
        schedule=lambda t: cosine(1.0)(t) / RATE,
    ),
} | {
    form: lambda form=form: in_form(optax.scale_by_adam(), form, cosine(1.0))
    for form in ("times_learning_rate", "corrected")
}


def assert_same(one, other, form=""):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6, err_msg=form)


def test_a_user_of_optaxs_adamw_gets_its_trajectory_from_each_form():
    expected = trajectory(optax.adamw(RATE, weight_decay=DECAY))
    for form, build in ADAMW.items():
        assert_same(trajectory(build()), expected, form)


@pytest.mark.slow("of other moments")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            optax.chain(
                optax.trace(0.9),
                optax.add_decayed_weights(DECAY),
                optax.scale_by_learning_rate(RATE),
            ),
            lambda: normopt.sgdw(RATE, 0.9, weight_decay=FORMS.independent),
        ),
        (
            optax.lion(RATE, weight_decay=DECAY),
            lambda: in_form(optax.scale_by_lion(), "independent", cosine(1.0)),
        ),
        (
            optax.adamw(RATE, weight_decay=DECAY),
            lambda: normopt.adamp(
                RATE, weight_decay=FORMS.times_learning_rate, channel_axes=None
            ),
        ),
    ],
    ids=["sgdw", "lion", "adamp"],
)
def test_so_does_a_user_of_other_optimizers(theirs, ours):
    assert_same(trajectory(theirs), trajectory(ours()))


def test_with_a_schedule_a_following_decay_is_times_the_learning_rate():
    rate = cosine(0.1)
    expected = trajectory(optax.adamw(rate, weight_decay=DECAY))
    adam = optax.scale_by_adam()
    assert_same(trajectory(in_form(adam, "following", rate)), expected)
    follows = normopt.adamw(
        RATE, weight_decay=FORMS.following, schedule=lambda t: rate(t) / RATE
    )
    assert_same(trajectory(follows), expected)
    # The others agree with it at the largest rate alone.
    for form in ("independent", "corrected"):
        other = trajectory(in_form(adam, form, rate))
        assert_same(other[0], expected[0])
        assert jnp.max(jnp.abs(other[-1] - expected[-1])) > 0.01


def test_each_form_comes_back_from_each():
    for form in FORMS._fields:
        assert from_form(form) == pytest.approx(FORMS), form
    assert pytest.approx(FORMS) == (0.006, 0.3, 0.006, 0.3, 1 / 0.006, FORMS.angle)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_the_angle_is_that_of_the_equilibrium(b1):
    forms = normopt.decay_from(learning_rate=RATE, angle=0.01, b1=b1)
    adam = {"name": "adamw", "learning_rate": RATE, "b1": b1}
    sgd = {"name": "sgdw", "learning_rate": RATE, "momentum": b1}
    for config in (adam, sgd):
        config["weight_decay"] = forms.independent
        assert normopt.equilibrium(config).angle == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "exactly one of independent, .*, memory, angle, got none"),
        (
            {"memory": 10.0, "angle": 0.1},
            TypeError,
            "exactly one of .*, got memory and angle",
        ),
        ({"memory": "long"}, TypeError, "`memory` must be one number"),
        ({"memory": 1.0}, ValueError, "`memory` must come to a decay below 1"),
        (
            {"independent": 2.0},
            ValueError,
            "got independent=2, which comes to 2 at learning_rate=0.1; one",
        ),
        ({"following": 0.0}, ValueError, "`following` must be above 0"),
        ({"angle": 1e-170}, ValueError, "`angle` must have forms in the range"),
        ({"angle": 1e200}, ValueError, "`angle` must come .* at learning_rate=0.1$"),
        ({"memory": 10**400}, ValueError, "`memory` must be above 0 and finite, got"),
        (
            {"corrected": 1e-320, "learning_rate": 1e-3},
            ValueError,
            "`corrected` must have forms",
        ),
        (
            {"independent": 0.1, "learning_rate": 1e-310},
            ValueError,
            "`independent` must have",
        ),
        ({"angle": 0.1, "b1": 1.0}, ValueError, "`b1` must be at least 0 and below 1"),
        ({"angle": 0.1, "learning_rate": 0.0}, ValueError, "`learning_rate` must be a"),
    ],
)
def test_what_is_no_decay_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        normopt.decay_from(**{"learning_rate": 0.1, **options})


def test_numbers_are_concrete_and_become_plain_ones():
    given = {"learning_rate": 0.1, "independent": 0.1, "b1": 0.9}
    for name, number in given.items():
        with pytest.raises(TypeError, match=f"`{name}` must be a concrete number"):
            jax.jit(lambda x, n=name: normopt.decay_from(**{**given, n: x}))(number)
    for of in (jnp.float32, np.float32):
        forms = normopt.decay_from(**{name: of(one) for name, one in given.items()})
        assert {type(one) for one in forms} == {float}
