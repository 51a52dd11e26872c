"""The sharding of an optimizer state, from that of its parameters."""

import collections
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from normopt.paths import NamedLeaf, named_leaves


def state_sharding(optimizer: Any, params: Any) -> Any:
    """Computes the shardings of an optimizer's initial state, for a jitted `init`.

    An array with the shape of a parameter gets the sharding of this parameter. An array
    with one number per block gets the sharding that the parameter has along its channel
    axes. Everything else, such as a count, is replicated. The path of an array ends
    with the path of its parameter: so the function finds the parameter. For numbers per
    block it uses their key, which names the axes (`kernel@0,3`). So it works for any
    optimizer, in any wrapper of optax.

    Under `jax.jit` nothing else is needed: JAX computes sums over a block across
    devices. Inside `jax.shard_map` a sum would cover only the part of one device. So a
    parameter with blocks raises an error there, unless JAX knows that the parameter is
    equal on all devices. (If `update` gets no `params`, the gradients that it gets must
    be equal on all devices instead.) To get the right gradients, average the loss over
    the devices with `jax.lax.pmean`, and then take the gradient.

    Args:
      optimizer: any object with an `init`: an optimizer of normopt or optax, or a chain
        of both.
      params: arrays with a `NamedSharding` on one mesh, or all on one device; or
        `jax.ShapeDtypeStruct`s with such shardings. No values are computed.

    Returns:
      A tree of shardings with the structure of `optimizer.init(params)`.

    Raises:
      TypeError: if `optimizer` has no `init`.
      ValueError: if a leaf of the params has no sharding, another kind of sharding, or
        a sharding on another mesh; if two leaves have the same path.

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
    owners = named_leaves(params)
    everywhere = _replicated(owners)
    state = jax.eval_shape(optimizer.init, params)
    found = named_leaves(state)
    owner_of = _Owners(owners, found)
    shardings = []
    for place in found:
        owner, axes = owner_of(place.path)
        # Several numbers of a block stand along an axis behind those of the channels.
        shape = place.leaf.shape[: len(axes) if "@" in place.path else None]
        if owner is None or shape != tuple(owner.shape[a] for a in axes):
            shardings.append(everywhere)
        else:
            shardings.append(_along(owner.sharding, axes, owner.ndim))
    return jax.tree.structure(state).unflatten(shardings)


def _replicated(owners: list[NamedLeaf]) -> Sharding | None:
    """Gives the sharding of what is on every device that holds the params."""
    found: Sharding | None = None
    for path, leaf, _ in owners:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        elif not isinstance(sharding, SingleDeviceSharding):
            raise ValueError(
                f"{path!r} must have a NamedSharding, got {sharding}: jax.device_put "
                "the params on a mesh, or give jax.ShapeDtypeStruct(shape, dtype, "
                "sharding=...)"
            )
        if found is not None and sharding != found:
            raise ValueError(
                f"{path!r} lies on {sharding}, another parameter on {found}; they must "
                "share one mesh"
            )
        found = sharding
    return found


class _Owners:
    """Finds the parameter that a leaf of a state belongs to, by the end of its path.

    That end is the path of the parameter, or the key of its blocks, `path@axes`. A
    field of a state may have the name of a container of params. Of several ends the one
    is right before which most params are found.
    """

    def __init__(self, owners: list[NamedLeaf], found: list[NamedLeaf]):
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
