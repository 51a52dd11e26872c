"""Adam's moments, with one second moment per block, and moments on the sphere.

The weights before a normalization layer have a length without meaning: only their
direction is trained. With `tangent=True` the moments are those of a direction. The
first moment is projected onto the tangent space at the weights, and the second is
rescaled to the gradient at their present length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    across_block,
    block_dot,
    resolve_proper_axes,
    squared_length,
)
from normopt.checks import check_flag, check_moment_dtype, check_number
from normopt.keeping import BlockNumbers, OfBlocks, PerBlock, PerElement, moment_dtype
from normopt.leafwise import leafwise
from normopt.numerics import (
    bounded_sqrt,
    larger,
    largest_root,
    positive_sqrt,
    saturated,
    select,
    smallest_root,
    squared,
)
from normopt.rules import PerLeaf


class ScaleByBlockAdamState(NamedTuple):
    """State of `scale_by_block_adam`."""

    count: jax.Array  # int32 scalar: updates done
    mu: Any  # params' structure and shapes, in `mu_dtype`; None if b1 is a plain 0
    nu: BlockNumbers  # v of each block or element, float32 or wider
    nu_max: BlockNumbers | None = None  # with `amsgrad`: the largest v
    length: Any = None  # with `tangent`: {"path@axes": |w| of the last update}


def scale_by_block_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    channel_axes: PerLeaf = None,
    *,
    tangent: bool = False,
    eps_hat: bool = False,
    amsgrad: bool = False,
    mu_dtype: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales by Adam's moments, with one second moment per block.

    .. math::
      m &\leftarrow b_1 P(m) + (1 - b_1) g \\
      v &\leftarrow b_2 r v + (1 - b_2) \|g\|^2 \\
      g &\leftarrow \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}

    where :math:`\|g\|^2` is the sum over the block, not the average. So the step of a
    block has a norm of about 1. With Adam each element would have a size of about 1;
    `scale_by_block_size` makes up for this difference. Leaves without blocks get plain
    Adam.

    Without `tangent`, P(m) is m and r is 1. With `tangent`,

    .. math::
      P(m) = m - \frac{\langle m, w \rangle}{\|w\|^2} w, \qquad
      r = \frac{\|w_\mathrm{last}\|^2}{\|w\|^2}

    Here `w_last` are the weights at the previous update. P removes the part of m along
    the present weights. Without `tangent`, v is the average of :math:`\|g\|^2`. With
    the factor r, :math:`v \|w\|^2` is the average of :math:`\|g\|^2 \|w\|^2`.
    With P and r, the norm of scale-invariant weights changes nothing but the effective
    learning rate :math:`\eta / \|w\|`.

    With `tangent`, the moments have no meaning for a block whose weights are all zero.
    So such a block forgets its moments at each step: :math:`m \leftarrow (1 - b_1) g`,
    and the root is that of :math:`\|g\|^2`.

    Args:
      b1: decay of the first moment, in [0, 1); if b1 is a plain 0, no first moment is
        stored.
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of a sum over the block, in the unit of the gradient; at
        least 0. A block whose gradients were all zero gets no update, even with eps =
        0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Blocks of one element count as None, which is element-wise
        Adam.
      tangent: whether to use P and r above, so that the moments of a block follow its
        weights. Leaves without blocks have plain Adam in both cases.
      eps_hat: whether to add eps to the root of the uncorrected v, as Keras does:
        :math:`\sqrt{1 - b_2^t} / (1 - b_1^t) \cdot m / (\sqrt{v} + \epsilon)`.
      amsgrad: whether to divide by the root of the largest v so far (with `tangent`, of
        the largest :math:`v \|w\|^2`). The bias is corrected after the maximum is
        taken; optax corrects it before.
      mu_dtype: dtype of the first moment of real leaves; None for the dtype of the
        leaf.
      nesterov: whether to replace m in the last line by :math:`b_1 m + (1 - b_1) g`.

    Returns:
      A link whose `update` needs `params` if `tangent`. Its state is a
      `ScaleByBlockAdamState`. The second moments in it are real, and float32 or wider:
      in bfloat16, with b2 near 1, they would never decrease. With `tangent` the state
      also has |w| of each block, for the next r. Updates keep their structure and
      shapes, and get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), a pattern that matches no path, or two leaves
        of the same path. At update, with params of another shape, or without `params`
        if `tangent`.

    Examples:
      The first step of each column has norm 1, and the state has one second moment for
      each column:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,))
      >>> grads = jnp.array([[3.0, 1e-9], [4.0, 0.0]])
      >>> updates, state = link.update(grads, link.init(grads))
      >>> [round(float(n), 4) for n in normopt.block_norms(updates, (-1,))]
      [1.0, 1.0]
      >>> state.nu.blocks["@1"].shape  # of the path "", channel axis 1
      (2,)

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382 (AdamS, Adam-SRT).
      Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv
      1412.6980, Algorithm 1 and, for `eps_hat`, the end of section 2. Reddi, Kale,
      Kumar, "On the Convergence of Adam and Beyond", 2018, arXiv 1904.09237.
    """
    check_number("b1", b1, 0, below=1)
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    check_moment_dtype("mu_dtype", mu_dtype)
    flags = {"tangent": tangent, "eps_hat": eps_hat, "amsgrad": amsgrad}
    for option, value in {**flags, "nesterov": nesterov}.items():
        check_flag(option, value)

    def share(state: Any) -> tuple[Any, ...]:
        # What both corrections come to: scale m / (sqrt(v) + eps), with an eps of the
        # step. 1 - b is taken before b is a float32.
        correction = 1 - b2**state.count
        scale = jnp.sqrt(correction) / (1 - b1**state.count)
        step_eps = eps if eps_hat else eps * jnp.sqrt(correction)
        return b1, 1 - b1, b2, 1 - b2, scale, step_eps, correction

    second = PerBlock()
    has_mu = has_first_moment(b1)
    kept = {
        "mu": PerElement(moment_dtype(mu_dtype)) if has_mu else None,
        "nu": second,
        "nu_max": second if amsgrad else None,
        "length": OfBlocks() if tangent else None,
    }
    return leafwise(
        "scale_by_block_adam",
        _step,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        reads_weights=lambda leaf: tangent and leaf.has_blocks,
        state=ScaleByBlockAdamState,
        optional={"mu": "b1", "nu_max": "amsgrad", "length": "tangent"},
        start=lambda: (
            {"count": jnp.zeros([], jnp.int32)} | ({} if has_mu else {"mu": None})
        ),
        keeps={name: keep for name, keep in kept.items() if keep is not None},
        share=share,
        static={"has_mu": has_mu, "amsgrad": amsgrad, "nesterov": nesterov},
    )


def has_first_moment(b1: Any) -> bool:
    """Tells whether a first moment is kept: not for a plain 0, which never changes."""
    return not (isinstance(b1, int | float) and b1 == 0)


def _step(g, w, axes, option, kept, shared, *, has_mu, amsgrad, nesterov):
    """Takes the direction and the moments of one leaf; with `w`, on the tangent."""
    b1, b1_rest, b2, b2_rest, scale, eps, correction = shared
    mu, nu, *rest = kept if has_mu else (None, *kept)
    past = 0 if mu is None else b1 * mu
    if w is not None and axes is not None:
        # A block without length has no unit for what it was, and begins anew: no past,
        # and the first average of its squares is the square itself.
        length, last = bounded_sqrt(squared_length(w, axes)), rest[-1]
        length = select(length > 2 * smallest_root(length.dtype), length, 0)
        rest[-1], has_length = length, length > 0
        unit = select(has_length, length, 1)
        if mu is not None:
            radial = block_dot(mu, w, axes, keepdims=False) / squared(unit)
            is_known = has_length & (length < largest_root(length.dtype))
            radial = select(is_known & jnp.isfinite(radial), radial, 0)
            past = mu - across_block(radial, axes, g.ndim) * w
            past = across_block(select(has_length, b1, 0), axes, g.ndim) * past
        b2_rest = select(has_length, b2_rest, correction)
        r = select(last > 0, last, unit) / unit
        nu = select(has_length, nu * r * r, 0)
        if amsgrad:
            rest[0] = select(has_length, saturated(rest[0] * r * r), 0)
    nu = second = saturated(b2 * nu + b2_rest * squared_length(g, axes))
    if amsgrad:
        rest[0] = second = larger(rest[0], nu)
    mu = past + b1_rest * g
    ahead = b1 * mu + b1_rest * g if nesterov else mu
    firsts = (mu,) if has_mu else ()
    factor = across_block(scale / (positive_sqrt(second) + eps), axes, g.ndim)
    return ahead * factor, (*firsts, nu, *rest)
