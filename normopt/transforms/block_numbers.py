"""What a state keeps for each leaf: a number per block, or one per element.

Numbers per block stand in a dictionary by path, with the shape of their channel axes.
They are not kept as a tree like the params, because a container of parameters may hand
its leaves' sharding on to what has their place, and a number per block has fewer axes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import Axes, across_block, has_numbers, per_block
from normopt.paths import all_places, places

Values = Sequence[jax.Array | None]  # in leaf order; None for leaves without numbers


class BlockNumbers(NamedTuple):
    """Real numbers of at least float32, one for each block or each element."""

    elements: Any  # params' structure and shapes; MaskedNode where a leaf has blocks
    blocks: dict[str, jax.Array]  # {path: one number per block, (*channel axes,)}


def real_dtype(leaf: Any) -> Any:
    """Gives the real dtype, float32 at least, that holds a leaf's second moments."""
    return jnp.promote_types(jnp.finfo(leaf.dtype).dtype, jnp.float32)


def moment_dtype(leaf: Any, mu_dtype: Any) -> Any:
    """Gives the dtype of a first moment: `mu_dtype` concerns real leaves alone."""
    if mu_dtype is None or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.dtype
    return mu_dtype


def zeros(params: Any, axes: Sequence[Axes]) -> BlockNumbers:
    """Makes a zero for each block, and for each element of leaves without blocks."""
    leaves, treedef = jax.tree.flatten(params)
    elements = treedef.unflatten(
        jnp.zeros_like(leaf, real_dtype(leaf))
        if own is None and has_numbers(leaf)
        else optax.MaskedNode()
        for leaf, own in zip(leaves, axes, strict=True)
    )
    return BlockNumbers(elements, zeros_per_block(params, axes))


def zeros_per_block(params: Any, axes: Sequence[Axes]) -> dict[str, jax.Array]:
    """Makes a zero for each block of the leaves that have blocks.

    Raises:
      ValueError: if two such leaves have the same path.
    """
    blocks: dict[str, jax.Array] = {}
    for place, own in zip(places(params), axes, strict=True):
        if own is not None:
            if place.path in blocks:
                raise ValueError(
                    f"two parameters have the path {place.path!r}, by which what is "
                    "kept for their blocks is named; rename one"
                )
            shape = tuple(place.leaf.shape[axis] for axis in own)
            blocks[place.path] = jnp.zeros(shape, real_dtype(place.leaf))
    return blocks


def zeros_like_params(params: Any, dtype_of: Callable[[Any], Any]) -> Any:
    """Makes zeros with the structure of the params; MaskedNode without numbers."""
    return jax.tree.map(
        lambda leaf: (
            jnp.zeros_like(leaf, dtype_of(leaf))
            if has_numbers(leaf)
            else optax.MaskedNode()
        ),
        params,
    )


def unpack(numbers: BlockNumbers, updates: Any, axes: Sequence[Axes]) -> Values:
    """Lists the numbers of each leaf, in a shape that multiplies it."""
    # In order, not by structure: NNX states can differ in metadata alone.
    elements = iter(jax.tree.leaves(numbers.elements))
    blocks = unpack_blocks(numbers.blocks, updates, axes)
    return [
        next(elements) if own is None and has_numbers(g) else of_block
        for g, of_block, own in zip(jax.tree.leaves(updates), blocks, axes, strict=True)
    ]


def unpack_blocks(
    blocks: dict[str, jax.Array], updates: Any, axes: Sequence[Axes]
) -> Values:
    """Lists the numbers of leaves with blocks, None for the others."""
    return [
        None if own is None else across_block(blocks[place.path], own, place.leaf.ndim)
        for place, own in zip(places(updates), axes, strict=True)
    ]


def unpack_like_params(tree: Any, updates: Any) -> Values:
    """Lists the leaves of what `zeros_like_params` made, None without numbers.

    Raises:
      ValueError: if a leaf held integers then and does not now, or the reverse.
    """
    stored, leaves = jax.tree.leaves(tree), jax.tree.leaves(updates)
    if len(stored) != sum(has_numbers(g) for g in leaves):
        left_out = {place.path for place in all_places(tree) if place.masked}
        (path, *_) = (
            place.path
            for place in places(updates)
            if has_numbers(place.leaf) == (place.path in left_out)
        )
        raise ValueError(
            f"{path!r} held integers when the state was made, or does now: leave it "
            "out by optax.masked"
        )
    numbers = iter(stored)
    return [next(numbers) if has_numbers(g) else None for g in leaves]


def pack(
    values: Values, like: BlockNumbers, updates: Any, axes: Sequence[Axes]
) -> BlockNumbers:
    """Undoes `unpack`, into the structure of `like`."""
    of_elements = [
        value if own is None else None for value, own in zip(values, axes, strict=True)
    ]
    return BlockNumbers(
        pack_like_params(of_elements, like.elements),
        pack_blocks(values, updates, axes),
    )


def pack_blocks(
    values: Values, updates: Any, axes: Sequence[Axes]
) -> dict[str, jax.Array]:
    """Undoes `unpack_blocks`."""
    return {
        place.path: per_block(value, own)
        for place, value, own in zip(places(updates), values, axes, strict=True)
        if own is not None and value is not None
    }


def pack_like_params(values: Values, like: Any) -> Any:
    """Undoes `unpack_like_params`, into the structure and dtypes of `like`."""
    old, treedef = jax.tree.flatten(like)
    present = [value for value in values if value is not None]
    return treedef.unflatten(
        new.astype(was.dtype) for new, was in zip(present, old, strict=True)
    )
