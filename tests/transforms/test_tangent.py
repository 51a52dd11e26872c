import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W, G, H = jax.random.normal(jax.random.key(0), (3, 4, 3, 5))
AXES = [(), (-1,), (0, 2)]


def dots(a, b, axes):
    within = tuple(i for i in range(3) if i not in [axis % 3 for axis in axes])
    return jnp.sum(a * b, axis=within)


@pytest.mark.parametrize("axes", AXES)
def test_projected_updates_are_orthogonal_to_each_block(axes):
    link = normopt.project_tangent(axes)
    updates, _ = link.update(G, link.init(W), W)
    np.testing.assert_allclose(dots(updates, W, axes), 0, atol=1e-5)
    # Twice is once, and what is tangent stays.
    again, _ = link.update(updates, link.init(W), W)
    np.testing.assert_allclose(again, updates, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, 1e30])
def test_projections_are_finite_and_exact_where_squares_are(size, length):
    link = normopt.project_tangent((-1,))
    updates, _ = link.update(size * G, link.init(W), length * W)
    assert jnp.isfinite(updates).all()
    if 1e-15 < length < 1e15 and 1e-15 < size < 1e15:
        expected, _ = link.update(G, link.init(W), W)
        np.testing.assert_allclose(
            updates, size * expected, rtol=1e-4, atol=1e-5 * size
        )


def test_leaves_without_blocks_stay_as_they_are():
    params = {"kernel": W, "bias": jnp.ones(3), "count": jnp.arange(3), "none": None}
    link = normopt.project_tangent((-1,))
    updates, _ = link.update(params, link.init(params), params)
    assert updates["bias"] is params["bias"] and updates["count"] is params["count"]


def test_complex_blocks_lose_what_is_along_the_weights_by_a_real_factor():
    w, g = W[0] + 1j * G[0], H[0] - 1j * W[0]
    link = normopt.project_tangent(())
    updates, _ = link.update(g, link.init(w), w)
    assert abs(jnp.sum(updates * w.conj()).real) < 1e-4
    expected = g - jnp.sum(g * w.conj()).real / jnp.sum(jnp.abs(w) ** 2) * w
    np.testing.assert_allclose(updates, expected, rtol=1e-4)


def test_momentum_without_blocks_is_optax_trace():
    for nesterov in (False, True):
        ours = normopt.trace_on_tangent(0.9, nesterov=nesterov)
        reference = optax.trace(0.9, nesterov=nesterov)
        state, other = ours.init(W), reference.init(W)
        for g in (G, H, W):
            updates, state = ours.update(g, state)
            expected, other = reference.update(g, other)
            np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_dampening_holds_from_the_first_step_on():
    link = normopt.trace_on_tangent(0.5, dampening=0.25)
    updates, state = link.update(jnp.ones(2), link.init(jnp.ones(2)))
    assert updates.tolist() == [0.75, 0.75]
    link = normopt.trace_on_tangent(0.5, dampening=0.25, nesterov=True)
    updates, _ = link.update(jnp.ones(2), state)
    # The gradient itself is not dampened: 1 + 0.5 (0.5 0.75 + 0.75).
    assert updates.tolist() == [1.5625, 1.5625]


@pytest.mark.parametrize("axes", AXES)
def test_past_momentum_is_tangent_at_the_present_weights(axes):
    link = normopt.trace_on_tangent(0.9, channel_axes=axes)
    _, state = link.update(G, link.init(W), W)
    updates, _ = link.update(jnp.zeros_like(G), state, H)
    np.testing.assert_allclose(dots(updates, H, axes), 0, atol=5e-6)
    assert jnp.abs(dots(state.trace, H, axes)).max() > 0.1


def test_low_precision_momentum_can_be_kept_in_float32():
    params = W.astype(jnp.bfloat16)
    link = normopt.trace_on_tangent(0.9, 0.0, (-1,), accumulator_dtype=jnp.float32)
    updates, state = link.update(params, link.init(params), params)
    assert state.trace.dtype == jnp.float32 and updates.dtype == jnp.bfloat16


def test_sums_of_large_float16_gradients_end_at_its_largest_number():
    grads = jnp.array([4e4, -4e4, jnp.inf, 2.0], jnp.float16)
    link = normopt.trace_on_tangent(0.5)
    _, state = link.update(grads, link.init(grads))
    updates, state = link.update(grads, state)
    # One that was infinite stays so, for whoever looks for it.
    assert updates.tolist() == state.trace.tolist() == [60000, -60000, jnp.inf, 3]
    updates, state = link.update(grads, state)
    assert updates.tolist() == state.trace.tolist() == [65504, -65504, jnp.inf, 3.5]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, "`decay` must be at least 0 and below 1"),
        ({"dampening": -1.0}, ValueError, "`dampening` must be at least 0"),
        ({"accumulator_dtype": int}, TypeError, "`accumulator_dtype` must be None or"),
        ({"channel_axes": "all"}, TypeError, "`channel_axes` must be None or a tuple"),
    ],
)
def test_bad_options_are_refused_when_built(options, error, message):
    with pytest.raises(error, match=message):
        normopt.trace_on_tangent(**{"decay": 0.9, **options})


def test_params_are_asked_for_where_they_are_needed():
    for link in (normopt.project_tangent(()), normopt.trace_on_tangent(0.9, 0.0, ())):
        with pytest.raises(ValueError, match="needs the parameters"):
            link.update(G, link.init(W))
        with pytest.raises(ValueError, match="of shape"):
            link.update(G, link.init(W), W[0])
