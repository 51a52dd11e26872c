"""Links that multiply a leaf, or each of its blocks, by a number."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import block_size, resolve_proper_axes
from normopt.checks import check_not_negative, check_number
from normopt.leafwise import Option, leafwise
from normopt.norms import block_norm
from normopt.rules import PerLeaf


def scale_by_path(lr_multipliers: PerLeaf) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates of each leaf by a number of its own.

    .. math:: u \leftarrow c_{\mathrm{path}} \, u

    Put this link after the moments, where it multiplies the learning rate. Before the
    moments of an adaptive optimizer it has almost no effect, because these divide by
    the size of the gradient. A multiplier of 0 does not freeze a leaf if a weight decay
    follows; use `optax.partition` for that.

    Args:
      lr_multipliers: the factors, per leaf, at least 0; 1 for leaves that no pattern
        matches.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if a multiplier is not a number.
      ValueError: when built, for a negative multiplier. At init, for a pattern that
        matches no path. At update, with params of another shape.

    Examples:
      The first pattern that matches a path wins:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_path({"head": 1.0, "kernel$": 0.1})
      >>> params = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1)}}
      >>> updates, _ = link.update(params, link.init(params))
      >>> [round(float(u[0]), 5) for u in (updates["body"]["kernel"],
      ...                                  updates["head"]["kernel"])]
      [0.1, 1.0]

    References:
      The learning-rate multipliers of the Keras implementation of Loshchilov and
      Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101.
    """
    return multiply_by_path("scale_by_path", "lr_multipliers", lr_multipliers)


def multiply_by_path(
    link: str, option: str, factors: PerLeaf
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of each leaf by a factor that is an option of `link`."""
    options = {option: Option(factors, 1.0, check_not_negative)}
    return leafwise(link, _multiply, options=options)


def _multiply(u, w, axes, option, kept, shared):
    return u * option[0], kept


def scale_by_param_norm(
    channel_axes: PerLeaf = (), *, min_norm: float = 1e-3
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each block of the updates by the norm of its weights.

    .. math:: u_b \leftarrow \max(\|w_b\|_2, \mathrm{min\_norm}) \, u_b

    Put this link after `normalize_blocks`. Then the learning rate is a relative step
    size: the norm of each block's step is this fraction of the norm of its weights.

    Args:
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      min_norm: the smallest factor, in the unit of the weights, at least 0; it replaces
        smaller norms. With a `min_norm` of 0, weights of zero stay zero.

    Returns:
      A link without state. Its `update` needs `params` if a leaf has blocks. Updates
      keep their structure and shapes, and get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a negative `min_norm`. At init, for axes that do not
        fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params` or with params of another shape.

    Examples:
      The norm of a step, relative to that of its weights, is the learning rate:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(normopt.normalize_blocks(eps=0.0),
      ...                  normopt.scale_by_param_norm(), optax.scale(-0.01))
      >>> params, grads = jnp.array([30.0, 40.0]), jnp.array([0.0, 7.0])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(normopt.block_norms(updates) / normopt.block_norms(params)), 6)
      0.01

    References:
      Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
      Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, the
      adaptive step size.
    """
    check_number("min_norm", min_norm, 0)
    return leafwise(
        "scale_by_param_norm",
        _multiply_by_length,
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        share=lambda state: (min_norm,),
    )


def _multiply_by_length(u, w, axes, option, kept, shared):
    return u * jnp.maximum(block_norm("l2", w, axes), shared[0]), kept


def scale_by_block_size(
    channel_axes: PerLeaf, power: float = 0.5
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates by a power of the number of elements of their block.

    .. math:: u \leftarrow d^{\,p} u

    `scale_by_block_adam` gives a block of d elements a step of norm 1. A step of Adam
    has a norm of about sqrt(d), because each element has a size of about 1. The default
    power of 1/2 makes up for the difference, so Adam's learning rate fits.

    Args:
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, stay
        unchanged.
      power: the exponent p, any finite number.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a power that is not finite. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        with params of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_block_size((-1,))
      >>> updates = {"kernel": jnp.ones((4, 4, 8)), "bias": jnp.ones(8)}
      >>> updates, _ = link.update(updates, link.init(updates))
      >>> updates["kernel"].max().item(), updates["bias"].max().item()
      (4.0, 1.0)

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, Adam-S.
    """
    check_number("power", power)
    return leafwise(
        "scale_by_block_size",
        _multiply_by_size,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (power,),
    )


def _multiply_by_size(u, w, axes, option, kept, shared):
    return u * block_size(u.shape, axes) ** shared[0], kept


class AverageGradientsState(NamedTuple):
    """State of `average_gradients`."""

    count: jax.Array  # int32 scalar: updates done


def average_gradients(b1: float) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates by 1 - b1, from the second step on.

    .. math:: g_1 \leftarrow g_1, \qquad g_t \leftarrow (1 - b_1) g_t

    Put this link before a momentum that is a sum over the steps, with decay b1. The
    factor makes the momentum an average, which starts at the first gradient and needs
    no bias correction.

    Args:
      b1: the decay of the momentum that follows, in [0, 1).

    Returns:
      A link whose state is a count. Updates keep their structure and shapes, and get
      the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if `b1` is not a number.
      ValueError: when built, if it is out of its range. At update, with params of
        another shape.

    Examples:
      The average of a constant gradient equals this gradient at every step:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> link = optax.chain(normopt.average_gradients(0.75), optax.trace(0.75))
      >>> grads = jnp.array([2.0])
      >>> state = link.init(grads)
      >>> for _ in range(3):
      ...     updates, state = link.update(grads, state)
      ...     print(float(updates[0]))
      2.0
      2.0
      2.0

    References:
      Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
      Training of Deep Networks", 2019, arXiv 1905.11286, the `grad_averaging` of its
      implementation in TensorFlow Addons.
    """
    check_number("b1", b1, 0, below=1)

    return leafwise(
        "average_gradients",
        _multiply_by_share,
        state=AverageGradientsState,
        start=lambda: {"count": jnp.zeros([], jnp.int32)},
        share=lambda state: (jnp.where(state.count == 1, 1, 1 - b1),),
    )


def _multiply_by_share(g, w, axes, option, kept, shared):
    return g * shared[0], kept
