import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from tests.versions import enable_x64

FORMULAS = {
    "l1": lambda x: np.abs(x).sum(),
    "l2": lambda x: np.sqrt((x**2).sum()),
    "l1_l2": lambda x: (np.abs(x).sum() + np.sqrt((x**2).sum())) / 2,
    "avg_l1": lambda x: np.abs(x).mean(),
    "avg_l2": lambda x: np.sqrt((x**2).mean()),
    "avg_l1_l2": lambda x: (np.abs(x).mean() + np.sqrt((x**2).mean())) / 2,
    "max": lambda x: np.abs(x).max(),
    "linf": lambda x: np.abs(x).max(),
    "min_max": lambda x: (np.abs(x).max() + np.abs(x).min()) / 2,
    "std": lambda x: x.std(),
}


@pytest.fixture
def custom_norms():
    """Removes what a test registers."""
    from normopt import norms

    before = dict(norms._CUSTOM)
    yield
    norms._CUSTOM.clear()
    norms._CUSTOM.update(before)


def test_every_built_in_norm_has_a_formula_here():
    assert normopt.norm_names()[: len(FORMULAS)] == list(FORMULAS)


@pytest.mark.parametrize("norm", FORMULAS)
def test_formula_per_block(norm):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    tree = {"x": jnp.asarray(x)}

    def measured(axes):
        return normopt.block_norms(tree, axes, norm)["x"]

    formula = FORMULAS[norm]
    np.testing.assert_allclose(measured(()), formula(x), rtol=1e-5)
    per_channel = [formula(x[..., c]) for c in range(5)]
    np.testing.assert_allclose(measured((-1,)), per_channel, rtol=1e-5)
    per_layer = [[formula(x[i, ..., c]) for c in range(5)] for i in range(2)]
    np.testing.assert_allclose(measured((0, -1)), per_layer, rtol=1e-5)


def test_float64_is_kept():
    with enable_x64(True):
        x = jnp.array([1.0, 1e-12], jnp.float64)
        assert normopt.block_norms(x, norm="l1") == 1 + 1e-12


def test_leaves_without_blocks_measure_none():
    lengths = normopt.block_norms({"a": jnp.ones((2, 3)), "b": jnp.array(1.0)}, (-1,))
    assert lengths["b"] is None
    assert lengths["a"].shape == (3,)


@pytest.mark.parametrize("axes", [(), (-1,), (0, -1), (0, 1, 2)])
def test_a_custom_norm_sees_one_block_at_a_time(custom_norms, axes):
    seen = []

    def mean_absolute(block):
        seen.append(block.shape)
        return jnp.abs(block).mean()

    normopt.register_norm("mine", mean_absolute)
    assert "mine" in normopt.norm_names()
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    ours = normopt.block_norms(x, axes, "mine")
    np.testing.assert_allclose(ours, normopt.block_norms(x, axes, "avg_l1"), rtol=1e-6)
    own = {axis % 3 for axis in axes}
    assert seen[0] == tuple(n for axis, n in enumerate(x.shape) if axis not in own)


def test_a_custom_norm_has_no_derivative_at_zero(custom_norms):
    normopt.register_norm("root", lambda block: jnp.sqrt(jnp.sum(block * block)))
    link = normopt.normalize_blocks("root", (-1,), eps=0.0)
    grads = jnp.array([[0.0, 3.0], [0.0, 4.0]])
    updates, _ = link.update(grads, link.init(grads))
    np.testing.assert_allclose(updates, [[0, 0.6], [0, 0.8]], rtol=1e-6)
    slope = jax.grad(lambda g: link.update(g, link.init(g))[0].sum())(grads)
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("fn", [jnp.abs, lambda block: 1, lambda block: 1j])
def test_a_custom_norm_is_one_real_number(custom_norms, fn):
    normopt.register_norm("mine", fn)
    for axes in ((), (-1,)):
        with pytest.raises(TypeError, match="'mine' must map a block to one real"):
            normopt.block_norms(jnp.ones((2, 3)), axes, "mine")


@pytest.mark.parametrize(
    ("value", "size"), [(3.0, 16), (0.1, 100_001), (-1e-12, 7), (1 / 3 + 2j, 3)]
)
def test_a_constant_block_has_no_deviation(value, size):
    block = jnp.full(size, value)
    assert normopt.block_norms(block, norm="std") == 0
    for eps in (0.0, 1e-7):
        link = normopt.normalize_blocks("std", eps=eps)
        updates, _ = link.update(block, link.init(block))
        assert not updates.any()


def test_a_constant_block_has_a_finite_slope():
    link = normopt.normalize_blocks("std", eps=0.0)
    slope = jax.grad(lambda g: link.update(g, ())[0].sum())(jnp.full(3, 0.1))
    assert jnp.isfinite(slope).all()


def test_a_deviation_below_the_rounding_of_the_mean_is_none():
    # The columns: equal up to one bit in four, four bits apart, and apart throughout.
    ulp = np.spacing(np.float32(0.3))
    offsets = np.array([[0, 0, 0, 1], [0, 4, 0, 4], [0, 0.1, 0.2, 0.3]]).T
    offsets[:, :2] *= ulp
    block = jnp.asarray(np.float32(0.3) + offsets.astype(np.float32))
    lengths = normopt.block_norms(block, (-1,), "std")
    expected = [0, np.std(block[:, 1], dtype=float), 0.0125**0.5]
    np.testing.assert_allclose(lengths, expected, rtol=2e-6)
    link = normopt.normalize_blocks("std", (-1,), eps=0.0)
    updates, _ = link.update(block, ())
    np.testing.assert_array_equal(updates[:, 0], 0)
    np.testing.assert_allclose(updates[:, 2], block[:, 2] / 0.0125**0.5, rtol=2e-6)


def test_the_deviation_of_what_is_no_number_is_none():
    assert jnp.isnan(normopt.block_norms(jnp.array([1.0, jnp.nan]), norm="std"))


@pytest.mark.parametrize(
    ("shape", "axes"), [((), ()), ((1,), ()), ((3,), (-1,)), ((3, 1), (0,))]
)
def test_std_leaves_a_block_of_one_element_alone(shape, axes):
    grads = {"one": jnp.full(shape, 0.7), "more": jnp.array([[1.0, 3.0, 5.0]] * 2)}
    for link in (
        normopt.normalize_blocks("std", {"one": axes, "more": ()}),
        normopt.clip_blocks(1e-9, "std", {"one": axes, "more": ()}),
    ):
        updates, _ = link.update(grads, link.init(grads))
        np.testing.assert_array_equal(updates["one"], grads["one"])
        assert normopt.block_norms(updates["more"], norm="std") < 1.001
    tx = normopt.normalized(optax.sgd(0.1), "std", {"one": axes, "more": ()})
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["one"], -0.07 * jnp.ones(shape), rtol=1e-6)


def test_leaves_must_be_arrays():
    with pytest.raises(TypeError, match="'a/0' must be an array, got 1.0"):
        normopt.block_norms({"a": [1.0]})


def test_registering(custom_norms):
    with pytest.raises(ValueError, match="'l2' is a built-in norm"):
        normopt.register_norm("l2", jnp.max)
    with pytest.raises(TypeError, match="a name and a function"):
        normopt.register_norm("mine", 3)
    with pytest.raises(ValueError, match=r"'mine'.*normopt.register_norm"):
        normopt.block_norms(jnp.ones(2), norm="mine")


def test_the_optimizer_of_a_custom_norm(custom_norms):
    normopt.register_norm("twice", lambda block: 2 * jnp.abs(block).max())
    link = normopt.normalize_blocks("twice", eps=0.0)
    updates, _ = link.update(jnp.array([1.0, -4.0]), link.init(jnp.ones(2)))
    np.testing.assert_allclose(updates, [0.125, -0.5])


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.5, np.pi / 2, 3.0])
def test_angles_small_and_large(angle):
    old = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    new = 5 * turn @ old
    np.testing.assert_allclose(
        normopt.block_angles(old, new, (-1,)),
        angle,
        rtol=1e-3 if angle < 1e-5 else 1e-5,
    )


def test_angles_ignore_lengths_and_zero_blocks():
    old = jnp.array([[1e-30, 0.0], [0.0, 1.0]])
    new = jnp.array([[0.0, 1.0], [1e30, 1.0]])
    angles = normopt.block_angles(old, new, (-1,))
    np.testing.assert_allclose(angles, [np.pi / 2, np.pi / 4], rtol=1e-6)
    assert normopt.block_angles(jnp.zeros(2), jnp.ones(2)) == 0


def test_angles_need_equal_shapes():
    with pytest.raises(ValueError, match=r"got old .* new 'w' of shape \(3,\)"):
        normopt.block_angles({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
