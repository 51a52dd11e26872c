"""NovoGrad's second moment: one number for each layer, or each block."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from normopt.blocks import across_block, squared_length
from normopt.checks import check_flag, check_number
from normopt.keeping import BlockNumbers, PerBlock
from normopt.leafwise import leafwise
from normopt.numerics import larger, positive_sqrt, saturated
from normopt.rules import PerLeaf


class ScaleByBlockRmsState(NamedTuple):
    """State of `scale_by_block_rms`."""

    nu: BlockNumbers  # v of each block or element, float32 or wider
    nu_max: BlockNumbers | None = None  # with `amsgrad`: the largest v so far


def scale_by_block_rms(
    b2: float = 0.999,
    eps: float = 1e-7,
    channel_axes: PerLeaf = (),
    *,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each block by the root of a running average of its squared norm.

    .. math::
      v &\leftarrow b_2 v + (1 - b_2) \|g\|^2, \qquad
        v \leftarrow \|g\|^2 \text{ where } v = 0 \\
      g &\leftarrow \frac{g}{\sqrt{v} + \epsilon}

    where :math:`\|g\|` is the norm of the block. So the update of a block has a norm of
    about 1, for any number of elements. The average v starts at the first squared norm
    that is not zero. So no bias correction is needed, and the first update has norm 1,
    apart from eps.

    Args:
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of the gradient's norm; at least 0. A block
        whose gradients were all zero gets no update, even with eps = 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Pass () for one number per leaf (the default), (-1,) for
        one per channel, (0,) for one per layer of a stack, None for one per element.
        Blocks of one element are allowed.
      amsgrad: whether to divide by the root of the largest v so far.

    Returns:
      A link. Its state is a `ScaleByBlockRmsState`: one real number per block, in
      float32 or wider. The numbers are exact for norms from 1e-15 to 1e15, and finite
      beyond. Updates keep their structure and shapes, and get the wider dtype of update
      and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), a pattern that matches no path, or two leaves
        of the same path. At update, with params of another shape.

    Examples:
      The steps of all layers have the same norm, for any size of the layer and any
      scale of its gradient:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_block_rms(eps=0.0)
      >>> grads = {"wide": jnp.full((40, 50), 1e-6), "bias": jnp.array([3.0, 4.0])}
      >>> updates, state = link.update(grads, link.init(grads))
      >>> {name: round(float(n), 5) for name, n in normopt.block_norms(updates).items()}
      {'bias': 1.0, 'wide': 1.0}
      >>> {name: v.shape for name, v in state.nu.blocks.items()}
      {'bias@': (), 'wide@': ()}

    References:
      Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
      Training of Deep Networks", 2019, arXiv 1905.11286, Algorithm 1. Reddi, Kale,
      Kumar, "On the Convergence of Adam and Beyond", 2018, arXiv 1904.09237 (amsgrad).
    """
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    check_flag("amsgrad", amsgrad)
    keeps = {"nu": PerBlock(), **({"nu_max": PerBlock()} if amsgrad else {})}
    return leafwise(
        "scale_by_block_rms",
        _step,
        channel_axes=channel_axes,
        state=ScaleByBlockRmsState,
        optional={"nu_max": "amsgrad"},
        keeps=keeps,
        share=lambda state: (b2, 1 - b2, eps),
    )


def _step(g, w, axes, option, kept, shared):
    """Takes the direction and the second moments of one leaf."""
    (nu, *largest), (b2, b2_rest, eps) = kept, shared
    # A sum that stands once needs no loop of its own: v = |g|^2 where there is none.
    share = jnp.where(nu == 0, 1, b2_rest)
    nu = second = saturated(b2 * nu + share * squared_length(g, axes))
    if largest:
        largest[0] = second = larger(largest[0], nu)
    factor = across_block(1 / (positive_sqrt(second) + eps), axes, g.ndim)
    return g * factor, (nu, *largest)
