"""Norms of a block, their dual directions, and the registry of their names.

A built-in norm is written once, on a whole leaf, with sums per block. All of them are
homogeneous, norm(c x) = c norm(x) for c > 0. So `block_norm` can measure blocks of
1e-30 and of 1e30 in float32: where there are squares, it divides the block by its
largest element, or nearly so, measures it, and multiplies back. With that a step of
`normalized(optax.adam)` takes 1.35 times as long as one of optax.adamw on ResNet-18's
shapes. Two alternatives were worse. A branch for extreme blocks alone makes a GPU wait
for its host, and 62 branches, one per leaf, took half of the time to compile. Sums of
squares at three scales made the step 1.3 to 1.8 times as long on a CPU, and moved as
many bytes on a TPU:

    python -m experiments step_time --optimizers normalized clipped
    python -m experiments gpu_compile
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.blocks import (
    block_size,
    block_sum,
    check_channel_axes,
    per_block,
    reduce_blocks,
    resolve_axes,
)
from normopt.checks import check_moment_dtype
from normopt.copies import Alone
from normopt.matrices import (
    OUTPUT_MATRICES,
    Matrices,
    check_matrices,
    resolve_matrices,
)
from normopt.numerics import safe_quotient, safe_sqrt, widened
from normopt.orthogonal import largest_stretch, polar_factor, triples_of
from normopt.paths import params_like
from normopt.rules import PerLeaf

BlockAxes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Norm:
    r"""A norm of the blocks of a leaf, and where it has one, its dual.

    The dual of a block g is the direction d of steepest ascent: of all d with
    :math:`\mathrm{norm}(d) \le 1` one with the largest :math:`\langle g, d \rangle`.

    Attributes:
      measure: from a leaf and its channel axes to one number for each block, with the
        dimensions of the leaf.
      dual: from a leaf, its channel axes and an eps, which is added to what the leaf is
        divided by, to a leaf of the same shape; zero for blocks of zeros. None for a
        norm without.
      needs_two: whether blocks of one element have no such length at all, and leaves of
        them count as leaves without blocks.
      batched: whether leaves of one shape are worked on together.
    """

    measure: Callable[[jax.Array, Any], jax.Array]
    dual: Callable[[jax.Array, Any, Any], jax.Array] | None = None
    needs_two: bool = False
    batched: bool = False

    def resolve(self, channel_axes: PerLeaf, tree: Any) -> list[Any]:
        """Reads the axes of each leaf, None for leaves without blocks."""
        resolved = resolve_axes(channel_axes, tree)
        if not self.needs_two:
            return resolved
        return [
            None if axes is None or block_size(np.shape(leaf), axes) == 1 else axes
            for axes, leaf in zip(resolved, jax.tree.leaves(tree), strict=True)
        ]

    def indices(self, axes: Any, ndim: int) -> BlockAxes:
        """Gives the axes of a leaf that index what `measure` measures."""
        del ndim
        return axes


@dataclasses.dataclass(frozen=True)
class _Spectral(Norm):
    """The norm of matrices; see `spectral`."""

    matrices: PerLeaf = None

    def resolve(self, channel_axes: PerLeaf, tree: Any) -> list[Any]:
        """Reads the axes of the matrices, of leaves whose channel axes are not None."""
        axes = resolve_axes(channel_axes, tree)
        found = resolve_matrices(self.matrices, tree)
        return [
            None if own is None else one for own, one in zip(axes, found, strict=True)
        ]

    def indices(self, axes: Matrices, ndim: int) -> BlockAxes:
        """Gives the axes that index the matrices."""
        return axes.stack(ndim)


def spectral(
    matrices: PerLeaf = OUTPUT_MATRICES,
    *,
    steps: int = 5,
    coefficients: Any = "quintic",
    dtype: Any = None,
) -> Norm:
    r"""Makes the spectral norm of matrices, which is their largest singular value.

    .. math::
      \mathrm{norm}(W) = \max_x \frac{\|W x\|}{\|x\|}, \qquad
        \mathrm{dual}(U S V^T) = U V^T

    The dual is the steepest direction in this norm, as `steepest` defines it.
    `orthogonalize` approximates the dual.

    Args:
      matrices: `(input axes, output axes)` or None, per leaf; see `orthogonalize`. The
        blocks are these matrices, for any `channel_axes` of a link. But a leaf whose
        `channel_axes` are None stays unchanged.
      steps: the number of iterations; see `orthogonalize`.
      coefficients: see `orthogonalize`.
      dtype: see `orthogonalize`.

    Returns:
      A norm object, for every option `norm` or `norms`. The name "spectral" means this
      norm with default options.

    Raises:
      TypeError: if an option has the wrong type.
      ValueError: as `orthogonalize` does.

    Examples:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.diag(jnp.array([3.0, 4.0]))
      >>> normopt.block_norms(kernel, norm=normopt.spectral()).item()
      4.0

    References:
      Bernstein and Newhouse, "Old Optimizer, New Norm: An Anthology", 2024, arXiv
      2409.20325, Proposition 5.
    """
    check_matrices(matrices)
    check_moment_dtype("dtype", dtype)
    dual = _polar_dual(triples_of(steps, coefficients), dtype)
    return _Spectral(largest_stretch, dual, batched=True, matrices=matrices)


def register_norm(name: str, fn: Callable[[jax.Array], jax.Array] | Norm) -> None:
    r"""Registers your own norm under a name, for links, optimizers and `make`.

    Args:
      name: the name to use as `norm=`. It may replace a name that you registered
        before, but not a built-in one.
      fn: a function from one block to a scalar. The block is a float32 (or wider) array
        of any shape, without its channel axes; for complex leaves it is complex.
        `jax.vmap` applies the function to all blocks. Instead of a function you can
        pass a norm object such as `spectral(...)`. Its method
        `measure(x, channel_axes)` returns one number for each block of the leaf x, with
        the shape of a sum with `keepdims=True`. For `steepest` and `scion`, the object
        also needs a method `dual(x, channel_axes)` or `dual(x, channel_axes, eps)`.
        This method returns the steepest direction of each block, as `steepest` defines
        it: an array with the shape of x.

    Raises:
      TypeError: if `name` is not a string, or `fn` is neither callable nor a norm. At
        the first use, if `fn` does not return one real number.
      ValueError: if `name` is the name of a built-in norm.

    Examples:
      >>> import jax.numpy as jnp
      >>> normopt.register_norm("median", lambda block: jnp.median(jnp.abs(block)))
      >>> normopt.block_norms(jnp.array([1.0, -2.0, 9.0]), norm="median").item()
      2.0
    """
    if not isinstance(name, str) or not (callable(fn) or _is_norm(fn)):
        raise TypeError(
            f"register_norm needs a name and a function, got {name!r} and {fn!r}"
        )
    if name in _BUILT_IN:
        raise ValueError(
            f"{name!r} is a built-in norm; register yours under another name"
        )
    _CUSTOM[name] = fn


def norm_names() -> list[str]:
    """Lists the names of all norms: the built-in ones, then the registered ones.

    Examples:
      >>> normopt.norm_names()[:3]
      ['l1', 'l2', 'l1_l2']
    """
    return [*_BUILT_IN, *_CUSTOM]


def norm_of(norm: Any, option: str = "norm") -> Norm:
    """Gives the norm of a name, or a norm itself.

    It is the same for the same name, also of one registered before, so that programs
    that hold its functions are found again.

    Raises:
      TypeError: if `norm` is neither a name nor a norm.
      ValueError: with the names that are known, if it is a name and none of them.
        Registered norms live in the process: one that reads a configuration with a
        custom norm has to call `register_norm` first.
    """
    if isinstance(norm, str):
        if norm not in norm_names():
            raise ValueError(
                f"unknown norm {norm!r}; known are {', '.join(norm_names())}. A norm "
                "of your own has to be registered with normopt.register_norm(name, fn) "
                "before the optimizer is built"
            )
        return _named(norm, _CUSTOM.get(norm))
    if not _is_norm(norm):
        raise TypeError(
            f"`{option}` must be a name of norm_names() or a norm with a method "
            f"`measure(x, channel_axes)`, got {option}={norm!r}"
        )
    if isinstance(norm, Norm):
        return norm
    dual = getattr(norm, "dual", None)
    if dual is not None and len(inspect.signature(dual).parameters) == 2:
        dual = _WithoutEps(dual)
    return Norm(Alone(norm.measure), None if dual is None else Alone(dual))


@dataclasses.dataclass(frozen=True)
class _WithoutEps:
    """A dual that takes no eps."""

    dual: Callable[[jax.Array, Any], jax.Array]

    def __call__(self, x: jax.Array, axes: Any, eps: Any) -> jax.Array:
        del eps
        return self.dual(x, axes)


def _is_norm(norm: Any) -> bool:
    return callable(getattr(norm, "measure", None)) and not isinstance(norm, type)


@functools.cache
def _named(norm: str, custom: Any) -> Norm:
    if custom is None and norm == "spectral":
        return spectral()
    if custom is None:
        measure = functools.partial(block_norm, norm)
        return Norm(measure, _DUALS.get(norm), needs_two=norm == "std")
    if _is_norm(custom):
        return norm_of(custom)
    return Norm(functools.partial(_custom_norm, norm, Alone(custom)))


def block_norm(norm: str, x: jax.Array, axes: BlockAxes) -> jax.Array:
    """Measures each block of one leaf.

    Args:
      norm: the name of a built-in norm.
      x: one leaf, real or complex, not empty.
      axes: its channel axes, sorted and not negative.

    Returns:
      Real float32 (or wider) norms with the dimensions of `x`, the axes within a block
      of length 1. Zero, with a zero gradient, for a block of zeros.
    """
    x = widened(x)
    measure = _BUILT_IN[norm]
    magnitude = jnp.abs(x) if jnp.iscomplexobj(x) and norm != "std" else x
    if norm not in _WITH_SQUARES:
        return measure(magnitude, axes)
    scale = _scale(magnitude, axes)
    # Not times 1 / scale: of a leaf that is a constant, such as the gradient of what a
    # loss does not use, XLA would take the squares of both apart, and 0 times infinity.
    return scale * measure(magnitude / scale, axes)


def _scale(x: jax.Array, axes: BlockAxes) -> jax.Array:
    """Gives for each block a power of two near its largest element.

    With it numbers are multiplied and divided without rounding. By Euler's theorem it
    does not contribute to the derivative of a norm.
    """
    largest = reduce_blocks(jnp.max, jnp.abs(jax.lax.stop_gradient(x)), axes)
    info = jnp.finfo(largest.dtype)
    # In this range, of 1e-31 to 1e31 in float32, a power of two has an inverse. Zeros
    # and infinities are brought into it, too.
    bounded = jax.lax.clamp(1 / info.max**0.8, largest, info.max**0.8)
    return jax.lax.reduce_precision(bounded, info.nexp, 0)


def block_norms(tree: Any, channel_axes: PerLeaf = (), norm: str = "l2") -> Any:
    r"""Computes the norm of every block of a tree.

    Args:
      tree: params, gradients or updates.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `()` for one block.
      norm: a name of `norm_names()`, or a norm object such as `spectral()`. The name
        "spectral" is that object. The formulas of the other names are `l1`:
        $\sum|x|$; `l2`: $\sqrt{\sum x^2}$; `avg_l1` and `avg_l2`: means instead of
        sums; `l1_l2` and `avg_l1_l2`: the average of the two; `max` or `linf`:
        $\max|x|$; `min_max`: $(\max|x| + \min|x|)/2$; `std`: the standard deviation, 0
        where it is below the rounding of the mean.

    Returns:
      A tree with the structure of `tree`. Each leaf is an array with the norms of its
      blocks. It has the shape of the channel axes and the unit of the leaf, and is
      float32 or wider. Leaves without blocks become None.

    Raises:
      TypeError: if `channel_axes` are not axes, or a leaf is not an array.
      ValueError: for an unknown norm, for axes that do not fit (see
        `normalize_blocks`), or for a pattern that matches no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> [round(float(n), 4) for n in normopt.block_norms(kernel, (-1,))]
      [5.0, 2.0]

    References:
      The norms of the block-normalized gradient method's Keras implementation; Yu et
      al., "Block-Normalized Gradient Method: An Empirical Study for Training Deep
      Neural Network", 2017, arXiv 1707.04822.
    """
    found = norm_of(norm)
    check_channel_axes(channel_axes)
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        None
        if axes is None
        else per_block(found.measure(x, axes), found.indices(axes, x.ndim))
        for x, axes in zip(leaves, found.resolve(channel_axes, tree), strict=True)
    )


def block_angles(old: Any, new: Any, channel_axes: PerLeaf = ()) -> Any:
    r"""Measures the angle between the old and the new weights of every block.

    If u and v are the old and the new block, each divided by its norm, the angle is 2
    atan2(|u - v|, |u + v|). Unlike arccos, this formula is accurate for the small
    angles of a training step.

    Args:
      old: params before the step.
      new: params after the step; the same structure and shapes.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).

    Returns:
      A tree like that of `block_norms`, with angles in radians, in [0, pi]. The angle
      is 0 if the old or the new block is zero.

      **Copy an NNX state before the update**:
      `old = jax.tree.map(jnp.copy, nnx.state(model))`. An update changes the variables
      of the model in place, and the state contains the same variables. Without a copy,
      old and new are equal, and all angles are 0.

    Raises:
      TypeError: as `block_norms` does.
      ValueError: if the trees differ in paths or shapes, and as `block_norms` does.

    Examples:
      >>> import jax.numpy as jnp
      >>> east, north = jnp.array([2.0, 0.0]), jnp.array([0.0, 0.5])
      >>> round(float(normopt.block_angles(east, north)), 4)
      1.5708

      For an NNX model, copy the state before the update:

      >>> import jax
      >>> from flax import nnx
      >>> model = nnx.Dict(weight=nnx.Param(east))
      >>> trap, old = nnx.state(model), jax.tree.map(jnp.copy, nnx.state(model))
      >>> model.weight[...] = north
      >>> for before in (trap, old):
      ...     angles = normopt.block_angles(before, nnx.state(model))
      ...     print(round(float(angles["weight"][...]), 4))
      0.0
      1.5708
    """
    check_channel_axes(channel_axes)
    olds, treedef = jax.tree.flatten(old)
    news = params_like(old, new, "block_angles", ("old", "new"))
    axes = resolve_axes(channel_axes, old)
    return treedef.unflatten(
        None if own is None else per_block(_angle(x, y, own), own)
        for x, y, own in zip(olds, news, axes, strict=True)
    )


def _angle(old: jax.Array, new: jax.Array, axes: BlockAxes) -> jax.Array:
    u, v = _direction(old, axes), _direction(new, axes)
    turned = 2 * jnp.atan2(block_norm("l2", u - v, axes), block_norm("l2", u + v, axes))
    has_length = (block_norm("max", u, axes) > 0) & (block_norm("max", v, axes) > 0)
    return jnp.where(has_length, turned, 0)


def _direction(x: jax.Array, axes: BlockAxes) -> jax.Array:
    length = block_norm("l2", x, axes)
    return widened(x) / jnp.where(length > 0, length, 1)


def _custom_norm(
    norm: str, fn: Callable[[jax.Array], jax.Array], x: jax.Array, axes: BlockAxes
) -> jax.Array:
    x = widened(x)

    def measured(block: jax.Array) -> jax.Array:
        length = jnp.asarray(fn(block))
        if length.ndim or not jnp.issubdtype(length.dtype, jnp.floating):
            raise TypeError(
                f"the norm {norm!r} must map a block to one real number, got "
                f"{length.dtype} of shape {length.shape} for a block of shape "
                f"{block.shape}"
            )
        return length

    kept = tuple(n if axis in axes else 1 for axis, n in enumerate(x.shape))
    for _ in axes:
        measured = jax.vmap(measured)

    def all_blocks(x: jax.Array) -> jax.Array:
        return measured(jnp.moveaxis(x, axes, tuple(range(len(axes))))).reshape(kept)

    # Most norms have no derivative at zero: there it is taken as zero.
    is_zero = reduce_blocks(jnp.max, jnp.abs(x), axes) == 0
    at_zero = jax.lax.stop_gradient(all_blocks(x))
    return jnp.where(is_zero, at_zero, all_blocks(jnp.where(is_zero, 1, x)))


def _l1(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return block_sum(jnp.abs(x), axes)


def _l2(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return safe_sqrt(block_sum(x * x, axes))


def _avg_l1(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return _l1(x, axes) / block_size(x.shape, axes)


def _avg_l2(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return _l2(x, axes) / block_size(x.shape, axes) ** 0.5


def _l1_l2(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return (_l1(x, axes) + _l2(x, axes)) / 2


def _avg_l1_l2(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return (_avg_l1(x, axes) + _avg_l2(x, axes)) / 2


def _max(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return reduce_blocks(jnp.max, jnp.abs(x), axes)


def _min_max(x: jax.Array, axes: BlockAxes) -> jax.Array:
    return (_max(x, axes) + reduce_blocks(jnp.min, jnp.abs(x), axes)) / 2


def _std(x: jax.Array, axes: BlockAxes) -> jax.Array:
    # Seen from one of its elements a block of equal ones is zero, without rounding.
    first = jax.lax.stop_gradient(
        jax.lax.slice(
            x, [0] * x.ndim, [n if a in axes else 1 for a, n in enumerate(x.shape)]
        )
    )
    offset = x - first
    mean = block_sum(offset, axes) / block_size(x.shape, axes)
    deviation = _avg_l2(jnp.abs(offset - mean), axes)
    rounding = jnp.finfo(deviation.dtype).eps * jnp.abs(first + mean)
    return jnp.where(deviation <= rounding, 0, deviation)


def _dual_l1(x: jax.Array, axes: BlockAxes, eps: Any) -> jax.Array:
    del eps
    size = jnp.abs(x)
    most = reduce_blocks(jnp.max, size, axes)
    largest = (size == most) & (size > 0)
    share = safe_quotient(1, block_sum(largest, axes))
    # A NaN stays one, for whoever looks for it.
    return jnp.where(jnp.isnan(most), most, jnp.where(largest, jnp.sign(x) * share, 0))


def _dual_avg_l1(x: jax.Array, axes: BlockAxes, eps: Any) -> jax.Array:
    return _dual_l1(x, axes, eps) * block_size(x.shape, axes)


def _dual_l2(x: jax.Array, axes: BlockAxes, eps: Any) -> jax.Array:
    length = block_norm("l2", x, axes)
    return x * safe_quotient(1, jnp.where(length > 0, length + eps, 0))


def _dual_avg_l2(x: jax.Array, axes: BlockAxes, eps: Any) -> jax.Array:
    length = block_norm("avg_l2", x, axes)
    return x * safe_quotient(1, jnp.where(length > 0, length + eps, 0))


def _dual_max(x: jax.Array, axes: BlockAxes, eps: Any) -> jax.Array:
    del axes, eps
    return jnp.sign(x)


@functools.cache
def _polar_dual(triples: Any, dtype: Any) -> Callable[..., jax.Array]:
    def dual(x: jax.Array, axes: Matrices, eps: Any) -> jax.Array:
        return polar_factor(x, axes, triples, eps, dtype)

    return dual


_BUILT_IN: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "l1": _l1,
    "l2": _l2,
    "l1_l2": _l1_l2,
    "avg_l1": _avg_l1,
    "avg_l2": _avg_l2,
    "avg_l1_l2": _avg_l1_l2,
    "max": _max,
    "linf": _max,
    "min_max": _min_max,
    "std": _std,
    "spectral": largest_stretch,
}
_DUALS: dict[str, Callable[[jax.Array, BlockAxes, Any], jax.Array]] = {
    "l1": _dual_l1,
    "l2": _dual_l2,
    "avg_l1": _dual_avg_l1,
    "avg_l2": _dual_avg_l2,
    "max": _dual_max,
    "linf": _dual_max,
}
_WITH_SQUARES = ("l2", "l1_l2", "avg_l2", "avg_l1_l2", "std")
_CUSTOM: dict[str, Any] = {}
