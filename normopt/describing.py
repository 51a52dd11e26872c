"""What each leaf will get, as a table to read before a GPU is spent on it."""

import math
from typing import Any

import jax
import numpy as np

from normopt.blocks import Axes, block_size, check_channel_axes, resolve_axes
from normopt.checks import check_not_negative, check_radius
from normopt.norms import block_norm
from normopt.paths import places
from normopt.rules import PerLeaf, check_per_leaf, per_leaf


def describe(
    params: Any,
    *,
    channel_axes: PerLeaf = None,
    weight_decay: PerLeaf = 0.0,
    l1: PerLeaf = 0.0,
    lr_multipliers: PerLeaf = 1.0,
    radius: PerLeaf = None,
) -> str:
    r"""Tells what per-leaf options mean for each leaf, one row a leaf.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s of `jax.eval_shape`.
      channel_axes: the axes that index a leaf's blocks, per leaf.
      weight_decay: a decay per step that is decoupled from the learning rate, at least
        0, per leaf; its half-life is :math:`\ln 2 / -\ln(1 - \lambda)` steps.
      l1: an L1 decay, at least 0, per leaf.
      lr_multipliers: factors of the learning rate, at least 0, per leaf.
      radius: that of `retract_to_sphere`, per leaf: a number, `"initial"` (as in
        `hyperball` and `rotational`), `"present"`, or None for no such column. Of a
        word the lengths that the blocks have are shown, and how many have none.

    Returns:
      A table: path, shape, dtype, axes, number and size of blocks, multiplier, decay
      and its half-life, and the radius if one is given; a last line with the totals.

    Raises:
      TypeError: if a value has the wrong type.
      ValueError: for a bad value, an axis that does not exist, a pattern that matches
        no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)}
      >>> print(normopt.describe(params, channel_axes={"kernel": (-1,)},
      ...                        weight_decay={"kernel": 0.01}))
      path    shape   dtype    axes  blocks  multiplier  decay  half-life
      bias    (8,)    float32  None  -       1           0      -
      kernel  (3, 8)  float32  (1,)  8 of 3  1           0.01   69 steps
      2 leaves, 32 parameters, 8 blocks
    """
    check_channel_axes(channel_axes)
    options = {"weight_decay": weight_decay, "l1": l1, "lr_multipliers": lr_multipliers}
    for option, value in options.items():
        check_per_leaf(option, value, check_not_negative)
    check_per_leaf("radius", radius, check_radius)
    axes = resolve_axes(channel_axes, params)
    radii = per_leaf("radius", radius, params, None, check_radius)
    decays = per_leaf("weight_decay", weight_decay, params, 0.0, check_not_negative)
    l1s = per_leaf("l1", l1, params, 0.0, check_not_negative)
    multipliers = per_leaf(
        "lr_multipliers", lr_multipliers, params, 1.0, check_not_negative
    )

    rows = [
        ("path", "shape", "dtype", "axes", "blocks", "multiplier", "decay", "half-life")
    ]
    columns = len(rows[0]) + (radius is not None)
    rows = [(*rows[0], "radius")[:columns]]
    number_of_blocks = number_of_parameters = 0
    for place, own, multiplier, decay, sparsity, length in zip(
        places(params), axes, multipliers, decays, l1s, radii, strict=True
    ):
        shape = np.shape(place.leaf)
        number_of_parameters += math.prod(shape)
        blocks = "-"
        if own is not None:
            size = block_size(shape, own)
            number_of_blocks += math.prod(shape) // size
            blocks = f"{math.prod(shape) // size} of {size}"
        l1_part = f" + l1 {float(sparsity):g}" if float(sparsity) else ""
        rows.append(
            (
                place.path,
                str(shape),
                str(place.leaf.dtype),
                str(own),
                blocks,
                f"{float(multiplier):g}",
                f"{float(decay):g}{l1_part}",
                _half_life(float(decay)),
                _radius(place.leaf, own, length),
            )[:columns]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    totals = (
        f"{len(rows) - 1} leaves, {number_of_parameters:,} parameters, "
        f"{number_of_blocks:,} blocks"
    )
    return "\n".join([*lines, totals])


def _radius(leaf: Any, axes: Axes, radius: Any) -> str:
    if axes is None or radius is None or block_size(np.shape(leaf), axes) == 1:
        return "-"
    if not isinstance(radius, str):
        return f"{float(radius):g}"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return radius
    lengths = np.asarray(block_norm("l2", leaf, axes), np.float64)
    present = lengths[lengths > 0]
    missing = lengths.size - present.size
    parts = [f"{present.min():.3g} to {present.max():.3g}"] if present.size else []
    return ", ".join(parts + ([f"{missing} without length"] if missing else []))


def _half_life(decay: float) -> str:
    if decay == 0:
        return "-"
    steps = 1.0 if decay >= 0.5 else math.log(2) / -math.log1p(-decay)
    return f"{steps:,.0f} steps"
