"""Links that set or bound the norm of a block of the updates."""

import math
from typing import Any

import jax.numpy as jnp
import optax

from normopt.checks import check_number
from normopt.leafwise import Option, leafwise
from normopt.norms import norm_of
from normopt.numerics import safe_quotient
from normopt.rules import PerLeaf


def normalize_blocks(
    norm: str = "l2", channel_axes: PerLeaf = (), eps: float = 1e-7
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each block of the updates by its norm.

    .. math:: g_b \leftarrow \frac{g_b}{\mathrm{norm}(g_b) + \epsilon}

    A *leaf* is one parameter array, and a *block* is a slice of a leaf, such as the
    weights of one output channel. The option `channel_axes` selects the blocks.

    A block of norm 0 becomes zero, for every `eps`. With the norm `std` this happens if
    all elements of the block are equal, up to rounding. A block of one element has no
    standard deviation, so with `std` it stays unchanged.

    Norms are computed in float32 or wider, and are right for gradients from 1e-30 to
    1e30. With the default `eps` of 1e-7, the result is shorter than 1 if the norm of
    the gradient is not much larger than 1e-7. Derivatives through this link contain 1 /
    norm^2. So they are right only for norms from 1e-15 to 1e15. For a block of zeros
    they are finite.

    Args:
      norm: a name of `norm_names()`, or a norm object such as `spectral()`. The
        formulas are in `block_norms`.
      channel_axes: the axes that index a leaf's blocks: `()` for the whole leaf,
        `(-1,)` for the output channels of a Flax kernel, `(0, -1)` for those of a stack
        of layers, None for no blocks. *Per leaf* means that you can pass one value for
        all leaves, a mapping `{pattern: axes}` by path, or a callable from params to a
        tree of axes, such as `output_channels()`. With one value, a leaf that does not
        have all of these axes has no blocks. If there is no leaf that has all of them,
        the axes do not fit: this is an error. With a mapping or a callable, each leaf
        must have all axes that are given for it; otherwise the axes do not fit. A leaf
        that no pattern matches has no blocks, and neither has an integer or empty leaf.
        Leaves without blocks stay unchanged.
      eps: added to the norm, in the unit of the gradient; at least 0.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for an unknown norm or a negative `eps`. At init, for axes
        that do not fit (see `channel_axes`), or a pattern that matches no path. At
        update, with params of another shape.

    Examples:
      Every block becomes a block of norm 1:

      >>> import jax.numpy as jnp
      >>> link = normopt.normalize_blocks(channel_axes=(-1,), eps=0.0)
      >>> grads = jnp.array([[3.0, 0.0], [4.0, 1e-30]])
      >>> updates, _ = link.update(grads, link.init(grads))
      >>> [round(float(n), 5) for n in normopt.block_norms(updates, (-1,))]
      [1.0, 1.0]

    References:
      Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
      Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822,
      Algorithm 1.
    """
    found = norm_of(norm)
    check_number("eps", eps, 0)
    return leafwise(
        "normalize_blocks",
        _normalize,
        channel_axes=channel_axes,
        resolve=found.resolve,
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (eps,),
        static={"measure": found.measure},
    )


def _normalize(g, w, axes, option, kept, shared, *, measure):
    length = measure(g, axes)
    # A block without length would be divided by eps alone, which may be zero.
    length = jnp.where(length == 0, 0, length + shared[0])
    return g * safe_quotient(1, length), kept


def clip_blocks(
    max_norm: PerLeaf,
    norm: str = "l2",
    channel_axes: PerLeaf = (),
    eps: float = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales down each block of the updates whose norm is above `max_norm`.

    .. math::
      g_b \leftarrow g_b \min\!\left(1,
        \frac{\mathrm{max\_norm}}{\mathrm{norm}(g_b) + \epsilon}\right)

    A block of one element has no standard deviation, so with the norm `std` it is not
    clipped.

    Args:
      max_norm: the largest norm that a block may have, in the unit of the gradient,
        above 0, per leaf. Leaves that no pattern matches are not clipped.
      norm: a name of `norm_names()`, or a norm object such as `spectral()`. The
        formulas are in `block_norms`.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      eps: added to the norm; at least 0.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for an unknown norm, a `max_norm` that is not positive or
        a negative `eps`. At init, for axes that do not fit (see `normalize_blocks`), or
        a pattern that matches no path. At update, with params of another shape.

    Examples:
      A long block is clipped to `max_norm`, a short one stays unchanged:

      >>> import jax.numpy as jnp
      >>> link = normopt.clip_blocks(0.5)
      >>> grads = {"long": jnp.array([3.0, 4.0]), "short": jnp.array([0.3, 0.0])}
      >>> updates, _ = link.update(grads, link.init(grads))
      >>> lengths = normopt.block_norms(updates)
      >>> round(float(lengths["long"]), 5), round(float(lengths["short"]), 5)
      (0.5, 0.3)

    References:
      The ClippedOptimizer of the block-normalized gradient method's Keras
      implementation: each variable by its own norm, never by a global one.
    """
    found = norm_of(norm)
    check_number("eps", eps, 0)
    return leafwise(
        "clip_blocks",
        _clip,
        channel_axes=channel_axes,
        resolve=found.resolve,
        options={"max_norm": Option(max_norm, math.inf, _check_max_norm)},
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (eps,),
        static={"measure": found.measure},
    )


def _clip(g, w, axes, option, kept, shared, *, measure):
    (max_norm,), (eps,) = option, shared
    length = measure(g, axes) + eps
    is_long = length > max_norm
    # Where nothing is cut, a length of zero must not be divided by. The division stands
    # last, as in `safe_quotient`.
    return g * (jnp.where(is_long, max_norm, 1) / jnp.where(is_long, length, 1)), kept


def _check_max_norm(option: str, value: Any, where: str) -> None:
    check_number(option, value, above=0, finite=False, where=where)
