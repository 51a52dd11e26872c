"""Duals: the direction of steepest descent in a norm, and what a norm object is."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import normopt
from normopt.norms import norm_of
from tests.versions import enable_x64

CLOSED = {"l1": "max", "avg_l1": "max", "l2": "l2", "avg_l2": "avg_l2", "max": "l1"}
SHAPES = [((6,), ()), ((4, 5), (1,)), ((2, 3, 4, 5), (0, 3)), ((3, 1), (0,)), ((), ())]


def length_of_dual(norm, x, axes):
    """The dual norm, by its own formula."""
    within = tuple(axis for axis in range(x.ndim) if axis not in axes)
    size, total = np.prod([x.shape[a] for a in within]), jnp.abs(x)
    if norm in ("l1", "avg_l1"):
        largest = total.max(axis=within)
        return largest * (size if norm == "avg_l1" else 1)
    if norm == "max":
        return total.sum(axis=within)
    root = jnp.sqrt((total**2).sum(axis=within))
    return root * (size**0.5 if norm == "avg_l2" else 1)


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(norm, marks=[] if norm == "l2" else pytest.mark.slow)
        for norm in CLOSED
    ],
)
@settings(max_examples=max(1, settings().max_examples // 2))
@given(
    case=st.sampled_from(SHAPES),
    seed=st.integers(0, 99),
    power=st.integers(-60, 60),
    dtype=st.sampled_from(["float32", "float64", "complex64"]),
)
def test_the_gain_is_the_dual_norm_and_the_step_has_length_one(
    norm, case, seed, power, dtype
):
    shape, axes = case
    with enable_x64(dtype == "float64"):
        x = 2.0**power * jax.random.normal(jax.random.key(seed), shape, dtype)
        link = normopt.steepest(norm, axes, eps=0.0)
        d, _ = link.update(x, link.init(x))
        assert d.dtype == x.dtype and d.shape == x.shape
        within = tuple(axis for axis in range(x.ndim) if axis not in axes)
        gain = jnp.real(x * jnp.conj(d)).sum(axis=within)
        np.testing.assert_allclose(gain, length_of_dual(norm, x, axes), rtol=1e-5)
        measured = normopt.block_norms(d, axes, norm)
        assert bool(jnp.all(measured <= 1 + 1e-6))


@pytest.mark.parametrize("norm", [*CLOSED, "spectral"])
def test_a_block_of_zeros_stays_zero(norm):
    link = normopt.steepest(norm, (-1,), eps=0.0)
    d, _ = link.update(jnp.zeros((3, 4)), optax.EmptyState())
    assert not d.any()


def test_the_spectral_norm_is_the_largest_singular_value():
    x = jax.random.normal(jax.random.key(0), (5, 3, 4, 2))
    norm = normopt.spectral(((1,), (2,)))
    values = normopt.block_norms(x, norm=norm)
    assert values.shape == (5, 2)
    for i in range(5):
        for j in range(2):
            exact = np.linalg.norm(np.asarray(x[i, :, :, j]), 2)
            np.testing.assert_allclose(values[i, j], exact, rtol=1e-5)


def test_spectral_descent_is_orthogonalize():
    tree = {"a": jax.random.normal(jax.random.key(0), (4, 6)), "b": jnp.ones(3)}
    by_norm = normopt.steepest({"a": "spectral", "b": "max"})
    link = normopt.orthogonalize({"a": ((0,), (1,))})
    one, _ = by_norm.update(tree, by_norm.init(tree))
    other, _ = link.update(tree, link.init(tree))
    np.testing.assert_array_equal(one["a"], other["a"])
    np.testing.assert_array_equal(one["b"], jnp.ones(3))


def test_a_norm_of_ones_own_can_be_an_object():
    class Halves:
        """Twice the length, with its dual."""

        def measure(self, x, axes):
            return 2 * norm_of("l2").measure(x, axes)

        def dual(self, x, axes, eps):
            return norm_of("l2").dual(x, axes, eps) / 2

    x = jnp.array([3.0, 4.0])
    assert normopt.block_norms(x, norm=Halves()).item() == 10
    normopt.register_norm("halves", Halves())
    for norm in ("halves", Halves()):
        link = normopt.steepest(norm, eps=0.0)
        np.testing.assert_allclose(link.update(x, link.init(x))[0], [0.3, 0.4])
    made = normopt.make(
        **normopt.config("normalize_blocks", norm="halves", channel_axes=[])
    )
    np.testing.assert_allclose(made.update(x, made.init(x))[0], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("norm", "error", "told"),
    [
        ("std", ValueError, "must have a direction of steepest descent"),
        ({"a": "l1_l2"}, ValueError, "got norm='l1_l2' at 'a'"),
        ("no", ValueError, "unknown norm 'no'"),
        (3, TypeError, "`norm` must be a name of norm_names"),
        (("l2", "x"), TypeError, "must be None or a tuple of integer axes"),
    ],
)
def test_norms_without_a_dual_are_refused_when_built(norm, error, told):
    with pytest.raises(error, match=told):
        normopt.steepest(norm)
