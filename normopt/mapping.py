"""The guard of blocks inside `jax.shard_map`, where a device sees a piece of a leaf.

Under `jax.jit` a sharded leaf is still one array, and a sum over one of its blocks
crosses devices by itself. Inside `jax.shard_map` it would be a sum over a piece.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax

from normopt.copies import Alone


def manual_axes() -> tuple[str, ...]:
    """Names the axes of the mesh that `jax.shard_map` or `jax.pmap` runs over here.

    An axis of one device is none: there a piece is the whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in mesh.manual_axes if mesh.shape[name] > 1)


def sharded_by_compiler(
    function: Callable[..., Any], *arrays: Any, within: tuple[int, ...] = ()
) -> Any:
    """Calls a function of arrays in which the compiler says where each of them lies.

    On a mesh with explicit axes JAX asks this of every product of sharded matrices.

    Args:
      function: what is computed.
      *arrays: what of; trees of arrays, but for the last one, which is an array.
      within: the axes that have length 1 in what is computed; the others lie as those
        of the last array.
    """
    sharding = jax.typeof(arrays[-1]).sharding
    if not getattr(sharding.mesh, "explicit_axes", ()):
        return function(*arrays)
    # Before JAX 0.7 it stood among the experiments, and at first the option was plural.
    place: Any = jax.sharding
    if not hasattr(place, "auto_axes"):
        place = importlib.import_module("jax.experimental.shard")
    options = inspect.signature(place.auto_axes).parameters
    (option,) = (name for name in options if name.startswith("out_sharding"))
    names = [None if axis in within else n for axis, n in enumerate(sharding.spec)]
    after = jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec(*names)
    )
    # Alone, as sums on the mesh inside are none for what follows outside.
    return place.auto_axes(Alone(function), **{option: after})(*arrays)


def check_whole(leaf: Any, path: str) -> None:
    """Raises within `manual_axes` unless a leaf is whole on each device.

    A leaf that is the same on all devices is whole. One that differs may be a piece of
    a parameter, of which a sum over a block would be wrong, and nothing would tell.

    Raises:
      ValueError: if the leaf varies over a manual axis of the mesh, or if JAX has been
        told not to know (`check_vma=False`).
    """
    mapped = manual_axes()
    if not _axes_it_varies_over(jax.lax.axis_index(mapped[0])):
        raise ValueError(
            f"{path!r} has blocks, and inside jax.pmap or jax.shard_map(..., "
            f"check_vma=False) over {mapped} nothing tells whether it is whole on each "
            "device: leave check_vma at True, or update outside, under jax.jit"
        )
    if cut := _axes_it_varies_over(leaf) & set(mapped):
        raise ValueError(
            f"{path!r} has blocks, and inside jax.shard_map it differs between the "
            f"devices along {sorted(cut)}: take the gradient of the loss after its "
            "jax.lax.pmean; update params that are sharded outside, under jax.jit, "
            "where sums over a block cross devices"
        )


def _axes_it_varies_over(x: jax.Array) -> frozenset[str]:
    """Tells along which manual axes of a mesh an array may differ."""
    kind: Any = jax.typeof(x)
    # In some versions of JAX a field of the type, in others one of a field of it.
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))
