import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from tests.trajectories import cases, largest_miss, load

SYSTEM = "E_adamp"
OPTIMIZERS = {"AdamP": normopt.adamp, "SGDP": normopt.sgdp}


def rebuilt(meta):
    kwargs = dict(meta["kwargs"])
    rate = kwargs.pop("lr")
    if "betas" in kwargs:
        kwargs["b1"], kwargs["b2"] = kwargs.pop("betas")
    # The layout is torch's: channels first.
    return OPTIMIZERS[meta["class"]](rate, **kwargs, channel_axes=(0,))


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 4


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    miss = largest_miss(recording, lambda: rebuilt(recording.meta))
    # The original has eps in the cosine and in the direction that it projects on.
    assert miss <= 1e-6 + 2e-8


def test_without_test_and_projection_they_are_optax_own():
    """Leaves of one dimension are not tested; decay is times the learning rate."""
    params = jnp.linspace(-1.0, 1.0, 7)
    for ours, reference in (
        (normopt.adamp(0.1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
        (
            normopt.sgdp(0.1, 0.5, weight_decay=0.2),
            optax.chain(
                optax.trace(0.5),
                optax.add_decayed_weights(0.2 / (1 - 0.5)),
                optax.scale_by_learning_rate(0.1),
            ),
        ),
    ):
        a = b = params
        state, other = ours.init(params), reference.init(params)
        for key in jax.random.split(jax.random.key(1), 10):
            grads = jax.random.normal(key, params.shape)
            updates, state = ours.update(grads, state, a)
            a = optax.apply_updates(a, updates)
            updates, other = reference.update(grads, other, b)
            b = optax.apply_updates(b, updates)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_invariant_weights_grow_slower_than_under_adam():
    """The effect that the paper is about: momentum does not lengthen the weights."""

    def loss(w):
        unit = w / jnp.linalg.norm(w, axis=0)
        return jnp.sum(unit * jnp.arange(12.0).reshape(4, 3)) ** 2

    start = jax.random.normal(jax.random.key(0), (4, 3))
    growth = {}
    for name, optimizer in (("adamp", normopt.adamp(0.05)), ("adam", optax.adam(0.05))):
        w = start
        state = optimizer.init(w)
        step = jax.jit(optimizer.update)
        for _ in range(200):
            updates, state = step(jax.grad(loss)(w), state, w)
            w = optax.apply_updates(w, updates)
        growth[name] = float(jnp.linalg.norm(w) - jnp.linalg.norm(start))
    assert 0 < growth["adamp"] < 0.8 * growth["adam"]


def test_sgdp_takes_its_decay_in_every_form():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    forms = (0.2, {"": 0.2}, lambda tree: jax.tree.map(lambda leaf: 0.2, tree))
    for form in forms:
        optimizer = normopt.sgdp(0.1, 0.5, weight_decay=form)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["bias"], -0.1 * 0.2 / 0.5, rtol=1e-6)
