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


def test_a_moment_keeps_its_size_where_the_square_of_a_length_overflows():
    inner = optax.sgd(0.1, momentum=0.9)
    tx = normopt.retract_to_sphere(inner, (-1,), "initial", moment="trace")
    large = 1e20 * W
    _, state = tx.update(G, tx.init(large), large)
    (trace,) = (s.trace for s in state.inner if hasattr(s, "trace"))
    np.testing.assert_allclose(trace, G, rtol=1e-5)


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


def test_each_leaf_has_a_radius_of_its_own():
    params = {"kept": 3 * W, "present": W, "one": W, "free": W, "bias": jnp.ones(3)}
    radius = {"kept": "initial", "present": "present", "one": 2.0, "bias": None}
    tx = normopt.retract_to_sphere(optax.sgd(0.5), {"": ()}, radius)
    state, after = tx.init(params), params
    assert sorted(state.radius) == ["kept@"]
    for _ in range(3):
        updates, state = tx.update(params, state, after)
        after = optax.apply_updates(after, updates)
    lengths = normopt.block_norms(after)
    for leaf in ("kept", "present"):
        own = normopt.block_norms(params[leaf])
        np.testing.assert_allclose(lengths[leaf], own, rtol=1e-6)
    np.testing.assert_allclose(lengths["one"], 2, rtol=1e-6)
    # No radius is found for these: they take inner's steps.
    np.testing.assert_allclose(after["free"], W - 1.5 * W, atol=1e-5)
    np.testing.assert_allclose(after["bias"], -0.5, rtol=1e-6)


@pytest.mark.parametrize("radius", ["initial", "present"])
def test_a_block_without_length_takes_the_inner_step(radius):
    params, grads = W.at[..., 0].set(0), G.at[..., 1].set(0)
    tx = normopt.retract_to_sphere(optax.sgd(0.1), (-1,), radius)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates[..., 0], (-0.1 * grads)[..., 0])
    np.testing.assert_allclose(updates[..., 1], 0, atol=1e-6)


@pytest.mark.parametrize("radius", ["initial", lambda tree: "initial"])
def test_an_initial_radius_does_not_drift_in_low_precision(radius):
    params = W.astype(jnp.bfloat16)
    lengths = normopt.block_norms(params, (-1,))
    tx = normopt.retract_to_sphere(optax.sgd(0.1), (-1,), radius)

    def step(carry, g):
        updates, state = tx.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    grads = jax.random.normal(jax.random.key(5), (1000, *W.shape), jnp.bfloat16)
    scan = jax.jit(lambda start: jax.lax.scan(step, start, grads)[0][0])
    after = normopt.block_norms(scan((params, tx.init(params))), (-1,))
    # Of 8 bits in each of twelve weights.
    np.testing.assert_allclose(after, lengths, rtol=2**-8)


def test_a_moment_is_projected_and_not_stretched():
    options = {"moment": "trace", "radius": "present"}
    traces = []
    for stretch in (True, False):
        inner = optax.sgd(0.3, momentum=0.9)
        tx = normopt.retract_to_sphere(inner, (-1,), stretch=stretch, **options)
        traces.append(tx.update(G, tx.init(W), W)[1][0].trace)
    new = W - 0.3 * G
    grown = normopt.block_norms(new, (-1,)) / normopt.block_norms(W, (-1,))
    np.testing.assert_allclose(traces[0], grown * traces[1], rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(traces[1] * new, (0, 1)), 0, atol=1e-4)


@pytest.mark.parametrize("bad", ["first", {"": "first"}, lambda tree: "first"])
def test_a_radius_that_is_no_word_of_these_is_refused(bad):
    with pytest.raises(ValueError, match='number above 0, "initial", "present"'):
        normopt.retract_to_sphere(optax.sgd(0.1), (), bad).init(W)


def test_a_state_without_the_radii_is_refused():
    tx = normopt.retract_to_sphere(optax.sgd(0.1), (-1,), "initial")
    whole = normopt.retract_to_sphere(optax.sgd(0.1), (), "initial")
    with pytest.raises(ValueError, match="no number for each of the"):
        tx.update(G, whole.init(W), W)
    with pytest.raises(TypeError, match="needs its RetractToSphereState"):
        tx.update(G, optax.sgd(0.1).init(W), W)


@pytest.mark.parametrize(("outward", "inward"), [(0.5, 1.0), (0.25, 0.75), (0.0, 0.0)])
def test_a_brake_takes_a_part_of_the_growth(outward, inward):
    tx = normopt.brake_radial(optax.sgd(1.0), (-1,), outward, inward)
    # Two columns grow, two shrink, and one has no length yet.
    factors = jnp.array([1.0, 0.5, -0.5, -0.25, 1.0])
    params = W.at[..., 4].set(0)
    grads = jnp.where(jnp.arange(5) == 4, G, -factors * W + 0.1 * G)
    updates, _ = tx.update(grads, tx.init(params), params)
    before, stepped, after = (
        normopt.block_norms(w, (-1,))
        for w in (params, params - grads, optax.apply_updates(params, updates))
    )
    part = jnp.where(stepped > before, outward, inward)
    expected = jnp.where(before > 0, before + part * (stepped - before), stepped)
    np.testing.assert_allclose(after, expected, rtol=2e-6)
    angles = normopt.block_angles(
        params - grads, optax.apply_updates(params, updates), (-1,)
    )
    np.testing.assert_allclose(angles, 0, atol=1e-5)
    with pytest.raises(ValueError, match="`outward` must be at least 0"):
        normopt.brake_radial(optax.sgd(1.0), (), -0.5)
