"""Leaves on many devices: the same numbers, and no exchange larger than block sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import normopt
from tests.multidevice.running import EIGHT, finish, finish_all, free_address, start
from tests.versions import needs_masks_in_nnx, needs_shard_map

compiles_much = pytest.mark.slow("compiles for eight devices")


@pytest.mark.parametrize(
    ("script", "least"),
    [
        ("optimizers both", 90),
        ("restarts", 18),
        pytest.param("mapped", 56, marks=[compiles_much, needs_shard_map]),
        pytest.param("optimizers", 240, marks=compiles_much),
        pytest.param("links", 300, marks=compiles_much),
        pytest.param("spread", 72, marks=compiles_much),
        pytest.param("explicit", 350, marks=compiles_much),
        pytest.param("partitioned", 10, marks=[compiles_much, needs_masks_in_nnx]),
        pytest.param("recipes", 4, marks=[compiles_much, needs_masks_in_nnx]),
    ],
)
def test_eight_devices_give_the_numbers_of_one(script, least):
    name, *specs = script.split()
    printed = finish(start(f"tests.multidevice.{name}", *specs, flags=EIGHT))
    assert int(printed.rsplit(":", 1)[1]) >= least


@pytest.mark.slow("two processes with all optimizers")
def test_two_processes_give_the_numbers_of_one():
    module, address = "tests.multidevice.processes", free_address()
    processes = [start(module, address, index) for index in range(2)]
    # Each looks at all parameters after its half of the work.
    for printed in finish_all(processes):
        assert int(printed.rsplit(":", 1)[1]) == len(normopt.names())


MESH = jax.sharding.AbstractMesh((4, 2), ("x", "y"))


def abstract(shape, *spec, mesh=MESH):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def specs_of(optimizer, params):
    shardings = normopt.state_sharding(optimizer, params)
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        ((0,), ("x",)),
        ((1,), (None,)),
        ((-1,), ("y",)),
        ((0, 2), ("x", "y")),
        ((0, 1), ("x", None)),
        ((), ()),
    ],
)
def test_numbers_of_blocks_lie_as_their_channel_axes_do(axes, spec):
    params = {"kernel": abstract((8, 8, 8), "x", None, "y"), "bias": abstract((8,))}
    optimizer = normopt.scale_by_block_adam(channel_axes={"kernel": axes})
    specs = specs_of(optimizer, params)
    (kept,) = specs.nu.blocks.values()
    assert kept == PartitionSpec(*spec)
    assert specs.mu["kernel"] == PartitionSpec("x", None, "y")
    assert specs.nu.elements["bias"] == specs.count == PartitionSpec()


def test_a_spec_shorter_than_its_leaf_is_filled_up():
    params = {"kernel": abstract((8, 4, 2), "x")}
    specs = specs_of(normopt.scale_by_block_adam(channel_axes=(0, 1)), params)
    assert specs.nu.blocks == {"kernel@0,1": PartitionSpec("x", None)}


def test_a_path_that_ends_like_another_is_not_taken_for_it():
    params = {
        "kernel": abstract((8, 4), "x", None),
        "head": {"kernel": abstract((8, 4), None, "y")},
    }
    specs = specs_of(normopt.adamsrt(0.1, channel_axes=(-1,)), params)
    (adam,) = (part for part in specs if hasattr(part, "mu"))
    assert adam.mu == jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    assert adam.nu.blocks == {
        "kernel@1": PartitionSpec(None),
        "head/kernel@1": PartitionSpec("y"),
    }


@pytest.mark.parametrize("name", ["mu", "elements", "nu", "head/mu"])
def test_a_container_named_like_a_field_of_the_state_is_not_taken_for_it(name):
    params = {
        "w": abstract((8, 4), "x", None),
        name: {"w": abstract((8, 4), None, "y"), "v": abstract((8, 4), "y", None)},
    }
    specs = specs_of(normopt.scale_by_block_adam(channel_axes=None), params)
    assert specs.mu == jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    assert specs.nu.elements == specs.mu


def test_a_mask_that_looks_at_sizes_hides_nothing():
    params = {"w": abstract((8, 8), "x", "y"), "b": abstract((4,), "y")}
    square = functools.partial(jax.tree.map, lambda w: w.shape == (8, 8))
    optimizer = optax.masked(normopt.adamsrt(0.1, channel_axes=(0,)), square)
    specs = specs_of(optimizer, params).inner_state
    (adam,) = (part for part in specs if hasattr(part, "mu"))
    assert adam.mu["w"] == PartitionSpec("x", "y")
    assert adam.nu.blocks == adam.length == {"w@0": PartitionSpec("x")}


def test_one_device_stays_one_device():
    params = {"kernel": jnp.ones((3, 4))}
    shardings = normopt.state_sharding(normopt.novograd(0.1), params)
    state = jax.jit(normopt.novograd(0.1).init, out_shardings=shardings)(params)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {
        params["kernel"].sharding
    }


@pytest.mark.parametrize(
    ("optimizer", "params", "error", "message"),
    [
        (3, {}, TypeError, "must be one of normopt or optax, .* got optimizer=3"),
        (
            normopt.adams(0.1),
            {"a": abstract((8,), "x"), "b": np.ones(3)},
            ValueError,
            "'b' must have a NamedSharding, got None",
        ),
        (
            normopt.adams(0.1),
            {
                "a": abstract((8,), "x"),
                "b": abstract((8,), mesh=jax.sharding.AbstractMesh((2,), ("z",))),
            },
            ValueError,
            "'b' lies on .* another parameter on .* one mesh",
        ),
        (
            normopt.adams(0.1),
            {"a/b": abstract((8,), "x"), "a": {"b": abstract((8,), None)}},
            ValueError,
            "two parameters have the path 'a/b'",
        ),
    ],
)
def test_state_sharding_says_what_it_cannot_use(optimizer, params, error, message):
    with pytest.raises(error, match=message):
        normopt.state_sharding(optimizer, params)
