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

from normopt.blocks import Axes, has_numbers
from normopt.paths import all_places, check_distinct, path_difference, places

Values = Sequence[jax.Array | None]  # in leaf order; None for leaves without numbers


class BlockNumbers(NamedTuple):
    """Real numbers of at least float32, one for each block or each element.

    `optax.tree.map_params` maps `elements` as it does params, and hands `blocks` to
    `transform_non_params` whole, as a dictionary.
    """

    elements: Any  # params' structure and shapes; MaskedNode where a leaf has blocks
    blocks: Any  # {path: one number per block, (*channel axes,)}; 0. without leaves


def real_dtype(leaf: Any) -> Any:
    """Gives the real dtype, float32 at least, that holds a leaf's second moments."""
    return jnp.promote_types(jnp.finfo(leaf.dtype).dtype, jnp.float32)


def moment_dtype(leaf: Any, mu_dtype: Any) -> Any:
    """Gives the dtype of a first moment: `mu_dtype` concerns real leaves alone."""
    if mu_dtype is None or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.dtype
    return mu_dtype


def zeros(params: Any, axes: Sequence[Axes]) -> BlockNumbers:
    """Makes a zero for each block, and for each element of leaves without blocks.

    Raises:
      ValueError: if two leaves with blocks have the same path.
    """
    leaves, treedef = jax.tree.flatten(params)
    elements = treedef.unflatten(
        jnp.zeros_like(leaf, real_dtype(leaf))
        if own is None and has_numbers(leaf)
        else optax.MaskedNode()
        for leaf, own in zip(leaves, axes, strict=True)
    )
    blocks: dict[str, jax.Array] = {}
    with_blocks = [
        (place, own)
        for place, own in zip(places(params), axes, strict=True)
        if own is not None
    ]
    check_distinct([place.path for place, _ in with_blocks])
    for place, own in with_blocks:
        shape = tuple(place.leaf.shape[axis] for axis in own)
        blocks[place.path] = jnp.zeros(shape, real_dtype(place.leaf))
    # `optax.tree.map_params` takes the state of a tree without leaves for the shape of
    # all states. There one leaf stands for the dictionary, whatever it may hold.
    return BlockNumbers(elements, blocks if leaves else jnp.zeros([]))


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


def unpack(numbers: BlockNumbers | None, updates: Any, axes: Sequence[Axes]) -> Values:
    """Lists the numbers of each leaf, per block or per element."""
    if numbers is None:
        return [None] * len(axes)
    values: list[jax.Array | None] = []
    kept, leaves = _in_order(numbers.elements, updates), places(updates)
    for position, (place, own) in enumerate(zip(leaves, axes, strict=True)):
        if own is None:
            _check_kept(kept[position], place.leaf, updates, position)
            values.append(kept[position])
        elif place.path in numbers.blocks:
            value = numbers.blocks[place.path]
            shape = tuple(place.leaf.shape[axis] for axis in own)
            if value.shape != shape:
                raise ValueError(
                    f"the state was made for other params: it has block moments of "
                    f"shape {value.shape} for {place.path!r}, whose blocks are {shape}"
                )
            values.append(value)
        else:
            known = ", ".join(map(repr, numbers.blocks)) or "no leaf"
            raise ValueError(
                f"the state was made for other params: it has no block moments of "
                f"{place.path!r}, only of {known}"
            )
    return values


def unpack_like_params(tree: Any, updates: Any) -> Values:
    """Lists the leaves of what `zeros_like_params` made, None without numbers.

    Raises:
      ValueError: if the state has other leaves, or a leaf held integers then and does
        not now, or the reverse, or had another shape.
    """
    kept, leaves = _in_order(tree, updates), jax.tree.leaves(updates)
    for position, (value, leaf) in enumerate(zip(kept, leaves, strict=True)):
        _check_kept(value, leaf, updates, position)
    return kept


def _in_order(tree: Any, updates: Any) -> Values:
    """Lists what the state keeps for each leaf, None where that is a MaskedNode."""
    (kept, structure), (leaves, like) = (
        jax.tree.flatten(one, is_leaf=_is_masked) for one in (tree, updates)
    )
    if structure != like:
        # The structures of NNX states can differ in metadata alone: the paths decide.
        difference = path_difference(all_places(tree), all_places(updates))
        if difference:
            raise ValueError(
                f"the state was made for other params: of it and the updates, "
                f"{difference}"
            )
    pairs = list(zip(kept, leaves, strict=True))
    for position, (value, leaf) in enumerate(pairs):
        if _is_masked(leaf) and not _is_masked(value):
            path = all_places(updates)[position].path
            raise ValueError(
                f"the state was made for other params: {path!r} was not masked then"
            )
    return [
        None if _is_masked(value) else value
        for value, leaf in pairs
        if not _is_masked(leaf)
    ]


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _check_kept(
    value: jax.Array | None, leaf: Any, updates: Any, position: int
) -> None:
    """Raises unless the state keeps a number for each element of a leaf."""
    if value is not None and has_numbers(leaf) and value.shape == leaf.shape:
        return
    if value is None and not has_numbers(leaf):
        return
    path = places(updates)[position].path
    if value is None:
        raise ValueError(
            f"the state keeps nothing for the elements of {path!r}: when it was made, "
            f"{path!r} held integers, which are to be left out by optax.masked, or had "
            "blocks"
        )
    raise ValueError(
        f"the state was made for other params: what it keeps of {path!r} has the shape "
        f"{value.shape}, the updates have {leaf.shape} of {leaf.dtype}"
    )


def pack(
    values: Values, like: BlockNumbers | None, updates: Any, axes: Sequence[Axes]
) -> Any:
    """Undoes `unpack`, into the structure and dtypes of `like`."""
    if like is None:
        return None
    of_elements = [
        value if own is None else None for value, own in zip(values, axes, strict=True)
    ]
    blocks = {
        place.path: value.astype(like.blocks[place.path].dtype)
        for place, value, own in zip(places(updates), values, axes, strict=True)
        if own is not None and value is not None
    }
    elements = pack_like_params(of_elements, like.elements)
    return BlockNumbers(elements, blocks if axes else like.blocks)


def pack_like_params(values: Values, like: Any) -> Any:
    """Undoes `unpack_like_params`, into the structure and dtypes of `like`."""
    old, treedef = jax.tree.flatten(like)
    present = [value for value in values if value is not None]
    return treedef.unflatten(
        new.astype(was.dtype) for new, was in zip(present, old, strict=True)
    )
