"""A deep stack of dense layers, each batch-normalized and thinned by dropout.

That of the notebook `mnist_mlp` of the Keras implementation of Yu et al.,
"Block-Normalized Gradient Method: An Empirical Study for Training Deep Neural Network",
2017, arXiv 1707.04822: 30 layers of 128, dropout 0.2, and an L2 term on the weights of
these layers. Paths read as `layers/29/dense/kernel`.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class Layer(nnx.Module):
    """A dense layer of He et al. 2015, ReLU, BatchNorm with the constants of Keras."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        """Build it from `inputs` to `outputs` units."""
        he = nnx.initializers.he_normal()
        self.dense = nnx.Linear(inputs, outputs, kernel_init=he, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.99, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, inputs) to (n, outputs)."""
        return self.norm(nnx.relu(self.dense(x)))


class MLP(nnx.Module):
    """The network, for images of one size."""

    def __init__(
        self,
        size: int,
        *,
        layers: int = 30,
        width: int = 128,
        dropout: float = 0.2,
        l2: float = 1e-5,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            size: the images' height and width.
            layers: hidden layers.
            width: units in each.
            dropout: the share of a hidden layer's outputs that a batch goes without.
            l2: times the sum of squares of the hidden kernels, part of the loss.
            num_classes: the number of outputs.
            channels: of the images.
            rngs: where the initial weights and the dropout come from.
        """
        widths = [size * size * channels, *[width] * layers]
        self.layers = nnx.List(
            Layer(inputs, outputs, rngs=rngs)
            for inputs, outputs in zip(widths, widths[1:], strict=False)
        )
        self.head = dense(widths[-1], num_classes, rngs=rngs)
        # One for all layers: it draws anew at each call.
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.l2 = l2

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float images (n, size, size, channels) to logits (n, num_classes)."""
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.head(x)

    def penalty(self) -> jax.Array:
        """Return what the model adds to the loss."""
        kernels = (layer.dense.kernel[...] for layer in self.layers)
        return self.l2 * sum(jnp.sum(kernel**2) for kernel in kernels)


def dense(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Build a dense layer with Keras' initial weights: Glorot and Bengio 2010."""
    glorot = nnx.initializers.glorot_uniform()
    return nnx.Linear(inputs, outputs, kernel_init=glorot, rngs=rngs)
