"""Leaves on many devices: where their state lies, and when their blocks are cut.

Under `jax.jit` a sharded leaf is still one array, and a sum over one of its blocks
crosses devices by itself. Inside `jax.shard_map` each device sees its piece alone.
"""

import collections
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from normopt.paths import Place, places


def state_sharding(optimizer: Any, params: Any) -> Any:
    """Gives the shardings of an optimizer's initial state, for a jitted `init`.

    What has the shape of a parameter lies where the parameter lies; what has one number
    for each of its blocks lies as its channel axes do; all else, such as a count, is on
    every device. State and parameter belong together by the end of their paths, and the
    keys of numbers per block name the axes (`kernel@0,3`), so this holds for any
    optimizer, in any wrapper of optax.

    A sharded step under `jax.jit` needs nothing else: sums over a block cross devices.
    Inside `jax.shard_map` they would be sums over a piece; there leaves with blocks are
    refused, unless JAX knows that they are the same on all devices, as the gradients of
    a loss are that was averaged before (`jax.lax.pmean`).

    Args:
      optimizer: anything with an `init`: of normopt, of optax, or a chain of both.
      params: arrays with a `NamedSharding` on one mesh, or all on one single device; or
        `jax.ShapeDtypeStruct`s that say so. Nothing is computed with them.

    Returns:
      A tree of shardings with the structure of `optimizer.init(params)`.

    Raises:
      TypeError: if `optimizer` has no `init`.
      ValueError: if a leaf of the params has no sharding, one of another kind, or one
        on another mesh; if two leaves have the same path.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec
      >>> mesh = Mesh(jax.devices()[:1], ("x",))
      >>> place = NamedSharding(mesh, PartitionSpec(None, "x"))
      >>> params = {"kernel": jax.device_put(jnp.ones((3, 8)), place)}
      >>> tx = normopt.scale_by_block_adam(channel_axes=(-1,))
      >>> shardings = normopt.state_sharding(tx, params)
      >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
      >>> tuple(state.nu.blocks["kernel@1"].sharding.spec)  # a number for each column
      ('x',)
    """
    if not callable(getattr(optimizer, "init", None)):
        raise TypeError(
            "`optimizer` must be one of normopt or optax, such as normopt.adams(0.1), "
            f"got optimizer={optimizer!r}"
        )
    owners = places(params)
    everywhere = _replicated(owners)
    state = jax.eval_shape(optimizer.init, params)
    found = places(state)
    owner_of = _Owners(owners, found)
    shardings = []
    for place in found:
        owner, axes = owner_of(place.path)
        if owner is None or place.leaf.shape != tuple(owner.shape[a] for a in axes):
            shardings.append(everywhere)
        else:
            shardings.append(_along(owner.sharding, axes, owner.ndim))
    return jax.tree.structure(state).unflatten(shardings)


def manual_axes() -> tuple[str, ...]:
    """Names the axes of the mesh that `jax.shard_map` or `jax.pmap` runs over here.

    An axis of one device is none: there a piece is the whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in mesh.manual_axes if mesh.shape[name] > 1)


def check_whole(leaf: Any, path: str) -> None:
    """Raises within `manual_axes` unless a leaf is whole on each device.

    A leaf that is the same on all devices is whole. One that differs may be a piece of
    a parameter, of which a sum over a block would be wrong, and nothing would tell.

    Raises:
      ValueError: if the leaf varies over a manual axis of the mesh, or if JAX has been
        told not to know (`check_vma=False`).
    """
    mapped = manual_axes()
    if not _varying(jax.lax.axis_index(mapped[0])):
        raise ValueError(
            f"{path!r} has blocks, and inside jax.pmap or jax.shard_map(..., "
            f"check_vma=False) over {mapped} nothing tells whether it is whole on each "
            "device: leave check_vma at True, or update outside, under jax.jit"
        )
    if cut := _varying(leaf) & set(mapped):
        raise ValueError(
            f"{path!r} has blocks, and inside jax.shard_map it differs between the "
            f"devices along {sorted(cut)}: take the gradient of the loss after its "
            "jax.lax.pmean; update params that are sharded outside, under jax.jit, "
            "where sums over a block cross devices"
        )


def _varying(x: jax.Array) -> frozenset[str]:
    """Tells along which manual axes of a mesh an array may differ."""
    kind: Any = jax.typeof(x)
    # In some versions of JAX a field of the type, in others one of a field of it.
    kind = getattr(kind, "manual_axis_type", kind)
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def _replicated(owners: list[Place]) -> Sharding | None:
    """Gives the sharding of what is on every device that holds the params."""
    found: Sharding | None = None
    for path, leaf, _ in owners:
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding):
            own = NamedSharding(own.mesh, PartitionSpec())
        elif not isinstance(own, SingleDeviceSharding):
            raise ValueError(
                f"{path!r} must have a NamedSharding, got {own}: jax.device_put the "
                "params on a mesh, or give jax.ShapeDtypeStruct(shape, dtype, "
                "sharding=...)"
            )
        if found is not None and own != found:
            raise ValueError(
                f"{path!r} lies on {own}, another parameter on {found}; they must "
                "share one mesh"
            )
        found = own
    return found


class _Owners:
    """Finds the parameter that a leaf of a state belongs to, by the end of its path.

    That end is the path of the parameter, or the key of its blocks, `path@axes`. A
    field of a state may have the name of a container of params. Of several ends the one
    is right before which most params are found.
    """

    def __init__(self, owners: list[Place], found: list[Place]):
        self._leaves: dict[str, Any] = {}
        for path, leaf, _ in owners:
            if path in self._leaves:
                raise ValueError(f"two parameters have the path {path!r}; rename one")
            self._leaves[path] = leaf
        ends = (begin for place in found for begin, *_ in self._ends(place.path))
        self._counts = collections.Counter(ends)

    def __call__(self, path: str) -> tuple[Any, tuple[int, ...]]:
        """Gives the parameter, or None, and the axes of it that a leaf has."""
        ends = self._ends(path) or [("", *self._owner(""))]
        _, owner, axes = max(ends, key=lambda end: self._counts[end[0]])
        return owner, axes

    def _ends(self, path: str) -> list[tuple[str, Any, tuple[int, ...]]]:
        """Lists where a path can be cut before that of a parameter, longest first."""
        keys = path.split("/")
        cuts = (("/".join(keys[:n]), "/".join(keys[n:])) for n in range(len(keys)))
        ends = ((begin, *self._owner(end)) for begin, end in cuts)
        return [end for end in ends if end[1] is not None]

    def _owner(self, end: str) -> tuple[Any, tuple[int, ...]]:
        if end in self._leaves:
            return self._leaves[end], tuple(range(self._leaves[end].ndim))
        path, _, axes = end.rpartition("@")
        if path in self._leaves and re.fullmatch(r"(\d+(,\d+)*)?", axes):
            return self._leaves[path], tuple(map(int, filter(None, axes.split(","))))
        return None, ()


def _along(sharding: Any, axes: tuple[int, ...], ndim: int) -> Any:
    """Gives the sharding of what is indexed by some axes of a sharded leaf."""
    if len(axes) == ndim or not isinstance(sharding, NamedSharding):
        return sharding
    spec = (*sharding.spec, *[None] * (ndim - len(sharding.spec)))
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec[axis] for axis in axes)))
