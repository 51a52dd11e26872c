"""Parameters in boxes: the same paths and steps boxed, unboxed, or half of each."""

import dataclasses
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

import normopt

PLAIN = {
    "body": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.full(3, 2.0)},
    "head": {"kernel": jnp.full((3, 2), -2.0)},
}
PATHS = ["body/bias", "body/kernel", "head/kernel"]


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A box of one's own, whose field has a name of its own."""

    array: Any
    names: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self):
        return self.array

    def replace_boxed(self, val):
        return self.replace(array=val)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


BOXES = {
    "partitioned": lambda w: nn.Partitioned(w, (None,) * np.ndim(w)),
    "logically": lambda w: nn.LogicallyPartitioned(w, ("axis",) * np.ndim(w)),
    "named": lambda w: Named(w, ("axis",)),
    "param": nnx.Param,
    "both": lambda w: nnx.Param(nn.Partitioned(w, (None,) * np.ndim(w))),
}
WHICH = {
    "all": lambda path: True,
    "kernels": lambda path: path.endswith("kernel"),
    "body": lambda path: path.startswith("body"),
}


def boxed(tree, box, which=WHICH["all"]):
    return jax.tree_util.tree_map_with_path(
        lambda keys, w: box(w) if which(normopt.path_of(keys)) else w, tree
    )


def opened(tree):
    return jax.tree.structure(PLAIN).unflatten(jax.tree.leaves(tree))


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("box", BOXES)
def test_the_paths_are_those_of_the_unboxed_tree(box, which):
    tree = boxed(PLAIN, BOXES[box], WHICH[which])
    assert normopt.leaf_paths(tree) == PATHS
    assert normopt.describe(tree) == normopt.describe(PLAIN)
    if box != "named":  # its field could be that of any object
        keys = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
        assert [normopt.path_of(one) for one in keys] == PATHS


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("box", BOXES)
def test_a_rule_decays_boxed_and_unboxed_leaves_alike(box, which):
    params = boxed(PLAIN, BOXES[box], WHICH[which])
    grads = optax.tree.zeros_like(params)
    link = normopt.decay_weights({"kernel$": 0.1})
    updates, _ = link.update(grads, link.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    updates = opened(updates)
    np.testing.assert_allclose(updates["body"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.2, rtol=1e-6)
    assert not updates["body"]["bias"].any()


@pytest.mark.parametrize("of_updates", ["none", "kernels", "all"])
@pytest.mark.parametrize("of_params", ["none", "body", "all"])
def test_updates_and_params_may_be_boxed_differently(of_updates, of_params):
    nothing = {"none": lambda path: False} | WHICH
    params = boxed(PLAIN, BOXES["logically"], nothing[of_params])
    grads = boxed(PLAIN, BOXES["partitioned"], nothing[of_updates])
    link = normopt.add_decay({"kernel$": 0.5})
    updates, _ = link.update(grads, link.init(params), params)
    expected, _ = link.update(PLAIN, link.init(PLAIN), PLAIN)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    jax.tree.map(np.testing.assert_array_equal, opened(updates), expected)
    angles = normopt.block_angles(grads, params, {"kernel$": (-1,)})
    assert normopt.leaf_paths(angles) == ["body/kernel", "head/kernel"]


def test_other_weights_in_boxes_are_still_refused():
    link = normopt.add_decay(0.5)
    params = boxed(PLAIN, BOXES["partitioned"])
    missing = {"body": params["body"]}
    with pytest.raises(ValueError, match="only one of the two has 'head/kernel'"):
        link.update(PLAIN, link.init(PLAIN), missing)
    listed = {**params, "head": [params["head"]["kernel"]]}
    with pytest.raises(ValueError, match="'head/0'"):
        link.update(PLAIN, link.init(PLAIN), listed)


@pytest.mark.parametrize("inside", [True, False])
def test_a_masked_position_in_a_box_or_instead_of_it(inside):
    params = boxed(PLAIN, BOXES["partitioned"])
    is_kernel = normopt.by_path({"kernel$": True}, default=False)
    # Optax takes out a leaf in its box, or with it where the mask is that of PLAIN.
    mask = is_kernel(params) if inside else is_kernel(PLAIN)
    tx = optax.masked(normopt.add_decay({"kernel$": 0.5, "bias$": 9.0}), mask)
    grads = optax.tree.zeros_like(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    updates = opened(updates)
    np.testing.assert_array_equal(updates["body"]["kernel"], 0.25)
    assert not updates["body"]["bias"].any()
    parts = optax.partition(
        {"k": normopt.add_decay({"kernel$": 0.5, "bias$": 9.0}), "o": optax.identity()},
        normopt.by_path({"kernel$": "k"}, default="o"),
    )
    updates, _ = parts.update(grads, parts.init(params), params)
    np.testing.assert_array_equal(opened(updates)["head"]["kernel"], -1.0)


def test_a_callable_may_name_the_leaves_without_their_boxes():
    params = boxed(PLAIN, BOXES["partitioned"], WHICH["kernels"])
    link = normopt.scale_by_path(
        lambda tree: {"body": {"kernel": 3.0, "bias": 1.0}, "head": {"kernel": 5.0}}
    )
    updates, _ = link.update(params, link.init(params))
    assert (opened(updates)["head"]["kernel"] == -10).all()
    lengths = normopt.block_norms(
        params,
        lambda tree: {"body": {"kernel": (), "bias": None}, "head": {"kernel": 1}},
    )
    lengths = {
        path: np.shape(n)
        for path, n in zip(
            normopt.leaf_paths(lengths), jax.tree.leaves(lengths), strict=True
        )
    }
    assert lengths == {"body/kernel": (), "head/kernel": (2,)}


def test_a_linen_model_with_partitioning():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            start = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            return nn.Dense(3, kernel_init=start, name="body")(x)

    params = Model().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert isinstance(params["body"]["kernel"], nn.Partitioned)
    assert normopt.leaf_paths(params) == ["body/bias", "body/kernel"]
    tx = normopt.adamw(0.0, weight_decay={"kernel$": 0.01})
    updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    np.testing.assert_allclose(updates["body"]["kernel"].value, -0.01, rtol=1e-6)


def test_a_param_that_holds_a_dictionary_keeps_its_keys():
    class Model(nnx.Module):
        def __init__(self):
            self.gate = nnx.Param({"a": jnp.ones(2), "value": jnp.ones(3)})

    model = Model()
    for tree in (nnx.state(model), nnx.to_pure_dict(nnx.state(model)), model):
        assert normopt.leaf_paths(tree) == ["gate/a", "gate/value"]
    keys = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    assert [normopt.path_of(one) for one, _ in keys] == ["gate/a", "gate/value"]
    link = normopt.scale_by_path({"gate/value$": 7.0})
    optimizer = nnx.Optimizer(model, link, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert (model.gate["value"] == 8).all() and (model.gate["a"] == 2).all()


def test_what_is_no_box_keeps_its_names():
    class Attention(eqx.Module):
        query: eqx.nn.Linear
        value: eqx.nn.Linear

    embedding = eqx.nn.Embedding(3, 2, key=jax.random.key(0))
    assert normopt.leaf_paths({"emb": embedding}) == ["emb/weight"]
    layers = (eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0)),) * 2
    model = {"attention": Attention(*layers)}
    paths = ["attention/query/weight", "attention/value/weight"]
    assert normopt.leaf_paths(model) == paths
    keys = jax.tree_util.tree_leaves_with_path(model)
    assert [normopt.path_of(one) for one, _ in keys] == paths


def test_a_box_of_several_things_drops_no_other_name_than_value():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Quantized:
        value: Any
        scale: Any

        def unbox(self):
            return self.value * self.scale

    tree = {"kernel": Quantized(jnp.ones(2), jnp.ones(1))}
    assert normopt.leaf_paths(tree) == ["kernel", "kernel/scale"]


def test_a_leaf_with_a_method_unbox_is_a_leaf():
    class Parcel:
        def unbox(self):
            raise AssertionError

    assert normopt.leaf_paths({"a": Parcel()}) == ["a"]
