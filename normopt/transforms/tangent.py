"""Links whose output, or momentum, is orthogonal to the weights."""

from typing import Any, NamedTuple

import jax
import optax

from normopt.blocks import radial_factor, resolve_proper_axes
from normopt.checks import check_flag, check_moment_dtype, check_number
from normopt.keeping import PerElement, moment_dtype
from normopt.leafwise import leafwise
from normopt.rules import PerLeaf


def project_tangent(channel_axes: PerLeaf) -> optax.GradientTransformationExtraArgs:
    r"""Removes the radial part of the updates, which is their part along the weights.

    .. math:: u_b \leftarrow u_b - \frac{\langle u_b, w_b \rangle}{\|w_b\|^2} w_b

    The remaining update of a block is orthogonal to its weights. Weights that are all
    zero have no radial direction, so their update stays unchanged.

    Args:
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, stay
        unchanged.

    Returns:
      A link without state. Its `update` needs `params` if a leaf has blocks. Updates
      keep their structure and shapes, and get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if the axes have the wrong type.
      ValueError: at init, for axes that do not fit (see `normalize_blocks`), or a
        pattern that matches no path. At update, without `params` or with params of
        another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> link = normopt.project_tangent(())
      >>> grads, params = jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0])
      >>> updates, _ = link.update(grads, link.init(params), params)
      >>> bool(abs(updates @ params) < 1e-6)
      True

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, section 2.
    """
    return leafwise(
        "project_tangent",
        _project,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
    )


def _project(u, w, axes, option, kept, shared):
    return tangent_part(u, w, axes), kept


class TraceOnTangentState(NamedTuple):
    """State of `trace_on_tangent`."""

    trace: Any  # params' structure and shapes, in `accumulator_dtype`


def trace_on_tangent(
    decay: float,
    dampening: float = 0.0,
    channel_axes: PerLeaf = None,
    *,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Accumulates momentum; the old momentum loses its part along the weights.

    .. math::
      m \leftarrow \beta P(m) + (1 - \delta) g, \qquad
      P(m) = m - \frac{\langle m, w \rangle}{\|w\|^2} w

    P removes the part of the old momentum along the present weights. The gradient is
    not projected. For leaves without blocks P(m) is m, so with :math:`\delta = 0` the
    link is the same as `optax.trace`.

    Args:
      decay: the decay of the momentum, :math:`\beta`, in [0, 1).
      dampening: :math:`\delta`, in [0, 1); also at the first step.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, have
        plain momentum.
      nesterov: whether to use Nesterov momentum: the update is then :math:`g + \beta m`
        instead of m.
      accumulator_dtype: dtype of the momentum of real leaves; None for the dtype of the
        leaf.

    Returns:
      A link whose `update` needs `params` if a leaf has blocks. Its state is a
      `TraceOnTangentState`. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params` or with params of another shape.

    Examples:
      The weights have turned by 90 degrees. So the old momentum is radial now, and is
      removed:

      >>> import jax.numpy as jnp
      >>> link = normopt.trace_on_tangent(0.9, channel_axes=())
      >>> east, north = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> _, state = link.update(north, link.init(east), east)
      >>> updates, _ = link.update(east, state, north)
      >>> updates.tolist()
      [1.0, 0.0]

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, SGD-MRT.
    """
    check_number("decay", decay, 0, below=1)
    check_number("dampening", dampening, 0, below=1)
    check_moment_dtype("accumulator_dtype", accumulator_dtype)
    check_flag("nesterov", nesterov)
    return leafwise(
        "trace_on_tangent",
        _accumulate,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        reads_weights=lambda leaf: leaf.has_blocks,
        state=TraceOnTangentState,
        keeps={"trace": PerElement(moment_dtype(accumulator_dtype))},
        share=lambda state: (decay, 1 - dampening),
        static={"nesterov": nesterov},
    )


def _accumulate(g, w, axes, option, kept, shared, *, nesterov):
    (m,), (decay, share) = kept, shared
    past = m if axes is None else tangent_part(m, w, axes)
    m = decay * past + share * g
    return g + decay * m if nesterov else m, (m,)


def tangent_part(x: jax.Array, w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Removes from each block of `x` what is parallel to `w`."""
    return x - radial_factor(x, w, axes) * w
