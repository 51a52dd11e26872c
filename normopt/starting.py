"""Changes weights before the first step, which an optimizer cannot do."""

from typing import Any

import jax
import jax.numpy as jnp

from normopt.blocks import check_channel_axes, resolve_proper_axes
from normopt.checks import check_number
from normopt.norms import block_norm
from normopt.numerics import safe_quotient, widened
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.transforms.centering import without_mean


def on_sphere(params: Any, channel_axes: PerLeaf, radius: PerLeaf = 1.0) -> Any:
    r"""Rescales each block of the weights to a given length, and keeps its direction.

    .. math:: w_b \leftarrow \mathrm{radius} \frac{w_b}{\|w_b\|}

    Use it before `retract_to_sphere`, so that training starts on the sphere. A block of
    zeros has no direction and stays unchanged.

    Args:
      params: the weights.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, stay
        unchanged.
      radius: the new length, per leaf: a number above 0, or None, which leaves a leaf
        unchanged. Leaves that no pattern matches stay unchanged, too.

    Returns:
      Params of the same structure, shapes and dtypes.

    Raises:
      TypeError: if an option has the wrong type.
      ValueError: for a radius that is not positive, axes that do not fit (see
        `normalize_blocks`), or a pattern that matches no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> normopt.on_sphere(jnp.array([3.0, 4.0]), (), radius=10.0).tolist()
      [6.0, 8.0]
    """
    check_channel_axes(channel_axes)
    check_per_leaf("radius", radius, _check_radius)
    weights, treedef = jax.tree.flatten(params)
    axes = resolve_proper_axes(channel_axes, params)
    radii = per_leaf("radius", radius, params, None, _check_radius)
    return treedef.unflatten(
        w if own is None or length is None else _with_length(w, own, length)
        for w, own, length in zip(weights, axes, radii, strict=True)
    )


def _with_length(w: jax.Array, axes: tuple[int, ...], length: Any) -> jax.Array:
    unit = widened(w) * safe_quotient(1, block_norm("l2", w, axes))
    return (length * unit).astype(w.dtype)


def centered(params: Any, channel_axes: PerLeaf) -> Any:
    r"""Makes the mean of every block of the weights zero, and keeps the block's length.

    .. math::
      z_b = w_b - \frac{1}{d} \sum_{i \in b} w_i, \qquad
      w_b \leftarrow \|w_b\| \frac{z_b}{\|z_b\|}

    In training, `center_blocks` then keeps the mean at zero. A block whose elements are
    all equal stays unchanged.

    Args:
      params: the weights.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, stay
        unchanged.

    Returns:
      Params of the same structure, shapes and dtypes.

    Raises:
      TypeError: if the axes have the wrong type.
      ValueError: for axes that do not fit (see `normalize_blocks`), or a pattern that
        matches no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = normopt.centered(jnp.array([1.0, 7.0]), ())
      >>> [round(float(w), 4) for w in params]
      [-5.0, 5.0]

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212.
    """
    check_channel_axes(channel_axes)
    weights, treedef = jax.tree.flatten(params)
    axes = resolve_proper_axes(channel_axes, params)
    return treedef.unflatten(
        w if own is None else _centered(w, own)
        for w, own in zip(weights, axes, strict=True)
    )


def _centered(w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    wide, length = widened(w), block_norm("l2", w, axes)
    rest = without_mean(wide, axes)
    left = block_norm("l2", rest, axes)
    # What rounding leaves of equal elements is no direction.
    has_direction = left > 8 * jnp.finfo(left.dtype).eps * length
    unit = rest * safe_quotient(1, left)
    return jnp.where(has_direction, unit * length, wide).astype(w.dtype)


def _check_radius(option: str, value: Any, where: str) -> None:
    if value is not None:
        check_number(option, value, above=0, where=where)
