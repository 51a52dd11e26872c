from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W, G = jax.random.normal(jax.random.key(0), (2, 4, 3, 5))


@pytest.mark.parametrize(
    ("axes", "radius"),
    [
        ((-1,), 2.5),
        pytest.param((), 1.0, marks=pytest.mark.slow("columns show it")),
        pytest.param((0, 2), 1.0, marks=pytest.mark.slow("columns show it")),
    ],
)
@pytest.mark.parametrize(
    ("inner", "moment"),
    [
        (optax.adam(0.1), "mu"),
        (optax.sgd(0.1, momentum=0.9), "trace"),
        (optax.sgd(0.1), None),
        (normopt.adams(0.1, channel_axes=(-1,)), "mu"),
        (optax.inject_hyperparams(optax.adam)(learning_rate=0.1), "mu"),
    ],
)
def test_blocks_end_on_the_sphere_after_any_inner_step(axes, radius, inner, moment):
    tx = normopt.retract_to_sphere(inner, axes, radius, moment=moment)
    params, state = W, tx.init(W)
    for g in (G, -2 * G, W):
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(normopt.block_norms(params, axes), radius, rtol=2e-6)


def test_the_moment_is_carried_to_the_new_weights():
    tx = normopt.retract_to_sphere(optax.sgd(0.3, momentum=0.9), (-1,), moment="trace")
    _, state = tx.update(G, tx.init(W), W)
    (trace,) = (s.trace for s in state if hasattr(s, "trace"))
    new = W - 0.3 * G
    radial = jnp.sum(G * new, (0, 1)) / jnp.sum(new**2, (0, 1))
    stretch = jnp.linalg.norm(new.reshape(-1, 5), axis=0)
    stretch /= jnp.linalg.norm(W.reshape(-1, 5), axis=0)
    np.testing.assert_allclose(
        trace, stretch * (G - radial * new), rtol=1e-4, atol=1e-5
    )


def test_leaves_without_blocks_take_the_inner_step():
    params = {"kernel": W, "mu": jnp.ones(3)}
    axes = {"kernel": (-1,)}
    tx = normopt.retract_to_sphere(optax.adam(0.1), axes, moment="mu")
    updates, state = tx.update(params, tx.init(params), params)
    expected, _ = optax.adam(0.1).update(params, optax.adam(0.1).init(params), params)
    np.testing.assert_array_equal(updates["mu"], expected["mu"])
    # A parameter called mu is not taken for the moment.
    assert state[0].mu["mu"].shape == (3,)


class Gauss(NamedTuple):
    mu: Any
    trace: Any


@pytest.mark.parametrize(
    "tx",
    [
        normopt.adamg(0.1, channel_axes=(-1,)),
        normopt.retract_to_sphere(
            optax.chain(optax.scale_by_rms(), optax.trace(0.9), optax.scale(-0.1)),
            (-1,),
            moment="trace",
        ),
    ],
    ids=["adamg", "momentum"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_params_in_a_tuple_may_share_the_name_of_the_moment(tx, nested):
    def trained(as_dict):
        def tree(*leaves):
            own = Gauss(*leaves)
            own = own._asdict() if as_dict else own
            return {"layer": own} if nested else own

        # One with blocks and one without: the second moment has a part for each.
        params = tree(W, jnp.ones(3))
        state = tx.init(params)
        for step in range(3):
            grads = tree(G + step, jnp.arange(3.0))
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.leaves((params, state))

    ours, expected = trained(as_dict=False), trained(as_dict=True)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_any_length_of_weights_is_brought_to_the_sphere(length):
    tx = normopt.retract_to_sphere(optax.sgd(0.1, momentum=0.9), (-1,), moment="trace")
    params = length * W
    updates, state = tx.update(G, tx.init(params), params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
    new = optax.apply_updates(params, updates)
    # The first step is rounded where it undoes a great length; the second one is not.
    updates, _ = tx.update(G, state, new)
    new = optax.apply_updates(new, updates)
    np.testing.assert_allclose(normopt.block_norms(new, (-1,)), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_moment_of_low_precision_keeps_its_direction(dtype):
    tx = normopt.retract_to_sphere(optax.sgd(1e-5, 0.9), (), moment="trace")
    params, grads = jnp.eye(3)[0], jnp.array([0.0, 100.0, 20.0])
    expected = tx.update(grads, tx.init(params), params)[1][0].trace
    params, grads = params.astype(dtype), grads.astype(dtype)
    trace = tx.update(grads, tx.init(params), params)[1][0].trace
    # The step and the moment are each rounded once.
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        trace.astype(jnp.float32), expected, rtol=eps, atol=100 * 1e-3 * eps
    )


def test_short_weights_of_float16_stay_finite():
    # Each of these steps is longer than the weights, and stretches the moment again.
    tx = normopt.retract_to_sphere(optax.adam(0.1, eps=1e-4), (), moment="mu")
    params, grads = jnp.full((4, 3, 5), 1e-4, jnp.float16), G.astype(jnp.float16)
    state = tx.init(params)
    for step in range(8):
        updates, state = tx.update((-1) ** step * grads, state, params)
        params = optax.apply_updates(params, updates)
        assert jnp.isfinite(state[0].mu).all()
        assert jnp.isfinite(params).all()


def test_a_block_at_zero_that_does_not_move_stays():
    tx = normopt.retract_to_sphere(optax.sgd(0.1), (), moment=None)
    updates, _ = tx.update(jnp.zeros(3), tx.init(jnp.zeros(3)), jnp.zeros(3))
    assert not updates.any()


def test_masked_inner_moments_are_carried_where_they_are():
    params = {"a": W, "b": G}
    inner = optax.chain(
        optax.masked(optax.trace(0.9), {"a": True, "b": False}), optax.scale(-0.1)
    )
    tx = normopt.retract_to_sphere(inner, (-1,), moment="trace")
    updates, state = tx.update(params, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    for leaf in jax.tree.leaves(normopt.block_norms(new, (-1,))):
        np.testing.assert_allclose(leaf, 1, rtol=1e-6)
    carried = state[0].inner_state.trace["a"]
    np.testing.assert_allclose(jnp.sum(carried * new["a"], (0, 1)), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "moment", "message"),
    [
        (optax.sgd(0.1), "mu", "must name one field of inner's state; .*: none"),
        (optax.chain(optax.adam(0.1), optax.adam(0.1)), "mu", "ScaleByAdamState.mu, "),
        (normopt.adams(0.1, channel_axes=()), "nu", "is no first moment: its"),
        (optax.adam(0.1), "count", "is no first moment"),
    ],
)
def test_a_moment_that_is_not_one_is_refused_at_init(inner, moment, message):
    tx = normopt.retract_to_sphere(inner, (), moment=moment)
    with pytest.raises(ValueError, match=message):
        tx.init({"kernel": W})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((optax.adam(0.1), (), 0.0), ValueError, "`radius` must be above 0"),
        (("adam", ()), TypeError, "wraps an optimizer such as"),
        ((optax.adam(0.1), 1.5), TypeError, "`channel_axes` must be None or"),
    ],
)
def test_bad_options_are_refused_when_built(arguments, error, message):
    with pytest.raises(error, match=message):
        normopt.retract_to_sphere(*arguments)
    with pytest.raises(TypeError, match="`moment` must be the name"):
        normopt.retract_to_sphere(optax.adam(0.1), (), moment=1)


def test_two_leaves_of_one_path_are_refused_at_init():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    link = normopt.retract_to_sphere(optax.sgd(0.1, 0.9), (), moment="trace")
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        link.init(params)
