"""Which slice: channel axes, and sums over the blocks that they index.

All sums of the library over blocks are computed here, in float32 or wider. By default a
sum keeps the dimensions of its leaf (`(1, 1, 1, 8)` for the eight channels of a
kernel), so that a factor per block multiplies the leaf by broadcasting. Each sum is one
reduction of the unchanged leaf. To reduce the leading axes first and the last one after
them was not faster on a CPU (0.8 to 1.1 times, from 1e6 to 2e7 elements), and makes
devices that share a leaf exchange a whole row where one number would do. Axes are never
merged before a reduction, since that can gather a sharded leaf on every device.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.checks import is_scalar
from normopt.copies import reduction
from normopt.mapping import check_whole, manual_axes
from normopt.numerics import length_of, squared, widened
from normopt.paths import named_leaves
from normopt.rules import PerLeaf, check_per_leaf, per_leaf

Axes = tuple[int, ...] | None
Reduce = Callable[..., jax.Array]


def check_channel_axes(channel_axes: PerLeaf, option: str = "channel_axes") -> None:
    """Raises at build time if the axes of an option cannot be those of any leaf."""
    check_per_leaf(option, channel_axes, _check_axes)


def resolve_axes(
    channel_axes: PerLeaf, tree: Any, option: str = "channel_axes"
) -> list[Axes]:
    """Reads `channel_axes` for each leaf of `tree`: sorted, not negative, or None.

    A plain value falls back to None on leaves that lack one of its axes, or for which
    two of them are one, as (0, -1) are for a vector. Leaves that hold no real or
    complex numbers, or no numbers at all, have no blocks.

    Args:
      channel_axes: a tuple or list of axes, one axis, or None, per leaf.
      tree: params or updates.
      option: the name of the option, for messages.

    Returns:
      One entry for each leaf, in leaf order.

    Raises:
      TypeError: if a leaf is no array.
      ValueError: if no leaf has the axes of a plain value, if a mapping or callable
        names an axis that its leaf lacks, if an axis is named twice, or if a leaf with
        blocks may be cut inside `jax.shard_map`.
    """
    given = per_leaf(option, channel_axes, tree, None, _check_axes)
    values = [(axes,) if _is_integer(axes) else axes for axes in given]
    is_plain = not callable(channel_axes) and not isinstance(channel_axes, Mapping)
    leaves = jax.tree.leaves(tree)
    for position, leaf in enumerate(leaves):
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{named_leaves(tree)[position].path!r} must be an array, got {leaf!r}"
            )
    lacking = [
        position
        for position, (axes, leaf) in enumerate(zip(values, leaves, strict=True))
        if axes is not None and not _has_axes(leaf, axes)
    ]
    if lacking and (not is_plain or len(lacking) == len(leaves)):
        place, axes = named_leaves(tree)[lacking[0]], tuple(values[lacking[0]])
        is_named_twice = all(_has_axis(place.leaf, axis) for axis in axes)
        raise ValueError(
            f"`{option}` = {axes} "
            + ("names twice an axis that " if is_named_twice else "needs an axis that ")
            + f"{place.path!r} of shape {np.shape(place.leaf)} "
            + ("has once" if is_named_twice else "does not have")
            + (" (and no other leaf either)" if is_plain else "")
            + "; its axes run from "
            f"{-np.ndim(place.leaf)} to {np.ndim(place.leaf) - 1}, "
            + ("`()` makes the whole leaf one block, " * (option == "channel_axes"))
            + "`None` leaves it alone"
        )
    out_of_reach = set(lacking)
    is_mapped = bool(manual_axes())
    resolved: list[Axes] = []
    for position, (axes, leaf) in enumerate(zip(values, leaves, strict=True)):
        if axes is None or position in out_of_reach or not has_numbers(leaf):
            resolved.append(None)
            continue
        if is_mapped:
            check_whole(leaf, named_leaves(tree)[position].path)
        resolved.append(tuple(sorted(int(axis) % np.ndim(leaf) for axis in axes)))
    return resolved


def resolve_proper_axes(channel_axes: PerLeaf, tree: Any) -> list[Axes]:
    """Reads `channel_axes` as `resolve_axes` does, for the sphere and block moments.

    A block of one element has no direction and a moment of its own either way: leaves
    of such blocks count as leaves without blocks.
    """
    return [
        None if axes is None or block_size(np.shape(leaf), axes) == 1 else axes
        for axes, leaf in zip(
            resolve_axes(channel_axes, tree), jax.tree.leaves(tree), strict=True
        )
    ]


def has_numbers(leaf: Any) -> bool:
    """Tells whether a leaf has elements that are real or complex numbers.

    Integer leaves, and the float0 gradients that belong to them, have no length; links
    hand them on as they are.
    """
    return jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size > 0


def block_size(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Counts the elements of one block of a leaf with this shape."""
    return math.prod(n for axis, n in enumerate(shape) if axis not in axes)


def reduce_blocks(
    reduce: Reduce, x: jax.Array, axes: tuple[int, ...], *, keepdims: bool = True
) -> jax.Array:
    """Reduces each block of `x` to one number, by `jnp.sum`, `jnp.max` or `jnp.min`.

    Args:
      reduce: called as `reduce(x, axis=..., keepdims=...)`; associative.
      x: one leaf.
      axes: its channel axes, sorted and not negative.
      keepdims: whether the axes within a block stay, with length 1.

    Returns:
      An array with the dimensions of `x`, or with those of `axes` alone.
    """
    within = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return reduction(lambda: reduce(x, axis=within, keepdims=keepdims))


def block_sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums each block in float32 at least."""
    return reduce_blocks(jnp.sum, widened(x), axes)


def block_dot(
    a: jax.Array, b: jax.Array, axes: tuple[int, ...], *, keepdims: bool = True
) -> jax.Array:
    """Takes Re<a, b> over each block in float32 at least: real for complex leaves.

    See `reduce_blocks` for the shape.
    """
    product = jnp.real(widened(a) * jnp.conj(widened(b)))
    return reduce_blocks(jnp.sum, product, axes, keepdims=keepdims)


def block_length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Takes |x| of each block by its plain sum of squares, the derivative 0 at 0.

    It is not exact for extreme lengths, as `norms.block_norm` is: it is 0 where all
    squares underflow, and stays finite where they overflow.
    """
    return length_of(block_dot(x, x, axes))


def squared_length(x: jax.Array, axes: Axes) -> jax.Array:
    """Takes |x|^2 of each block, or of each element of a leaf without blocks.

    The axes within a block are dropped, as in what a state keeps.
    """
    if axes is None:
        return squared(widened(x))
    return block_dot(x, x, axes, keepdims=False)


def per_block(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Drops the length-1 axes of a reduced leaf: what remains is indexed by `axes`."""
    return jnp.squeeze(x, tuple(a for a in range(x.ndim) if a not in axes))


def across_block(x: jax.Array, axes: Axes, ndim: int) -> jax.Array:
    """Undoes `per_block`: numbers that multiply a leaf of `ndim` dimensions."""
    if axes is None:
        return x
    return jnp.expand_dims(x, tuple(a for a in range(ndim) if a not in axes))


def radial_factor(x: jax.Array, w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Takes <x, w> / |w|^2, the multiple of w that is the radial part of x."""
    return radial_quotient(block_dot(x, w, axes), block_dot(w, w, axes))


def radial_quotient(dot: jax.Array, square: jax.Array) -> jax.Array:
    """Takes <x, w> / |w|^2 of sums taken before.

    It is 0, so that nothing is removed, where |w|^2 is zero or a sum left the range.
    """
    tiny = jnp.finfo(square.dtype).tiny
    quotient = dot / jnp.where(square < tiny, 1, square)
    return jnp.where(jnp.isfinite(quotient), quotient, 0)


def _check_axes(option: str, axes: Any, where: str) -> None:
    place = f" at {where!r}" if where else ""
    if axes is None or _is_integer(axes):
        return
    if isinstance(axes, tuple | list) and all(map(_is_integer, axes)):
        if len(set(axes)) < len(axes):
            raise ValueError(f"`{option}` names an axis twice: {axes!r}{place}")
        return
    hint = ""
    if is_scalar(axes) and isinstance(axes, jax.Array):
        hint = (
            "; optax.inject_hyperparams takes a lone integer for a number that may "
            "change: write (-1,) for -1"
        )
    raise TypeError(
        f"`{option}` must be None or a tuple of integer axes such as (-1,) or (), or "
        f"one axis such as -1, got {option}={axes!r}{place}{hint}"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _has_axes(leaf: Any, axes: tuple[int, ...]) -> bool:
    """Tells whether a leaf has all of the axes, each of them for itself."""
    if not all(_has_axis(leaf, axis) for axis in axes):
        return False
    return len({axis % np.ndim(leaf) for axis in axes}) == len(axes)


def _has_axis(leaf: Any, axis: int) -> bool:
    return -np.ndim(leaf) <= axis < np.ndim(leaf)
