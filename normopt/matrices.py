"""Which matrices: the axes of a leaf that are their inputs, and their outputs.

The other axes of a leaf count matrices, as channel axes count blocks: the kernel
(layers, in, out) of a stack, with input axis 1 and output axis 2, holds one matrix per
layer.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from normopt.blocks import check_channel_axes, resolve_axes
from normopt.checks import check_not_negative
from normopt.rules import PerLeaf, check_is_params, check_per_leaf, per_leaf


class Matrices(NamedTuple):
    """The axes of one leaf, sorted and not negative."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def stack(self, ndim: int) -> tuple[int, ...]:
        """Gives the axes that index the matrices: each of these is a block of them."""
        return tuple(a for a in range(ndim) if a not in self.inputs + self.outputs)

    def alone(self, ndim: int) -> tuple[tuple[int, ...], "Matrices"]:
        """Gives the axes that index the matrices, and those of one matrix by itself."""
        own = sorted(self.inputs + self.outputs)
        indices = (tuple(own.index(axis) for axis in axes) for axes in self)
        return self.stack(ndim), Matrices(*indices)

    def rows(self, ndim: int) -> tuple[int, ...]:
        """Gives the axes of what has a number for each output of each matrix."""
        return tuple(sorted(self.stack(ndim) + self.outputs))

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Counts the inputs and the outputs of one matrix of a leaf of this shape."""
        inputs, outputs = (math.prod(shape[a] for a in axes) for axes in self)
        return inputs, outputs


def output_matrices(axis: int = -1) -> Callable[[Any], Any]:
    """Makes one matrix of every leaf of two or more dimensions, with one output axis.

    The kernel of a convolution (height, width, in, out) becomes a matrix (height width
    in, out). Embeddings and heads become matrices, too; to leave them out, pass a
    mapping by path instead.

    Args:
      axis: the output axis: -1 in Flax kernels, 0 in Equinox and torch weights.

    Returns:
      A callable for `matrices`. From params it makes a tree with
      `((all other axes), (axis,))` for leaves of two or more dimensions, and None for
      the others (biases, scales).

    Raises:
      TypeError: if `axis` is not an integer.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"conv": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}
      >>> normopt.output_matrices()(params)
      {'bias': None, 'conv': ((0, 1, 2), (3,))}
    """
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"`axis` must be an integer, got axis={axis!r}")

    def axes_of(leaf: Any) -> Any:
        ndim = np.ndim(leaf)
        if ndim < 2 or not -ndim <= axis < ndim:
            return None
        output = int(axis) % ndim
        return tuple(a for a in range(ndim) if a != output), (output,)

    def read(params: Any) -> Any:
        check_is_params("output_matrices(...)", params)
        return jax.tree.map(axes_of, params)

    return read


# The default of options, as a configuration writes it: `optax.inject_hyperparams` would
# call the callable that it stands for with the step count.
OUTPUT_MATRICES: PerLeaf = {"name": "output_matrices", "axis": -1}


def check_matrices(matrices: PerLeaf) -> None:
    """Raises at build time if `matrices` cannot be the axes of any leaf."""
    check_per_leaf("matrices", _default(matrices), _check)


def resolve_matrices(matrices: PerLeaf, tree: Any) -> list[Matrices | None]:
    """Reads `matrices` for each leaf of `tree`.

    Args:
      matrices: `(input axes, output axes)` or None, per leaf; each an axis or a tuple
        of axes. Optax's `MuonDimensionNumbers` is such a pair. A plain value falls
        back to None on leaves that lack one of the axes.
      tree: params or updates.

    Raises:
      TypeError: for a value that is no such pair.
      ValueError: for an axis that a leaf lacks, or that is named twice.
    """
    matrices = _default(matrices)
    pairs = per_leaf("matrices", matrices, tree, None, _check)
    unions = [None if pair is None else sum(map(_axes, pair), ()) for pair in pairs]
    is_plain = not callable(matrices) and not isinstance(matrices, Mapping)
    treedef = jax.tree.structure(tree)
    axes = resolve_axes(
        unions[0] if is_plain and unions else lambda tree: treedef.unflatten(unions),
        tree,
        "matrices",
    )
    return [
        None if union is None else _sorted(pair, np.ndim(leaf))
        for pair, union, leaf in zip(pairs, axes, jax.tree.leaves(tree), strict=True)
    ]


def _default(matrices: PerLeaf) -> PerLeaf:
    return output_matrices() if matrices is OUTPUT_MATRICES else matrices


def _sorted(pair: Any, ndim: int) -> Matrices:
    return Matrices(*(tuple(sorted(a % ndim for a in _axes(one))) for one in pair))


def _axes(axes: Any) -> tuple[int, ...]:
    is_one = isinstance(axes, int | np.integer)
    return (int(axes),) if is_one else tuple(map(int, axes))


def _check(option: str, value: Any, where: str) -> None:
    if value is None:
        return
    place = f" at {where!r}" if where else ""
    if not isinstance(value, tuple | list) or len(value) != 2 or None in value:
        raise TypeError(
            f"`{option}` must be (input axes, output axes) such as ((0,), (1,)) or "
            f"None, got {option}={value!r}{place}"
        )
    for one in value:
        check_channel_axes(one, option)
        if not isinstance(one, int | np.integer) and not len(one):
            raise ValueError(
                f"`{option}` needs an input and an output axis at least, got "
                f"{option}={value!r}{place}"
            )
    union = sum(map(_axes, value), ())
    if len(set(union)) < len(union):
        raise ValueError(f"`{option}` names an axis twice: {value!r}{place}")


def shape_factors(scale: PerLeaf, matrices: PerLeaf) -> Callable[[Any], Any]:
    """Gives the factor of each leaf that a `scale` names; 1 for leaves without.

    Args:
      scale: "shape", "rms", "spectral", None for 1, or a number of at least 0; per
        leaf.
      matrices: the axes, per leaf.

    Returns:
      A callable for a per-leaf option: params to a tree of factors.

    Raises:
      TypeError: for a scale of another type.
      ValueError: for a name that is not known, or a negative number.
    """
    check_per_leaf("scale", scale, check_scale)

    def read(params: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        scales = per_leaf("scale", scale, params, None, check_scale)
        found = resolve_matrices(matrices, params)
        return treedef.unflatten(
            1.0 if one is None else _factor(of_leaf, *one.sizes(np.shape(leaf)))
            for leaf, of_leaf, one in zip(leaves, scales, found, strict=True)
        )

    return read


_FACTORS: dict[str, Callable[[int, int], float]] = {
    "shape": lambda inputs, outputs: max(1, outputs / inputs) ** 0.5,
    "rms": lambda inputs, outputs: 0.2 * max(inputs, outputs) ** 0.5,
    "spectral": lambda inputs, outputs: (outputs / inputs) ** 0.5,
}


def _factor(scale: Any, inputs: int, outputs: int) -> Any:
    if scale is None:
        return 1.0
    return _FACTORS[scale](inputs, outputs) if isinstance(scale, str) else scale


def check_scale(option: str, scale: Any, where: str) -> None:
    """Raises unless `scale` is None, a name or a number of at least 0."""
    if isinstance(scale, str) and scale not in _FACTORS:
        place = f" at {where!r}" if where else ""
        raise ValueError(
            f"`{option}` must be one of {', '.join(_FACTORS)}, a number or None, got "
            f"{option}={scale!r}{place}"
        )
    if scale is not None and not isinstance(scale, str):
        check_not_negative(option, scale, where)
