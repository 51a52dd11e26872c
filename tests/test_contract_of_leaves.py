"""Which leaves an optimizer or link takes, and what it makes of each of them."""

import functools

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from tests.contract_cases import (
    BLOCKS,
    FULL,
    SMALL,
    a_few_cases,
    assert_close,
    differs,
    every_case,
    follow,
    gradients,
    is_finite,
    kinds,
    run,
    second_moments,
    tree,
)
from tests.versions import needs_masks_in_nnx, nnx_list, set_mesh


@pytest.mark.parametrize(
    "dtypes",
    [["float32"], ["bfloat16"], ["float16"], ["bfloat16", "float32"]],
    ids="-".join,
)
@every_case
def test_updates_and_state_keep_structure_shapes_and_dtypes(case, dtypes):
    optimizer, params = case.make(), tree(FULL, dtypes)
    state = optimizer.init(params)
    updates, stepped = jax.eval_shape(optimizer.update, params, state, params)
    dtype = functools.partial(jnp.promote_types, jnp.float32)
    wide = jax.tree.map(lambda w: w.astype(dtype(w.dtype)) if w.size else w, params)
    assert kinds(updates) == kinds(wide if case.widens else params)
    assert kinds(stepped) == kinds(state)
    assert kinds(jax.eval_shape(optimizer.init, params)) == kinds(state)
    kept = second_moments(state)
    assert bool(kept) == bool(case.second_moments)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(kept))
    by_block = {path for nu, _ in kept for path in getattr(nu, "blocks", ())}
    assert by_block == BLOCKS.get(case.second_moments, set())


@a_few_cases
def test_complex_leaves(case):
    real = tree(SMALL)
    grads = gradients(real, 2)
    as_complex = functools.partial(jax.tree.map, lambda leaf: leaf + 0j)
    after, state = run(case.make(), as_complex(real), as_complex(grads))
    # Complex numbers that are real go where these go.
    assert_close(after, as_complex(run(case.make(), real, grads)[0]))
    turned = functools.partial(jax.tree.map, lambda leaf: leaf * (0.6 + 0.8j))
    # A phase that weights and gradients share changes no angle and no length.
    assert_close(run(case.make(), turned(real), turned(grads))[0], turned(after))
    after, state = run(case.make(), turned(real), as_complex(grads))
    assert is_finite((after, state)) and differs(after, turned(real))
    kept = jax.tree.leaves(second_moments(state))
    assert all(leaf.dtype == jnp.float32 for leaf in kept)


@every_case
def test_integer_leaves_are_masked_out(case):
    params = {**tree(SMALL), "table": jnp.arange(3)}
    grads = {**gradients(tree(SMALL), 1)[0], "table": np.zeros(3, jax.dtypes.float0)}
    mask = functools.partial(
        jax.tree.map, lambda w: jnp.issubdtype(w.dtype, jnp.inexact)
    )
    optimizer = optax.masked(case.make(), mask)
    updates, _ = jax.eval_shape(
        lambda: optimizer.update(grads, optimizer.init(params), params)
    )
    table = updates.pop("table")
    assert table.dtype == jax.dtypes.float0
    assert kinds(updates) == kinds(tree(SMALL))


@every_case
def test_blocks_of_zeros_stay_finite(case):
    # Of one column of each kernel, of all other leaves: no weight and no gradient.
    def emptied(leaf):
        return leaf.at[..., 0].set(0) if leaf.ndim > 1 else jnp.zeros_like(leaf)

    params = jax.tree.map(emptied, tree(FULL))
    grads = [jax.tree.map(emptied, g) for g in gradients(params, 2)]
    # The hardest case for a division.
    optimizer = case.make(**({"eps": 0.0} if "eps" in case.options else {}))
    after, state = run(optimizer, params, grads)
    assert is_finite((after, state))
    chex.assert_trees_all_equal(jax.tree.map(emptied, after), after)
    nothing = [optax.tree.zeros_like(params)] * 2
    assert is_finite(run(optimizer, params, nothing))


@a_few_cases
def test_derivatives_at_blocks_of_zeros_are_finite(case):
    params = tree({"body": SMALL["body"]})
    params["body"]["kernel"] = params["body"]["kernel"].at[:, 0].set(0)
    grads = optax.tree.zeros_like(params)
    optimizer = case.make(**({"eps": 0.0} if "eps" in case.options else {}))

    def length(params, grads):
        state = optimizer.init(params)
        after, _ = follow(optimizer.update, params, state, [grads, grads])
        return optax.tree.norm(after, squared=True)

    with jax.disable_jit():
        derivatives = jax.grad(length, argnums=(0, 1))(params, grads)
    assert is_finite(derivatives) and differs(derivatives[0], grads)


@a_few_cases
def test_what_a_state_holds_per_parameter_can_be_mapped(case):
    params, optimizer = tree(FULL), case.make()
    state, seen = optimizer.init(params), []

    def note(leaf, w):
        if not isinstance(leaf, optax.MaskedNode):
            assert leaf.shape == w.shape
            seen.append(leaf)
        return leaf

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    same = optax.tree.map_params(optimizer, note, state, params, is_leaf=is_masked)
    chex.assert_trees_all_equal(same, state)
    # Numbers per block have a key with their axes.
    held = jax.tree_util.tree_leaves_with_path(state)
    per_element = [x for path, x in held if "@" not in jax.tree_util.keystr(path)]
    assert len(seen) >= sum(x.ndim > 1 for x in per_element)
    # What is no parameter's goes to the other function: counts, numbers per block.
    cleared = optax.tree.map_params(
        optimizer, lambda leaf: leaf, state, transform_non_params=lambda _: None
    )
    assert len(jax.tree.leaves(cleared)) == len(seen)


@a_few_cases
def test_the_params_are_asked_for_where_they_are_needed(case):
    params, optimizer = tree(SMALL), case.make()
    state = optimizer.init(params)
    if case.needs_params:
        message = (
            f"`{case.needs_params}` needs the parameters, 'body/(bias|kernel)' first"
        )
        with pytest.raises(ValueError, match=message):
            optimizer.update(params, state)
    else:
        with jax.disable_jit():
            chex.assert_trees_all_equal(
                optimizer.update(params, state), optimizer.update(params, state, params)
            )


@pytest.mark.parametrize(
    ("updates", "path"),
    [
        ({"body": SMALL["body"]}, "head/kernel"),
        ({**SMALL, "tail": (3,)}, "tail"),
        ({**SMALL, "head": {"kernel": (1, 2, 4, 2)}}, "head/kernel"),
        ({**SMALL, "body": {"kernel": (3, 4), "bias": ()}}, "body/bias"),
    ],
    ids=["leaf missing", "leaf too many", "axes swapped", "axis missing"],
)
@every_case
def test_updates_that_are_not_like_the_params_are_refused(case, updates, path):
    params, optimizer = tree(SMALL), case.make()
    with pytest.raises(ValueError, match=f"got updates .*'{path}'"):
        optimizer.update(tree(updates), optimizer.init(params), params)


@pytest.mark.parametrize(
    ("params", "updates", "path"),
    [
        ({"body": [{"kernel": (3, 4)}]}, {"body": ({"kernel": (3, 4)},)}, "body"),
        ({"a": {"b/kernel": (3, 4)}}, {"a": {"b": {"kernel": (3, 4)}}}, "a"),
    ],
    ids=["list and tuple", "names and paths"],
)
@every_case
def test_updates_in_other_containers_are_refused(case, params, updates, path):
    params, optimizer = tree(params), case.make()
    with pytest.raises(ValueError, match=f"the containers at '{path}' are not the"):
        optimizer.update(tree(updates), optimizer.init(params), params)


@pytest.mark.parametrize(
    ("updates", "path"),
    [
        ({"w": (3, 4)}, "v"),
        ({"w": (3, 4), "v": (3,), "x": ()}, "x"),
        ({"w": (1, 4), "v": (3,)}, "w"),
        ({"w": (3, 4), "v": ()}, "v"),
    ],
    ids=["leaf missing", "leaf too many", "axis to broadcast", "axis missing"],
)
@pytest.mark.parametrize(
    "link",
    [
        normopt.scale_by_block_adam(),
        normopt.scale_by_block_adam(channel_axes=()),
        normopt.scale_by_block_rms(channel_axes=None),
        normopt.scale_by_block_rms(channel_axes={"w": (0,)}),
        normopt.scale_by_nadam(),
        normopt.trace_on_tangent(0.9),
    ],
)
def test_updates_without_params_are_compared_with_the_state(link, updates, path):
    state = link.init(tree({"w": (3, 4), "v": (3,)}))
    with pytest.raises(ValueError, match=f"the state was made for .*'{path}'"):
        link.update(tree(updates), state)


def test_a_state_made_for_other_blocks_or_masks_is_refused():
    params = tree({"w": (3, 4), "v": (3,)})
    state = normopt.scale_by_block_rms(channel_axes=()).init(params)
    with pytest.raises(ValueError, match="numbers for the blocks of 'v'"):
        normopt.scale_by_block_rms(channel_axes=None).update(params, state)
    link = normopt.scale_by_nadam()
    frozen = {**params, "v": optax.MaskedNode()}
    with pytest.raises(ValueError, match="made for other params .*'v' was not masked"):
        link.update(frozen, link.init(params))


class Net(nnx.Module):
    """A layer whose parameters carry a sharding, and one whose do not."""

    def __init__(self):
        rngs, normal = nnx.Rngs(0), nnx.initializers.normal()
        kernel_init = nnx.with_partitioning(normal, (None, "x"))
        bias_init = nnx.with_partitioning(normal, ("x",))
        self.layers = nnx_list(
            [nnx.Linear(3, 4, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)]
        )
        self.head = nnx.Conv(4, 2, (2, 1), rngs=rngs)


@pytest.fixture
def mesh():
    of_one = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with set_mesh(of_one):
        yield of_one


@functools.cache
def layers_of_every_framework():
    key = jax.random.key(0)
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=key), eqx.nn.Lambda(jnp.tanh)])
    return {
        "linen": nn.Dense(4).init(key, jnp.ones(3))["params"],
        "nnx": nnx.state(Net(), nnx.Param),
        "equinox": eqx.partition(model, eqx.is_inexact_array)[0],
    }


@a_few_cases
def test_rules_hit_the_same_leaves_in_every_container(case, mesh):
    params = layers_of_every_framework()
    grads = gradients(params, 1)

    def plain(containers):
        layer = containers["equinox"][0]
        return {
            "linen": containers["linen"],
            "nnx": nnx.to_pure_dict(containers["nnx"]),
            "equinox": [{"weight": layer.weight, "bias": layer.bias}],
        }

    after, _ = run(case.make(), params, grads)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    in_dicts, _ = run(case.make(), plain(params), [plain(g) for g in grads])
    chex.assert_trees_all_equal(plain(after), in_dicts)


@needs_masks_in_nnx
@a_few_cases
def test_an_nnx_optimizer_follows_the_run_on_plain_dictionaries(case, mesh):
    model = Net()
    start = nnx.state(model, nnx.Param)
    grads = gradients(start, 2)
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    params, *plain = (
        jax.tree.map(jnp.copy, nnx.to_pure_dict(state)) for state in (start, *grads)
    )
    with jax.disable_jit():
        for g in grads:
            optimizer.update(model, g)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    chex.assert_trees_all_equal(after, run(case.make(), params, plain)[0])
