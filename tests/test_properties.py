"""Laws that hold for any tree: any shapes, any channel axes, gradients of any size.

All runs are eager: to compile each step for each random tree would take many times as
long, and the contract's tests compile every optimizer.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import normopt
from tests.contract_cases import CASES, LINKS, every_case, of_each
from tests.strategies import DTYPES, Leaf, Plan, leaves, plans

SEEDS = st.integers(0, 2**16)
# Where a test has many norms, or runs for each of many methods.
some_examples = settings(max_examples=max(1, settings().max_examples // 6))


# Every kind of blocks there is. Random draws begin with what is simple, and are few.
OF_CHANNELS = of_each([case for case in CASES + LINKS if not case.axes_of_its_own])
KINDS = Plan(
    {
        "columns": Leaf((4, 3), (1,)),
        "groups": Leaf((2, 1, 2, 3), (0, 3)),
        "whole": Leaf((3,), ()),
    },
    {"columns": (1,), "groups": (0, 3), "whole": ()},
)


@pytest.fixture(autouse=True, scope="module")
def _eager():
    with jax.disable_jit():
        yield


def l1(x):
    return np.abs(x).sum()


def l2(x):
    return np.sqrt((np.abs(x) ** 2).sum())


def largest(x):
    return np.abs(x).max()


# Of one block, in float64.
NORMS = {
    "l1": l1,
    "l2": l2,
    "l1_l2": lambda x: (l1(x) + l2(x)) / 2,
    "avg_l1": lambda x: l1(x) / x.size,
    "avg_l2": lambda x: l2(x) / x.size**0.5,
    "avg_l1_l2": lambda x: (l1(x) / x.size + l2(x) / x.size**0.5) / 2,
    "max": largest,
    "linf": largest,
    "min_max": lambda x: (largest(x) + np.abs(x).min()) / 2,
    "std": np.std,
}


def per_block(measure, x, leaf):
    """The measure of each block, so that it multiplies the leaf by broadcasting."""
    is_complex = jnp.iscomplexobj(x)
    x = np.asarray(x, np.complex128 if is_complex else np.float64)
    kept = np.moveaxis(x, leaf.axes, range(len(leaf.axes)))
    blocks = kept.reshape(-1, leaf.block_size)
    measured = np.array([measure(block) for block in blocks])
    shape = kept.shape[: len(leaf.axes)]
    return np.expand_dims(measured.reshape(shape), leaf.within)


def rows(plan, *trees):
    """What belongs to each leaf that has blocks."""
    treedef = jax.tree.structure(plan.tree)
    flat = [treedef.flatten_up_to(tree) for tree in (plan.tree, *trees)]
    return [row for row in zip(*flat, strict=True) if row[0].has_blocks]


def assert_others_stay(plan, old, new):
    for leaf, a, b in zip(
        plan.leaves, jax.tree.leaves(old), jax.tree.leaves(new), strict=True
    ):
        assert leaf.has_blocks or (a == b).all()


def apply(link, updates, params=None):
    return link.update(updates, link.init(updates), params)[0]


def follow(optimizer, params, grads):
    """Updates, params and state of each step."""
    state, steps = optimizer.init(params), []
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        steps.append((updates, params, state))
    return steps


def rounding(dtype):
    """A few roundings of a number, or those of a sum of 24 numbers in float32."""
    return max(2 * float(jnp.finfo(dtype).eps), 4e-6)


@st.composite
def sized(draw, ends=30):
    """A power of ten, and how far from it numbers stay in [1e-ends, 1e+ends]."""
    size = draw(st.sampled_from([0, ends, -ends]) | st.integers(-ends, ends))
    return size, draw(st.sampled_from([0, 1, 30])) * (ends - abs(size)) / 30


@st.composite
def scaled(draw, ends):
    """Powers of ten and of two: of numbers, and of a factor that keeps their range."""
    factor = draw(st.sampled_from([ends, -ends]) | st.integers(-ends, ends))
    size = draw(st.integers(max(-ends, -ends - factor), min(ends, ends - factor)))
    return size, 2.0 ** round(factor * np.log2(10))


def test_every_norm_has_an_oracle():
    assert normopt.norm_names()[: len(NORMS)] == list(NORMS)


@some_examples
@example(KINDS, 0, (30, 0), "float32")
@example(KINDS, 0, (-15, 15), "complex64")
@given(plans(), SEEDS, sized(), st.sampled_from(["float32", "complex64"]))
def test_norms_are_those_of_float64(plan, seed, sizes, dtype):
    x = plan.numbers(seed, *sizes, dtype, zeros=0.1)
    for norm, measure in NORMS.items():
        norms = normopt.block_norms(x, plan.channel_axes, norm)
        for leaf, own, found in rows(plan, x, norms):
            assert found.dtype == jnp.float32
            expected = per_block(measure, own, leaf)
            assert found.shape == tuple(own.shape[axis] for axis in leaf.axes)
            # The deviation is one of differences: its error is that of the numbers.
            allowed = 4e-6 * np.maximum(expected, per_block(largest, own, leaf))
            error = np.abs(np.asarray(found).reshape(expected.shape) - expected)
            assert (error <= allowed).all()


@pytest.mark.slow("norms of float64 show it")
@some_examples
@example(KINDS, 0, (-30, 2.0**99), "float32")
@given(plans(), SEEDS, scaled(30), st.sampled_from(["float32", "complex64"]))
def test_norms_are_homogeneous(plan, seed, scale, dtype):
    size, factor = scale
    x = plan.numbers(seed, size, dtype=dtype, zeros=0.1)
    for norm in NORMS:
        norms = normopt.block_norms(x, plan.channel_axes, norm)
        of_scaled = normopt.block_norms(
            optax.tree.scale(factor, x), plan.channel_axes, norm
        )
        for leaf, own, one, other in rows(plan, x, norms, of_scaled):
            error = np.abs(np.asarray(other, float) / factor - np.asarray(one, float))
            longest = per_block(largest, own, leaf).reshape(error.shape)
            assert (error <= 4e-6 * longest * leaf.block_size).all()


@pytest.mark.slow("norms of float64 show it")
@some_examples
@example(KINDS, 0, (-30, 2.0**99), "float32")
@example(KINDS, 0, (0, 2.0), "bfloat16")
@given(plans(), SEEDS, scaled(30), st.sampled_from(DTYPES))
def test_normalized_blocks_are_of_unit_length_whatever_it_was(plan, seed, scale, dtype):
    size, factor = scale if dtype != "float16" else (0, 8.0)
    x = plan.numbers(seed, size, dtype=dtype, zeros=0.1)
    for norm, measure in NORMS.items():
        link = normopt.normalize_blocks(norm, plan.channel_axes, eps=0.0)
        updates = apply(link, x)
        of_scaled = apply(link, optax.tree.scale(factor, x))
        chex.assert_trees_all_equal_shapes_and_dtypes(x, updates)
        assert_others_stay(plan, x, updates)
        for leaf, own, u, other in rows(plan, x, updates, of_scaled):
            length, longest = (per_block(m, own, leaf) for m in (measure, largest))
            # Of equal numbers the deviation is what rounding makes of zero.
            has_length = length > 1e-3 * longest
            error = rounding(dtype) * (1 + longest / np.where(has_length, length, 1))
            after = per_block(measure, u, leaf)
            assert (np.abs(after - 1) <= error)[has_length].all()
            assert not after[longest == 0].any()
            apart = np.abs(np.asarray(u, complex) - np.asarray(other, complex))
            bound = error * per_block(largest, u, leaf)
            assert (apart <= np.where(has_length, bound, np.inf)).all()


@some_examples
@example(KINDS, 0, (0, 2), "float32", 0.0)
@given(plans(), SEEDS, sized(), st.sampled_from(DTYPES), st.floats(-1, 1))
def test_clipping_shortens_what_is_too_long(plan, seed, sizes, dtype, power):
    size, spread = sizes if dtype != "float16" else (0, 2)
    x = plan.numbers(seed, size, spread, dtype, zeros=0.1)
    limit = float(10.0 ** (size + power))
    for norm, measure in NORMS.items():
        link = normopt.clip_blocks(limit, norm, plan.channel_axes, eps=0.0)
        updates = apply(link, x)
        chex.assert_trees_all_equal_shapes_and_dtypes(x, updates)
        assert_others_stay(plan, x, updates)
        for leaf, own, u in rows(plan, x, updates):
            length, longest = (per_block(m, own, leaf) for m in (measure, largest))
            error = rounding(dtype) * longest
            factor = np.where(length > limit, limit / np.maximum(length, limit), 1)
            expected = np.asarray(own, complex) * factor
            assert (np.abs(np.asarray(u, complex) - expected) <= error).all()
            is_short = np.broadcast_to(length < limit - error, own.shape)
            assert (np.asarray(u) == np.asarray(own))[is_short].all()


@some_examples
@example(KINDS, 0, (30, 0), 3)
@given(plans(), SEEDS, sized(), st.sampled_from([0, 3]))
def test_updates_are_scaled_by_the_length_of_the_weights(plan, seed, sizes, share):
    updates = plan.numbers(seed)
    params = plan.numbers(seed + 1, *sizes, zeros=0.1)
    # Some blocks are longer than this, some shorter.
    min_norm = share * 10.0 ** sizes[0]
    link = normopt.scale_by_param_norm(plan.channel_axes, min_norm=min_norm)
    new = apply(link, updates, params)
    assert_others_stay(plan, updates, new)
    for leaf, u, w, found in rows(plan, updates, params, new):
        expected = np.asarray(u, float) * np.maximum(per_block(l2, w, leaf), min_norm)
        np.testing.assert_allclose(found, expected, rtol=4e-6)


@OF_CHANNELS
@some_examples
@example(KINDS, 0, 49, "float32")
@given(
    plans(),
    SEEDS,
    st.sampled_from([49, 7, 22]),
    st.sampled_from(["float32", "bfloat16", "complex64"]),
)
def test_gradients_of_any_unit_take_the_same_steps(case, plan, seed, power, dtype):
    """Exactly, from 1e-15 to 1e15: powers of two up to 2^49 never round."""
    params = plan.numbers(seed, dtype=dtype)
    grads = [plan.numbers(seed + t, dtype=dtype, zeros=0.1) for t in (1, 2)]

    def updates(factor):
        of_scaled = [optax.tree.scale(factor, g) for g in grads]
        steps = follow(case.scaled(plan.channel_axes, factor), params, of_scaled)
        taken = [updates for updates, *_ in steps]
        if case.blocks_alone:
            return [[u for _, u in rows(plan, tree)] for tree in taken]
        return taken

    expected = updates(1.0)
    hint = "where steps grow with the gradients, its `Case` has `linear=True`"
    for factor in (2.0**power, 2.0**-power):
        chex.assert_trees_all_equal(updates(factor), expected, custom_message=hint)


@of_each([case for case in CASES if case.length_power])
@some_examples
@example(KINDS, 0, 12)
@given(plans(), SEEDS, st.integers(0, 12))
def test_lengths_of_scale_invariant_weights_do_not_matter(case, plan, seed, spread):
    """Blocks a times as long have gradients of 1/a; with a rate to match w/|w| is kept.

    Each block has its own a, of up to 2^spread, and so its own rate.
    """
    random = np.random.default_rng(seed)

    def lengths_of(leaf):
        kept = leaf.axes if leaf.has_proper_blocks else range(len(leaf.shape))
        shape = [n if axis in kept else 1 for axis, n in enumerate(leaf.shape)]
        return jnp.asarray(2.0 ** random.integers(-spread, spread + 1, shape))

    lengths = jax.tree.map(lengths_of, plan.tree)
    rates = jax.tree.map(lambda a: a**case.length_power, lengths)
    own_rates = optax.stateless(lambda u, params: jax.tree.map(jnp.multiply, u, rates))
    optimizer = case.scaled(plan.channel_axes, weight_decay=0.0)
    params = plan.numbers(seed)
    grads = [plan.numbers(seed + t, zeros=0.1) for t in (1, 2)]
    longer = jax.tree.map(jnp.multiply, params, lengths)
    smaller = [jax.tree.map(jnp.divide, g, lengths) for g in grads]
    expected = follow(optimizer, params, grads)[-1][1]
    found = follow(optax.chain(optimizer, own_rates), longer, smaller)[-1][1]
    # Powers of two do not round, here as above.
    chex.assert_trees_all_equal(jax.tree.map(jnp.divide, found, lengths), expected)


@OF_CHANNELS
@some_examples
@example(KINDS, 0)
@given(plans(), SEEDS)
def test_channels_can_change_places(case, plan, seed):
    random = np.random.default_rng(seed)
    orders = {
        path: {
            # Without blocks any element can change its place, along any axis.
            axis: random.permutation(leaf.shape[axis])
            for axis in (range(len(leaf.shape)) if leaf.axes is None else leaf.axes)
        }
        for path, leaf in plan.by_path.items()
    }

    def permuted(key_path, x):
        """A leaf of params, updates or a state, whose path ends in that of a leaf."""
        # The key of numbers per block names their axes behind the path.
        whole = normopt.path_of(key_path).partition("@")[0].split("/")
        ends = ("/".join(whole[i:]) for i in range(len(whole) + 1))
        path = next((end for end in ends if end in orders), None)
        if path is None or x.ndim == 0:
            return x
        is_per_block = "@" in normopt.path_of(key_path)
        for position, (axis, order) in enumerate(orders[path].items()):
            x = jnp.take(x, order, position if is_per_block else axis)
        return x

    def moved(tree):
        return jax.tree_util.tree_map_with_path(permuted, tree)

    params, grads = plan.numbers(seed), [plan.numbers(seed + t) for t in (1, 2)]
    optimizer = case.scaled(plan.channel_axes)
    steps = follow(optimizer, params, grads)
    others = follow(optimizer, moved(params), [moved(g) for g in grads])
    for step, other in zip(steps, others, strict=True):
        for tree, its in zip(step, other, strict=True):
            # The sum over a block may be taken in another order.
            chex.assert_trees_all_close(its, moved(tree), rtol=1e-5, atol=1e-6)


@of_each([case for case in CASES + LINKS if not case.by_leaf])
@some_examples
@given(leaves(), SEEDS, st.data())
def test_a_stack_of_layers_is_its_layers(case, leaf, seed, data):
    new_axis = data.draw(st.integers(0, len(leaf.shape)), label="new_axis")
    shape = (*leaf.shape[:new_axis], 2, *leaf.shape[new_axis:])
    axes = leaf.axes
    if axes is not None:
        axes = (*(axis + (axis >= new_axis) for axis in axes), new_axis)
    stack = Plan({"stack": Leaf(shape, axes)}, {"^stack$": axes})
    paths = ["layer/0", "layer/1"]

    def split(tree):
        return {
            path: jnp.take(tree["stack"], layer, new_axis)
            for layer, path in enumerate(paths)
        }

    params, grads = stack.numbers(seed), [stack.numbers(seed + t) for t in (1, 2)]
    steps = follow(case.scaled(stack.channel_axes), params, grads)
    of_layers = case.scaled({"^layer": leaf.axes})
    others = follow(of_layers, split(params), [split(g) for g in grads])
    for (updates, after, _), (other, other_after, _) in zip(steps, others, strict=True):
        # The sum over a block may be taken in another order.
        close = {"rtol": 1e-5, "atol": 1e-6}
        chex.assert_trees_all_close(other, split(updates), **close)
        chex.assert_trees_all_close(other_after, split(after), **close)


HUGE, TINY = (30, 0), (-30, 0)


@every_case
@some_examples
@example(KINDS, 0, (HUGE, HUGE), 1, 0.1, "complex64")
@example(KINDS, 0, (TINY, HUGE), 1, 0.1, "float32")
@example(KINDS, 0, (HUGE, TINY), 1, 1.0, "bfloat16")
@given(
    plans(),
    SEEDS,
    st.tuples(sized(), sized()),
    st.sampled_from([15, 1]),
    st.sampled_from([0.1, 1.0]),
    st.sampled_from(DTYPES),
)
def test_everything_stays_finite(case, plan, seed, sizes, spread, zeros, dtype):
    """For gradients from 1e-30 to 1e30, which change their size from step to step.

    A rate times such gradients is far from the largest float, also after some steps of
    momentum: plain SGD, too, stays in the range of all dtypes but float16.
    """
    if dtype == "float16":
        sizes, spread = ((0, 2), (-2, 1)), 1
    if case.multiplies:
        sizes = [(size // 6, around / 6) for size, around in sizes]
    params = plan.numbers(seed, 0, spread, dtype, zeros)
    grads = [plan.numbers(seed + t, *sizes[t % 2], dtype, zeros=0.2) for t in (1, 2, 3)]
    steps = follow(case.scaled(plan.channel_axes), params, grads)
    for leaf in jax.tree.leaves(steps):
        assert jnp.isfinite(leaf).all()
