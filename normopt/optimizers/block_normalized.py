"""Block-normalized and block-clipped gradients around any optimizer."""

import optax

from normopt.checks import check_inner
from normopt.leafwise import say_once
from normopt.rules import PerLeaf
from normopt.transforms.normalizing import clip_blocks, normalize_blocks


def normalized(
    inner: optax.GradientTransformation,
    norm: str = "l2",
    channel_axes: PerLeaf = (),
    eps: float = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each block of the gradient by its norm, then applies any optimizer.

    A weight decay inside `inner` comes after the normalization. So tune it for
    gradients of norm 1.

    The chain is `normalize_blocks -> inner`. In Algorithm 1 of the paper, line 5
    normalizes the gradient of each block, and line 6 applies any method, such as
    momentum or Adam. The paper also has adaptive steps, proportional to the norm of the
    weights. For these, put `scale_by_param_norm` after `inner`.

    Args:
      inner: any optax optimizer, learning rate included.
      norm: a name of `norm_names()`, or a norm object such as `spectral()`.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      eps: added to the norm, in the unit of the gradient; at least 0.

    Returns:
      An optimizer. Its state is the empty state of `normalize_blocks` and the state of
      `inner`.

    Warns:
      NoBlocksWarning: at init, if some leaf has two or more dimensions, but no leaf has
        blocks.

    Raises:
      TypeError: if `inner` is not an optimizer.
      ValueError: as `normalize_blocks` does.

    Examples:
      The size of a gradient does not matter, only its direction:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.normalized(optax.sgd(0.1), eps=0.0)
      >>> params = jnp.zeros(2)
      >>> for grads in (jnp.array([3.0, 4.0]), jnp.array([3e-9, 4e-9])):
      ...     updates, _ = tx.update(grads, tx.init(params), params)
      ...     print([round(float(u), 5) for u in updates])
      [-0.06, -0.08]
      [-0.06, -0.08]

    References:
      Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
      Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822.
    """
    check_inner("normalized", inner)
    return say_once(optax.chain(normalize_blocks(norm, channel_axes, eps), inner))


def clipped(
    inner: optax.GradientTransformation,
    max_norm: PerLeaf,
    norm: str = "l2",
    channel_axes: PerLeaf = (),
    eps: float = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each block of the gradient by its own norm, then applies any optimizer.

    A weight decay inside `inner` is added after the clipping.

    The chain is `clip_blocks -> inner`.

    Args:
      inner: any optax optimizer, learning rate included.
      max_norm: the largest norm that a block may have, above 0, per leaf.
      norm: a name of `norm_names()`, or a norm object such as `spectral()`.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      eps: added to the norm, in the unit of the gradient; at least 0.

    Returns:
      An optimizer. Its state is the empty state of `clip_blocks` and the state of
      `inner`.

    Warns:
      NoBlocksWarning: at init, if some leaf has two or more dimensions, but no leaf has
        blocks.

    Raises:
      TypeError: if `inner` is not an optimizer.
      ValueError: as `clip_blocks` does.

    Examples:
      No step of SGD is longer than learning rate times `max_norm`:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.clipped(optax.sgd(0.1), max_norm=0.5)
      >>> params = jnp.zeros(2)
      >>> updates, _ = tx.update(jnp.array([3e9, 4e9]), tx.init(params), params)
      >>> round(float(normopt.block_norms(updates)), 5)
      0.05

    References:
      The ClippedOptimizer of the block-normalized gradient method's Keras
      implementation (arXiv 1707.04822).
    """
    check_inner("clipped", inner)
    return say_once(optax.chain(clip_blocks(max_norm, norm, channel_axes, eps), inner))
