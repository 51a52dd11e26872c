import jax
import jax.numpy as jnp
import optax
import pytest

import normopt
from tests.trajectories import cases, largest_miss, load

SYSTEM = "C_keras_normalized"


def wrapped(meta):
    settings = meta["wrapped"]["config"]
    match meta["wrapped"]["class"]:
        case "SGD":
            return optax.sgd(settings["lr"], settings["momentum"], settings["nesterov"])
        case "Adam":
            return normopt.adamw(
                settings["lr"],
                settings["beta_1"],
                settings["beta_2"],
                settings["epsilon"],
                eps_hat=True,
            )
        case "RMSprop":
            return optax.rmsprop(
                settings["lr"],
                decay=settings["rho"],
                eps=settings["epsilon"],
                eps_in_sqrt=False,
            )


def rebuilt(meta):
    norm = meta["kwargs"]["normalization"]
    # The original adds eps to both parts of this norm, then once more.
    eps = 2e-7 if norm == "l1_l2" else 1e-7
    if meta["class"] == "ClippedOptimizer":
        return normopt.clipped(wrapped(meta), meta["kwargs"]["clipnorm"], norm, eps=eps)
    return normopt.normalized(wrapped(meta), norm, eps=eps)


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 16


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    miss = largest_miss(recording, lambda: rebuilt(recording.meta))
    # float32: rounding of 40 steps; float64: what the files' readme allows.
    assert miss <= (1e-5 if recording.meta["dtype"] == "float32" else 1e-6)


@pytest.mark.parametrize("channel_axes", [(), (-1,), (0, -1)])
def test_direction_alone_matters(channel_axes):
    optimizer = normopt.normalized(optax.sgd(0.1), channel_axes=channel_axes, eps=0.0)
    grads = jax.random.normal(jax.random.key(0), (3, 5, 4))
    state = optimizer.init(grads)
    once, _ = optimizer.update(grads, state, grads)
    thousandfold, _ = optimizer.update(1024 * grads, state, grads)
    assert jnp.allclose(once, thousandfold, rtol=1e-6, atol=0)


def test_extra_args_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value, **extra_args):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    optimizer = normopt.normalized(inner)
    grads = jnp.ones(2)
    optimizer.update(grads, optimizer.init(grads), grads, value=3.0)
    assert seen == [3.0]


@pytest.mark.parametrize(
    "build", [lambda i: normopt.normalized(i), lambda i: normopt.clipped(i, 1.0)]
)
def test_inner_must_be_an_optimizer(build):
    several = optax.MultiSteps(optax.sgd(0.1), 2)
    with pytest.raises(TypeError, match=r"pass what its gradient_transformation\(\)"):
        build(several)
    with pytest.raises(TypeError, match="wraps an optimizer.*'sgd'"):
        build("sgd")
