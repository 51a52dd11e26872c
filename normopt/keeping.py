"""What a state keeps for each leaf: a number per block, or one per element.

Numbers per block are kept in a dictionary. Its keys are the path of a leaf and its
channel axes, such as `kernel@0,3`. The axes are part of the key because the shape alone
does not identify them if two axes have equal lengths. The dictionary is not a tree like
the params, because a container of parameters may pass the sharding of a leaf on to what
takes its place, and a number per block has fewer axes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import Axes, has_numbers
from normopt.numerics import real_dtype
from normopt.paths import check_distinct, named_leaves, named_positions, path_difference

Values = Sequence[jax.Array | None]  # in leaf order; None where nothing is kept
MADE_FOR_OTHERS = "the state was made for other params or options"


class BlockNumbers(NamedTuple):
    """Real numbers, float32 or wider: one for each block or each element.

    `optax.tree.map_params` treats the field `elements` as params, and the field
    `blocks`, a dictionary, as non-params.
    """

    elements: Any  # params' structure and shapes; MaskedNode for leaves with blocks
    blocks: Any  # {"path@axes": array of one number per block}


class PerElement:
    """Keeps an array like each leaf, in a tree like the params."""

    def __init__(self, dtype_of: Callable[[Any, Any], Any], rule: str = "") -> None:
        """Takes the rule of what is kept, for a leaf and its axes, and in words.

        Args:
          dtype_of: gives a dtype, or None where nothing is kept.
          rule: says so in an error.
        """
        self._dtype_of = dtype_of
        self._rule = rule or "integers, which optax.masked leaves out, have nothing"

    def zeros(self, params: Any, axes: Sequence[Any]) -> Any:
        """Makes what is kept before the first step."""
        leaves, treedef = jax.tree.flatten(params)
        dtypes = map(self._dtype_of, leaves, axes)
        return treedef.unflatten(
            optax.MaskedNode() if dtype is None else jnp.zeros_like(leaf, dtype)
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        )

    def unpack(self, kept: Any, tree: Any, axes: Sequence[Any]) -> Values:
        """Lists what is kept for each leaf of `tree`."""
        values, leaves = _in_order(kept, tree), jax.tree.leaves(tree)
        dtypes = map(self._dtype_of, leaves, axes)
        for position, (value, leaf, dtype) in enumerate(
            zip(values, leaves, dtypes, strict=True)
        ):
            wanted = None if dtype is None else leaf.shape
            if wanted != (None if value is None else value.shape):
                had = "nothing" if value is None else f"an array {value.shape}"
                raise ValueError(
                    f"{MADE_FOR_OTHERS}: it keeps {had} for the elements of "
                    f"{named_leaves(tree)[position].path!r} {leaf.shape}; {self._rule}"
                )
        return values

    def pack(self, values: Values, kept: Any, tree: Any, axes: Sequence[Any]) -> Any:
        """Undoes `unpack`, into the structure of `kept`."""
        del tree, axes
        present = [value for value in values if value is not None]
        return jax.tree.structure(kept).unflatten(present)


class OfBlocks:
    """Keeps a number for each block, in a dictionary; none for leaves without."""

    def __init__(self, numbers: int | None = None) -> None:
        """Takes how many numbers a block has, as the last axis; None: one, without."""
        self._last = [] if numbers is None else [numbers]

    def zeros(self, params: Any, axes: Sequence[Axes]) -> Any:
        """Makes what is kept before the first step."""
        with_blocks = [
            (place, leaf_axes)
            for place, leaf_axes in zip(named_leaves(params), axes, strict=True)
            if leaf_axes is not None
        ]
        check_distinct([place.path for place, _ in with_blocks])
        blocks = {
            _key(place.path, leaf_axes): jnp.zeros(
                self._shape(place.leaf, leaf_axes),
                real_dtype(place.leaf.dtype),
            )
            for place, leaf_axes in with_blocks
        }
        # `optax.tree.map_params` takes the state of a tree without leaves for the
        # shape of all states: there one leaf stands for the dictionary.
        return blocks if jax.tree.leaves(params) else jnp.zeros([])

    def unpack(self, kept: Any, tree: Any, axes: Sequence[Axes]) -> Values:
        """Lists what is kept for each leaf of `tree`."""
        values: list[jax.Array | None] = [None] * len(axes)
        wanted = set()
        for position, (place, leaf_axes) in enumerate(
            zip(named_leaves(tree), axes, strict=True)
        ):
            if leaf_axes is None:
                continue
            key = _key(place.path, leaf_axes)
            shape = self._shape(place.leaf, leaf_axes)
            if key not in kept or kept[key].shape != shape:
                had = ", ".join(f"{k} {v.shape}" for k, v in kept.items()) or "nothing"
                raise ValueError(
                    f"{MADE_FOR_OTHERS}: it has no number for each of the {shape} "
                    f"blocks of {place.path!r}, as {key} {shape} (path@channel axes); "
                    f"it has {had}"
                )
            values[position] = kept[key]
            wanted.add(key)
        if axes and (lone := sorted(set(kept) - wanted)):
            raise ValueError(
                f"{MADE_FOR_OTHERS}: it has numbers for the blocks of "
                f"{lone[0].rpartition('@')[0]!r}, as {lone[0]} (path@channel axes), "
                "which are none now"
            )
        return values

    def _shape(self, leaf: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
        return (*(leaf.shape[axis] for axis in axes), *self._last)

    def pack(self, values: Values, kept: Any, tree: Any, axes: Sequence[Axes]) -> Any:
        """Undoes `unpack`."""
        if not axes:
            return kept
        return {
            _key(place.path, leaf_axes): value
            for place, value, leaf_axes in zip(
                named_leaves(tree), values, axes, strict=True
            )
            if leaf_axes is not None
        }


class PerBlock:
    """Keeps real numbers: of each block, and of each element of leaves without."""

    def __init__(self) -> None:
        """Takes nothing: all second moments are alike."""
        self._blocks = OfBlocks()
        self._elements = PerElement(
            lambda leaf, axes: second_moment_dtype(leaf, axes) if axes is None else None
        )

    def zeros(self, params: Any, axes: Sequence[Axes]) -> Any:
        """Makes what is kept before the first step."""
        elements = self._elements.zeros(params, axes)
        return BlockNumbers(elements, self._blocks.zeros(params, axes))

    def unpack(self, kept: Any, tree: Any, axes: Sequence[Axes]) -> Values:
        """Lists what is kept for each leaf of `tree`."""
        blocks = self._blocks.unpack(kept.blocks, tree, axes)
        elements = self._elements.unpack(kept.elements, tree, axes)
        return [a if b is None else b for a, b in zip(elements, blocks, strict=True)]

    def pack(self, values: Values, kept: Any, tree: Any, axes: Sequence[Axes]) -> Any:
        """Undoes `unpack`, into the structure of `kept`."""
        of_elements = [
            value if leaf_axes is None else None
            for value, leaf_axes in zip(values, axes, strict=True)
        ]
        return BlockNumbers(
            self._elements.pack(of_elements, kept.elements, tree, axes),
            self._blocks.pack(values, kept.blocks, tree, axes),
        )


def moment_dtype(mu_dtype: Any) -> Callable[[Any, Any], Any]:
    """Gives the dtype of a first moment: `mu_dtype` for real leaves, or the leaf's."""

    def dtype_of(leaf: Any, axes: Any) -> Any:
        del axes
        if not has_numbers(leaf):
            return None
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return leaf.dtype if mu_dtype is None or is_complex else mu_dtype

    return dtype_of


def second_moment_dtype(leaf: Any, axes: Any) -> Any:
    """Gives the dtype of a second moment of elements: real, float32 at least."""
    del axes
    return real_dtype(leaf.dtype) if has_numbers(leaf) else None


def _key(path: str, axes: tuple[int, ...]) -> str:
    return f"{path}@{','.join(map(str, axes))}"


def _in_order(kept: Any, tree: Any) -> Values:
    """Lists what the state keeps for each leaf, None where that is a MaskedNode."""
    (values, structure), (leaves, like) = (
        jax.tree.flatten(one, is_leaf=_is_masked) for one in (kept, tree)
    )
    if structure != like:
        # The structures of NNX states can differ in metadata alone: the paths decide.
        difference = path_difference(named_positions(kept), named_positions(tree))
        if difference:
            raise ValueError(f"{MADE_FOR_OTHERS}: of it and the updates, {difference}")
    pairs = list(zip(values, leaves, strict=True))
    for position, (value, leaf) in enumerate(pairs):
        if _is_masked(leaf) and not _is_masked(value):
            path = named_positions(tree)[position].path
            raise ValueError(f"{MADE_FOR_OTHERS}: {path!r} was not masked then")
    return [
        None if _is_masked(value) else value
        for value, leaf in pairs
        if not _is_masked(leaf)
    ]


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
