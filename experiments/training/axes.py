"""The channel axes of a network, found from its training loss on real data.

A normalization layer makes the weights before it scale-invariant, whichever way the
model is written; the loss shows it, names of parameters only hint at it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import normopt
from experiments.data import Data
from experiments.training.steps import Network

# A batch norm is as invariant over few images as over many, and a search takes some
# ten gradients of them, and as many losses or a few more.
_EXAMPLES = 16


def find(
    network: Network, params: Any, model_state: Any, data: Data
) -> dict[str, tuple[int, ...]]:
    """Return the axes along which the training loss ignores the weights' scale.

    Args:
        network: the model, whose normalization uses the statistics of the batch.
        params: its parameters.
        model_state: its other state.
        data: of which the first training examples are taken as they are.

    Returns:
        `{pattern: channel axes}`, one pattern a leaf that has scale-invariant blocks.
    """
    inputs, labels = jax.tree.map(jnp.asarray, data.few(_EXAMPLES))

    def loss(params: Any) -> Any:
        logits, _ = network.train(params, model_state, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    return normopt.find_scale_invariance(loss, params)
