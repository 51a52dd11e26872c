"""A link that removes the mean of each block from the updates."""

import jax
import optax

from normopt.blocks import block_size, block_sum, resolve_proper_axes
from normopt.leafwise import leafwise
from normopt.rules import PerLeaf


def center_blocks(channel_axes: PerLeaf) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts the mean of each block from the updates.

    .. math:: u_b \leftarrow u_b - \frac{1}{d} \sum_{i \in b} u_i

    If the inputs of a layer sum to about zero, its output hardly changes when a
    constant is added to all weights of a channel. With this link, weights that start
    with a mean of zero keep this mean. `centered` makes such weights before training.

    Args:
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, stay
        unchanged.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if the axes have the wrong type.
      ValueError: at init, for axes that do not fit (see `normalize_blocks`), or a
        pattern that matches no path. At update, with params of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> link = normopt.center_blocks((-1,))
      >>> grads = jnp.array([[1.0, 2.0], [5.0, 2.0]])
      >>> updates, _ = link.update(grads, link.init(grads))
      >>> updates.tolist()
      [[-2.0, 0.0], [2.0, 0.0]]

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212. Yong, Huang, Hua, Zhang,
      "Gradient Centralization", 2020, arXiv 2004.01461.
    """
    return leafwise(
        "center_blocks",
        _center,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
    )


def _center(u, w, axes, option, kept, shared):
    return without_mean(u, axes), kept


def without_mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Takes from each block its mean."""
    # Divided before it is summed, as a sum of large numbers may leave the range.
    return x - block_sum(x / block_size(x.shape, axes), axes)
