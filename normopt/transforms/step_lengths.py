"""Links that set or bound the norm of the step of a block."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.checks import check_number
from normopt.leafwise import around, leafwise
from normopt.norms import block_norm
from normopt.numerics import safe_quotient
from normopt.rules import PerLeaf


class BoundRelativeStepState(NamedTuple):
    """State of `bound_relative_step` if a bound is a schedule."""

    count: jax.Array  # int32 scalar: updates done


def bound_relative_step(
    channel_axes: PerLeaf = (),
    floor: optax.ScalarOrSchedule = 0.0,
    ceiling: optax.ScalarOrSchedule = math.inf,
    *,
    min_norm: float = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds the norm of each block's step, relative to the norm of its weights.

    .. math::
      u_b \leftarrow \frac{u_b}{\|u_b\|} \min(\max(\|u_b\|, \mathrm{floor} \, n_b),
        \mathrm{ceiling} \, n_b), \qquad n_b = \max(\|w_b\|, \mathrm{min\_norm})

    Put this link after the learning rate. If floor = ceiling, this number is the
    relative norm of every step. A step of zero has no direction and stays zero. If the
    floor is above the ceiling, the ceiling holds.

    Args:
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      floor: the smallest norm of a step relative to the weights, at least 0: a number
        or a schedule of the step count.
      ceiling: the largest norm of a step relative to the weights, at least 0, a number
        or a schedule; infinity for no bound.
      min_norm: the smallest :math:`n_b`, in the unit of the weights, at least 0; it
        replaces smaller norms. With a `min_norm` of 0, weights of zero stay zero.

    Returns:
      A link whose `update` needs `params` if a leaf has blocks. Its state is a
      `BoundRelativeStepState` if a bound is a schedule; otherwise it is empty. Updates
      keep their structure and shapes, and get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a negative number. At init, for axes that do not fit
        (see `normalize_blocks`), or a pattern that matches no path. At update, without
        `params` or with params of another shape.

    Examples:
      No step turns a block by more than about a hundredth of a radian:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(optax.sgd(1.0), normopt.bound_relative_step(ceiling=0.01))
      >>> params = jnp.array([30.0, 40.0])
      >>> for grads in (jnp.array([3.0, 4.0]), jnp.array([0.0, 0.3])):
      ...     updates, _ = tx.update(grads, tx.init(params), params)
      ...     print(round(float(normopt.block_norms(updates)), 4))
      0.5
      0.3

    References:
      With floor = ceiling, the relative update of NVIDIA-NeMo/Emerging-Optimizers.
    """
    if not callable(floor):
        check_number("floor", floor, 0)
    if not callable(ceiling):
        check_number("ceiling", ceiling, 0, finite=False)
    check_number("min_norm", min_norm, 0)
    bounds: tuple[Any, ...] = (floor, ceiling)
    follows = any(map(callable, bounds))

    def share(state: Any) -> tuple[Any, ...]:
        # The count is already that of this step; a schedule begins at 0.
        now = (one(state.count - 1) if callable(one) else one for one in bounds)
        return (*now, min_norm)

    return leafwise(
        "bound_relative_step",
        _bound,
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        state=BoundRelativeStepState if follows else optax.EmptyState,
        start=lambda: {"count": jnp.zeros([], jnp.int32)} if follows else {},
        share=share,
        stores=True,
    )


def _bound(u, w, axes, option, kept, shared):
    floor, ceiling, min_norm = shared
    length = block_norm("l2", u, axes)
    unit = jnp.maximum(block_norm("l2", w, axes), min_norm)
    # An infinite bound of weights without length would be 0 times infinity.
    least = jnp.where(floor > 0, floor * unit, 0)
    most = jnp.where(ceiling == jnp.inf, jnp.inf, jnp.maximum(ceiling, 0) * unit)
    wanted = jnp.minimum(jnp.maximum(length, least), most)
    bounded = u * safe_quotient(1, length) * wanted
    return jnp.where(wanted == length, u, bounded), kept


def keep_norm(
    inner: optax.GradientTransformation, channel_axes: PerLeaf = ()
) -> optax.GradientTransformationExtraArgs:
    r"""Lets `inner` change the direction of each block of the updates, not its norm.

    .. math:: u_b = \mathrm{inner}(g)_b, \qquad
      u_b \leftarrow \frac{\|g_b\|}{\|u_b\|} u_b

    Use it around a link that should only change the ratios between the elements of a
    block. Elements that `inner` sets to zero stay zero.

    Args:
      inner: an optimizer or a link.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks get the output of `inner` unchanged.

    Returns:
      A transformation whose state is that of `inner`. Updates keep their structure and
      shapes, and get the dtype of inner's output.

    Raises:
      TypeError: when built, if `inner` is not a transformation or the axes have the
        wrong type.
      ValueError: at init, for axes that do not fit (see `normalize_blocks`), or a
        pattern that matches no path. At update, with params of another shape.

    Examples:
      `inner` gives both columns the same norm, and the matrix keeps its norm of 5:

      >>> import jax.numpy as jnp
      >>> columns = normopt.normalize_blocks(channel_axes=(-1,), eps=0.0)
      >>> link = normopt.keep_norm(columns)
      >>> grads = jnp.array([[3.0, 0.0], [0.0, 4.0]])
      >>> updates, _ = link.update(grads, link.init(grads))
      >>> [round(float(n), 4) for n in normopt.block_norms(updates, (-1,))]
      [3.5355, 3.5355]
      >>> round(float(normopt.block_norms(updates)), 4)
      5.0

    References:
      Li et al., "NorMuon: Making Muon more efficient and scalable", 2025, arXiv
      2510.05491, which normalizes the rows of an orthogonal matrix in this way.
    """
    return around(
        "keep_norm",
        inner,
        _keep_norm,
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
    )


def _keep_norm(g, u, w, axes, option, kept, shared):
    unit = u * safe_quotient(1, block_norm("l2", u, axes))
    return unit * block_norm("l2", g, axes), kept
