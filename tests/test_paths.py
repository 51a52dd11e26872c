"""The same rules hit the same leaves, whatever holds the parameters."""

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from normopt.paths import structural_difference


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="first")(x)
        value = self.param("value", nn.initializers.ones, (3,))
        return nn.Dense(2, name="last")(x * value)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.value = nnx.Param(jnp.ones(3))
        self.last = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.first(x) * self.value)


class Kernel(eqx.Module):
    kernel: jax.Array
    bias: jax.Array


class EqxModel(eqx.Module):
    first: Kernel
    value: jax.Array
    last: Kernel


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DataModel:
    first: dict[str, Any]
    value: jax.Array
    last: dict[str, Any]


class TupleModel(NamedTuple):
    first: dict[str, Any]
    value: jax.Array
    last: dict[str, Any]


def layer(shape):
    return {"kernel": jnp.ones(shape), "bias": jnp.zeros(shape[-1])}


def linen():
    return LinenModel().init(jax.random.key(0), jnp.ones((1, 2)))["params"]


def nnx_state():
    return nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)


def nnx_pure():
    return nnx.to_pure_dict(nnx_state())


def equinox():
    return EqxModel(Kernel(**layer((2, 3))), jnp.ones(3), Kernel(**layer((3, 2))))


def dataclass():
    return DataModel(layer((2, 3)), jnp.ones(3), layer((3, 2)))


def named_tuple():
    return TupleModel(layer((2, 3)), jnp.ones(3), layer((3, 2)))


PATHS = ["first/bias", "first/kernel", "last/bias", "last/kernel", "value"]
CONTAINERS = [linen, nnx_state, nnx_pure, equinox, dataclass, named_tuple]


@pytest.mark.parametrize("container", CONTAINERS)
def test_paths_are_the_same_in_every_container(container):
    assert sorted(normopt.leaf_paths(container())) == PATHS


@pytest.mark.parametrize("container", CONTAINERS)
def test_rules_hit_the_same_leaves_in_every_container(container):
    params = container()
    link = normopt.scale_by_path({"kernel$": 2.0, "^value$": 3.0})
    updates, _ = link.update(params, link.init(params))
    ratios = {
        path: float(np.max(u) / max(np.max(p), 1e-9))
        for path, u, p in zip(
            normopt.leaf_paths(params),
            jax.tree.leaves(updates),
            jax.tree.leaves(params),
            strict=True,
        )
        if not path.endswith("bias")
    }
    expected = {"first/kernel": 2, "last/kernel": 2, "value": 3}
    assert ratios == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("container", CONTAINERS)
def test_rules_are_masks_and_labels_in_every_container(container):
    params = container()
    decay = optax.masked(
        normopt.add_decay(1.0), normopt.by_path({"kernel$": True}, default=False)
    )
    split = optax.partition(
        {"kernels": optax.scale(2.0), "others": optax.set_to_zero()},
        normopt.by_path({"kernel$": "kernels"}, default="others"),
    )
    grads = optax.tree.ones_like(params)
    decayed, _ = decay.update(grads, decay.init(params), params)
    parted, _ = split.update(grads, split.init(params), params)
    for path, w, d, p in zip(
        normopt.leaf_paths(params),
        *(jax.tree.leaves(tree) for tree in (params, decayed, parted)),
        strict=True,
    ):
        is_kernel = path.endswith("kernel")
        np.testing.assert_allclose(d, 1 + w if is_kernel else jnp.ones_like(w))
        assert (p == (2 if is_kernel else 0)).all()


def test_sequences_and_single_leaves():
    assert normopt.leaf_paths([jnp.ones(1), (jnp.ones(1), {"w": 1.0})]) == [
        "0",
        "1/0",
        "1/1/w",
    ]
    assert normopt.leaf_paths(jnp.ones(1)) == [""]
    assert normopt.leaf_paths({}) == []
    assert normopt.leaf_paths({"a": None, "b": optax.MaskedNode(), "c": 1.0}) == ["c"]


def test_an_nnx_optimizer_means_the_same_paths_in_init_and_update():
    seen = []

    def spy(tree):
        seen.append(normopt.leaf_paths(tree))
        return normopt.by_path({"kernel$": (-1,)})(tree)

    model = NnxModel(nnx.Rngs(0))
    normalize = normopt.normalize_blocks(channel_axes=spy, eps=0.0)
    tx = optax.chain(normalize, optax.scale(-1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = nnx.state(model, nnx.Param)
    before = jax.tree.map(jnp.copy, before)
    grads = nnx.grad(lambda m: (m(jnp.ones((4, 2))) ** 2).mean())(model)
    optimizer.update(model, grads)
    after = nnx.state(model, nnx.Param)
    assert len(seen) == 2 and sorted(seen[0]) == sorted(seen[1]) == PATHS
    step = jax.tree.map(lambda a, b: a - b, before, after)
    lengths = normopt.block_norms(step, {"kernel$": (-1,)})
    np.testing.assert_allclose(lengths["last"]["kernel"][...], 1, rtol=1e-5)


def test_path_of_key_paths():
    tree = {"a": {"value": jnp.ones(1)}, "list": [jnp.ones(1)]}
    paths = [normopt.path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["a/value", "list/0"]
    keys = [k for k, _ in jax.tree_util.tree_leaves_with_path(nnx_state())]
    assert sorted(normopt.path_of(k) for k in keys) == PATHS
    keys = [k for k, _ in jax.tree_util.tree_leaves_with_path(equinox())]
    assert sorted(normopt.path_of(k) for k in keys) == PATHS


def test_an_attribute_named_value_inside_a_dictionary_keeps_its_name():
    model = {"attention": equinox()}
    assert "attention/value" in normopt.leaf_paths(model)
    assert normopt.by_path({"attention/value$": 1}, 0)(model)["attention"].value == 1


def test_a_pattern_is_searched_not_matched():
    params = {"conv_1": {"kernel": 1.0}, "conv_10": {"kernel": 1.0}}
    assert normopt.leaf_paths(params, "conv_1") == ["conv_1/kernel", "conv_10/kernel"]
    assert normopt.leaf_paths(params, "conv_1/") == ["conv_1/kernel"]
    assert normopt.leaf_paths(params, "(^|/)conv_1/") == ["conv_1/kernel"]


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, "only one of the two has 'b'"),
        (
            OrderedDict(a=1.0, b=2.0),
            OrderedDict(b=2.0, a=1.0),
            "'a' does not stand in the same place of both",
        ),
        (
            {"a": [1.0]},
            {"a": (1.0,)},
            "the containers at 'a' are not the same: list and tuple",
        ),
        ([1.0], (1.0,), "the containers at the root are not the same: list and tuple"),
        (
            {"a": 1.0, "b": None},
            {"a": 1.0},
            "the containers at the root are not the same: "
            "PyTreeDef({'a': *, 'b': *}) and PyTreeDef({'a': *})",
        ),
        (
            {"a": {"b": 1.0}, "a/b": 2.0},
            {"a/b": 2.0},
            "'a/b' does not stand in the same place of both",
        ),
        ({"a": nnx.Param(1.0)}, {"a": 1.0}, ""),
    ],
)
def test_where_two_structures_differ_is_told(one, other, difference):
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert structural_difference(one, other) == difference
