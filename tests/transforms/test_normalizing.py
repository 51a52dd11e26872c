import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normopt

NORMS = ["l1", "l2", "l1_l2", "avg_l1", "avg_l2", "avg_l1_l2", "max", "linf"]
NORMS += ["min_max", "std"]
DTYPES = ["float32", "bfloat16", "float16"]


def apply(link, updates, params=None):
    new, _ = link.update(updates, link.init(updates), params)
    return new


# Each new length of a block has to be compiled for.
@given(
    exponents=st.sampled_from([2, 8, 1]).flatmap(
        lambda n: st.lists(st.integers(-30, 30), min_size=n, max_size=n)
    ),
    seed=st.integers(0, 99),
)
def test_l2_is_exact_within_one_block_of_mixed_sizes(exponents, seed):
    signs = np.random.default_rng(seed).choice([-1, 1], len(exponents))
    block = jnp.asarray(signs * 10.0 ** np.array(exponents), jnp.float32)
    true = np.linalg.norm(np.asarray(block, np.float64))
    assert float(normopt.block_norms(block)) == pytest.approx(true, rel=1e-6)


def test_many_tiny_numbers_beside_a_larger_one():
    # Each square of 2e-20 is flushed to zero, a sum over many is not negligible.
    block = jnp.full(1_000_000, 2e-20).at[0].set(3e-19)
    true = np.linalg.norm(np.asarray(block, np.float64))
    assert float(normopt.block_norms(block)) == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_go_with_the_size_of_the_block(norm, size):
    """They need no branch for it: a GPU would wait for its host at each."""
    block = jax.random.normal(jax.random.key(4), (20, 3))
    program = jax.jit(lambda x: normopt.block_norms(x, (-1,), norm))
    np.testing.assert_allclose(program(block * size), size * program(block), rtol=1e-6)
    assert "cond" not in str(jax.make_jaxpr(program)(block))


def test_a_norm_is_rounded_as_the_plain_sum_is():
    """What is scaled by anything but powers of two would be rounded once more."""
    block = jax.random.normal(jax.random.key(4), (50, 30))
    plain = jnp.sqrt(jnp.sum(block * block, 0))
    np.testing.assert_array_equal(normopt.block_norms(block, (-1,)), plain)


# One of each kind: with a sum of squares, with none, and with a mean.
QUICK = ("l2", "max", "std")


def test_a_block_with_an_infinite_element_is_infinitely_long():
    assert normopt.block_norms(jnp.array([1.0, -jnp.inf])) == jnp.inf


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(norm, marks=[] if norm in QUICK else pytest.mark.slow)
        for norm in NORMS
    ],
)
def test_a_zero_block_gives_a_zero_update_and_a_finite_derivative(norm):
    grads = {dtype: jnp.array([[0, 1], [0, -2]], dtype) for dtype in DTYPES}
    links = [
        normopt.normalize_blocks(norm, (-1,), eps=0.0),
        normopt.normalize_blocks(norm, (-1,)),
        normopt.clip_blocks(0.5, norm, (-1,), eps=0.0),
    ]

    @jax.jit
    def updates_and_slopes(grads):
        return [jax.vjp(lambda g, link=link: apply(link, g), grads) for link in links]

    for updates, pull_back in updates_and_slopes(grads):
        (slopes,) = pull_back(jax.tree.map(jnp.ones_like, updates))
        for dtype in DTYPES:
            assert updates[dtype].dtype == dtype
            assert not updates[dtype][:, 0].any() and updates[dtype][:, 1].all()
            # 1 / eps is more than float16 can hold.
            assert dtype == "float16" or jnp.isfinite(slopes[dtype]).all()


# The derivative itself holds 1 / norm^2, which has to be a float32.
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_the_derivative_is_tangent(size):
    grads = jnp.array([3.0, -4.0, 12.0]) * size
    link = normopt.normalize_blocks(eps=0.0)
    slope = jax.grad(lambda g: apply(link, g)[0])(grads)
    # Lengthening a gradient does not change its direction.
    assert abs(jnp.vdot(slope, grads)) < 1e-6


def test_eps_stands_beside_the_norm():
    grads = jnp.array([3e-7, 4e-7])
    updates = apply(normopt.normalize_blocks(eps=1e-7), grads)
    np.testing.assert_allclose(updates, grads / 6e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_leaves_are_summed_in_float32(dtype):
    # 4096 ones: a sum in bfloat16 stops at 256, in float16 at 2048.
    updates = apply(normopt.normalize_blocks(), jnp.ones(4096, dtype))
    assert updates.dtype == dtype
    np.testing.assert_allclose(updates.astype(jnp.float32), 1 / 64, rtol=1e-3)


def test_complex_blocks_have_real_length():
    grads = jnp.array([3.0 + 4.0j, 12.0j])
    updates = apply(normopt.normalize_blocks(eps=0.0), grads)
    assert updates.dtype == grads.dtype
    np.testing.assert_allclose(updates, grads / 13, rtol=1e-6)


def test_rotation_equivariance():
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (5, 5)))
    grads = jax.random.normal(jax.random.key(2), (5,))
    link = normopt.normalize_blocks()
    rotated = apply(link, rotation @ grads)
    np.testing.assert_allclose(rotated, rotation @ apply(link, grads), atol=1e-6)


def test_a_stack_of_layers_equals_its_layers():
    stack = jax.random.normal(jax.random.key(3), (2, 3, 4, 5))
    whole = apply(normopt.normalize_blocks(channel_axes=(0, -1)), stack)
    one = normopt.normalize_blocks(channel_axes=(-1,))
    for layer in range(2):
        np.testing.assert_allclose(whole[layer], apply(one, stack[layer]), rtol=1e-6)


def test_leaves_without_blocks_are_left_alone():
    grads = {
        "kernel": jnp.full((2, 3), 7.0),
        "scalar": jnp.array(7.0),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
        "count": jnp.array([3]),
    }
    updates = apply(normopt.normalize_blocks("max", (-1,), 0.0), grads)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    np.testing.assert_allclose(updates["kernel"], 1)
    for alone in ("scalar", "empty", "count"):
        assert (updates[alone] == grads[alone]).all()


@pytest.mark.parametrize(
    "norm", ["l2", pytest.param("std", marks=pytest.mark.slow("l2 shows it"))]
)
def test_under_vmap_each_example_is_normalized_alone(norm):
    sizes = jnp.array([0.0, 1e-30, 1.0, 1e30])[:, None, None]
    stack = sizes * jax.random.normal(jax.random.key(5), (4, 3, 5))
    link = normopt.normalize_blocks(norm, (-1,), eps=0.0)
    together = jax.vmap(lambda g: apply(link, g))(stack)
    alone = jnp.stack([apply(link, g) for g in stack])
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_leaves_that_are_no_real_numbers_pass_every_link():
    grads = {"i": np.zeros(3, jax.dtypes.float0), "w": jnp.ones(2)}
    params = {"i": jnp.arange(3), "w": jnp.ones(2)}
    for link in (
        normopt.normalize_blocks(),
        normopt.clip_blocks(0.1),
        normopt.add_decay(0.1, 0.1),
        normopt.scale_by_path(0.1),
        normopt.scale_by_param_norm(),
    ):
        updates, _ = link.update(grads, link.init(params), params)
        assert updates["i"] is grads["i"]
        assert (updates["w"] != 1).all()


def test_a_scalar_is_one_block_of_the_whole_leaf():
    updates = apply(normopt.normalize_blocks(eps=0.0), jnp.array(-7.0))
    assert updates == -1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_clipping_at_extreme_sizes(size):
    grads = jnp.array([3.0, 4.0]) * size
    link = normopt.clip_blocks(0.5 * size, eps=0.0)
    np.testing.assert_allclose(apply(link, grads), grads / 10, rtol=1e-6)


def test_clipping_per_path_leaves_the_others():
    grads = {"a": jnp.full(4, 10.0), "b": jnp.full(4, 10.0)}
    updates = apply(normopt.clip_blocks({"a": 1.0}, eps=0.0), grads)
    np.testing.assert_allclose(updates["a"], 0.5, rtol=1e-6)
    assert (updates["b"] == grads["b"]).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: normopt.normalize_blocks("l3"), ValueError, "'l3'; known are l1, l2"),
        (lambda: normopt.normalize_blocks(eps=-1e-3), ValueError, "eps=-0.001"),
        (lambda: normopt.normalize_blocks(channel_axes=-0.5), TypeError, r"\(-1,\)"),
        (lambda: normopt.normalize_blocks(channel_axes=(1, 1)), ValueError, "twice"),
        (lambda: normopt.clip_blocks(-1.0), ValueError, "above 0, got max_norm=-1"),
        (lambda: normopt.clip_blocks(0.0), ValueError, "above 0, got max_norm=0"),
        (lambda: normopt.clip_blocks({"a": -1.0}), ValueError, "max_norm=-1 at 'a'"),
        (lambda: normopt.clip_blocks("big"), TypeError, "one number"),
        (lambda: normopt.clip_blocks(float("nan")), ValueError, "max_norm=nan"),
    ],
)
def test_bad_input_is_refused_when_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_axes_that_are_one_on_a_vector_leave_it_alone():
    params = {"layers": {"kernel": jnp.ones((4, 3, 8))}, "head": {"bias": jnp.ones(2)}}
    link = normopt.normalize_blocks("max", channel_axes=(0, -1), eps=0.0)
    updates, _ = link.update(optax.tree.scale(5.0, params), link.init(params))
    assert (updates["layers"]["kernel"] == 1).all()
    assert (updates["head"]["bias"] == 5).all()


@pytest.mark.parametrize(
    ("channel_axes", "message"),
    [
        ((4,), r"needs an axis that 'conv' of shape \(2, 3\) does not have"),
        ({"conv": (2,)}, r"= \(2,\) needs an axis that 'conv'"),
        ({"conv": (0, -2)}, r"names twice an axis that 'conv' of shape \(2, 3\) has"),
        ((0, -2), r"names twice .* has once \(and no other leaf either\)"),
        ({"cnov": (-1,)}, r"no parameter path matches 'cnov'.*(?s:.*)conv"),
        (lambda p: {"conv": (5,)}, r"= \(5,\) needs an axis"),
        (lambda p: (5,), "must return a tree of values"),
    ],
)
@pytest.mark.parametrize(
    "link", [normopt.normalize_blocks, lambda **k: normopt.clip_blocks(1.0, **k)]
)
def test_bad_axes_are_refused_at_init(link, channel_axes, message):
    with pytest.raises(ValueError, match=message):
        link(channel_axes=channel_axes).init({"conv": jnp.ones((2, 3))})


def test_hyperparameters_can_be_injected():
    make = optax.inject_hyperparams(normopt.clip_blocks, static_args=("norm",))
    link = make(max_norm=lambda count: 1.0 + count, channel_axes={"w": (-1,)})
    grads = {"w": jnp.full((4, 2), 10.0)}
    state = link.init(grads)
    for limit in (1.0, 2.0):
        updates, state = jax.jit(link.update)(grads, state)
        np.testing.assert_allclose(
            normopt.block_norms(updates, (-1,))["w"], limit, rtol=1e-5
        )


@pytest.mark.parametrize("norm", ["l2", "avg_l2", "l1_l2", "avg_l1_l2", "std"])
def test_a_leaf_that_is_a_constant_has_its_norm_in_a_compiled_step(norm):
    """As the gradient has of what a loss does not use: XLA knows its elements."""
    for value in (0.0, 1e-30, 1e-20, 1e20, 1e30):
        x = jnp.full((3, 2), value)
        known = jax.jit(
            lambda v=value: normopt.block_norms(jnp.full((3, 2), v), (), norm)
        )
        expected = 0.0 if norm == "std" else float(normopt.block_norms(x, (), norm))
        np.testing.assert_allclose(known(), expected, rtol=1e-5)


def test_what_a_loss_does_not_use_stays_where_it_is():
    tx = normopt.normalized(optax.adam(1e-3))
    params = {"frozen": jnp.ones((4, 3)), "w": jnp.ones((3, 2))}

    def loss(p):
        return jnp.sum((jax.lax.stop_gradient(p["frozen"]) @ p["w"]) ** 2)

    @jax.jit
    def step(p, state):
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    after, _ = step(*step(params, tx.init(params)))
    np.testing.assert_array_equal(after["frozen"], params["frozen"])
    assert bool(jnp.isfinite(after["w"]).all())
