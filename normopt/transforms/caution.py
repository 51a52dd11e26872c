"""A link that keeps the part of a step which agrees with the present gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import block_size, block_sum
from normopt.checks import check_number
from normopt.leafwise import around
from normopt.rules import PerLeaf


def cautious(
    inner: optax.GradientTransformation,
    channel_axes: PerLeaf = (),
    *,
    floor: float = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    r"""Sets elements of a step to zero if they do not descend the present gradient.

    .. math::
      k_i = [u_i g_i < 0], \qquad u_i \leftarrow
        \frac{k_i \, u_i}{\max(\mathrm{share}_b, \mathrm{floor})}, \qquad
      \mathrm{share}_b = \frac{1}{d} \sum_{i \in b} k_i

    Here u is the step of the complete optimizer `inner` (its sign included), and g the
    present gradient. An element of the step becomes zero if u and g have the same sign,
    or if one of them is zero. To make up for this, the other elements are divided by
    the share of the block that is not zero.

    A weight decay inside `inner` is a part of the step, so parts of the decay become
    zero as well. To avoid this, put `decay_weights` after this link.

    Args:
      inner: an optimizer, learning rate included.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Each block has a share of its own. With `()` a leaf has one
        share, as in the paper. Leaves without blocks get inner's step unchanged.
      floor: the smallest divisor, above 0; it replaces smaller shares.

    Returns:
      An optimizer whose state is that of `inner`. Updates keep their structure and
      shapes, and get the dtype of inner's step.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a floor that is not positive. At init, for axes that
        do not fit (see `normalize_blocks`), or a pattern that matches no path. At
        update, with params of another shape.

    Examples:
      In the second gradient, the first element has changed its sign. So the second step
      is zero there:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.cautious(optax.sgd(1.0, momentum=0.5))
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for grads in (jnp.array([4.0, 4.0]), jnp.array([-1.0, 4.0])):
      ...     updates, state = tx.update(grads, state, params)
      ...     print(updates.tolist())
      [-4.0, -4.0]
      [0.0, -12.0]

    References:
      Liang, Chen, Liu, Liu, "Cautious Optimizers: Improving Training with One Line of
      Code", 2024, arXiv 2411.16085; the floor is that of pytorch-image-models.
    """
    check_number("floor", floor, above=0)
    return around(
        "cautious",
        inner,
        _keep_what_descends,
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (floor,),
    )


def _keep_what_descends(g, u, w, axes, option, kept, shared):
    return agreeing(u, -g, axes, shared[0]), kept


def agreeing(
    u: jax.Array, g: jax.Array, axes: tuple[int, ...], floor: Any
) -> jax.Array:
    """Keeps the elements of `u` that have the sign of `g`, over their share of a block.

    Of complex elements, those less than a right angle from that of `g`.
    """
    # Of the signs, as the product of the two could underflow.
    agrees = jnp.real(jnp.sign(u) * jnp.conj(jnp.sign(g))) > 0
    counted = agrees.astype(jnp.real(u).dtype)
    share = block_sum(counted, axes) / block_size(u.shape, axes)
    # A NaN stays one, for whoever looks for it.
    kept = jnp.where(agrees | jnp.isnan(u), u, 0)
    return kept * (1 / jnp.maximum(share, floor))
