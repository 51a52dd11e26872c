import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normopt
from normopt.blocks import (
    block_dot,
    block_size,
    block_sum,
    per_block,
    resolve_axes,
)
from normopt.numerics import larger, saturated

AXES = [(), (3,), (0,), (1,), (0, 3), (1, 2), (0, 1, 2, 3)]


@pytest.mark.parametrize("axes", AXES)
def test_sums_and_dots_of_blocks(axes):
    a, b = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    within = tuple({0, 1, 2, 3} - set(axes))
    for ours, numpy_s in (
        (block_sum(jnp.asarray(a), axes), a.sum(within, keepdims=True)),
        (block_dot(jnp.asarray(a), jnp.asarray(b), axes), (a * b).sum(within)),
    ):
        assert ours.ndim == 4
        np.testing.assert_allclose(
            per_block(ours, axes),
            numpy_s.reshape(per_block(ours, axes).shape),
            rtol=1e-4,
        )
    assert block_size(a.shape, axes) * block_sum(jnp.asarray(a), axes).size == a.size


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    ones = jnp.ones((4096, 2), dtype)
    for total in (block_sum(ones, (1,)), block_dot(ones, ones, (1,))):
        assert total.dtype == jnp.float32
        assert (total == 4096).all()


def test_complex_dots_are_real():
    a, b = jnp.array([1 + 2j, 3j]), jnp.array([2 - 1j, 1 + 1j])
    dot = block_dot(a, b, ())
    assert dot.dtype == jnp.float32
    np.testing.assert_allclose(dot, [np.vdot(np.asarray(b), np.asarray(a)).real])


def test_axes_come_out_sorted_and_not_negative():
    tree = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones(4), "c": jnp.ones(()), "d": None}
    assert resolve_axes((-1, 0), {"a": tree["a"]}) == [(0, 2)]
    assert resolve_axes((-1,), tree) == [(2,), (0,), None]
    assert resolve_axes([], tree) == [(), (), ()]
    assert resolve_axes(None, tree) == [None, None, None]


def test_a_number_that_is_none_is_handed_on():
    """A guard that turned NaN into a large number would hide where it came from."""
    x = jnp.array([1.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(saturated(x), [1.0, np.finfo(np.float32).max, np.nan])
    np.testing.assert_array_equal(
        larger(jnp.array([2.0, 1, 1]), x), [2, np.inf, np.nan]
    )


@pytest.mark.parametrize(
    "link",
    [
        normopt.scale_by_block_rms(),
        normopt.scale_by_block_adam(channel_axes=()),
        normopt.scale_by_block_adam(channel_axes=(), tangent=True),
        normopt.scale_by_nadam(),
        normopt.normalize_blocks(),
        normopt.clip_blocks(1.0),
    ],
)
def test_a_block_with_a_gradient_that_is_no_number_takes_no_step_in_silence(link):
    """Else the other elements would be divided by a norm of 0."""
    w = jnp.ones(3)
    updates, state = link.update(jnp.array([jnp.nan, 1.0, 1.0]), link.init(w), w)
    assert jnp.isnan(updates[0])
    # By element or by block: what is a number has the size of a step.
    assert (jnp.isnan(updates) | (jnp.abs(updates) < 2)).all()
    if jax.tree.leaves(state):
        updates, _ = link.update(w, state, w)
        assert jnp.isnan(updates).any()
