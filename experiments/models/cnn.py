"""Four convolutions and two dense layers, thinned by dropout, without normalization.

That of the notebook `cifar_cnn` of the Keras implementation of Yu et al.,
"Block-Normalized Gradient Method: An Empirical Study for Training Deep Neural Network",
2017, arXiv 1707.04822: two 3x3 convolutions of 32 channels and two of 64, the second of
each pair without a border, each pair followed by a pool of 2x2, then 512 units. Paths
read as `stages/1/first/kernel`.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

from experiments.models.mlp import dense

_conv = functools.partial(
    nnx.Conv, kernel_size=(3, 3), kernel_init=nnx.initializers.glorot_uniform()
)


class Stage(nnx.Module):
    """Two convolutions, the second of which takes the border, and a pool."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        """Build it from `inputs` to `outputs` channels."""
        self.first = _conv(inputs, outputs, rngs=rngs)
        self.second = _conv(outputs, outputs, padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, (h - 2) // 2, (w - 2) // 2, outputs)."""
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.max_pool(x, (2, 2), (2, 2))


class CNN(nnx.Module):
    """The network, for images of one size."""

    def __init__(
        self,
        size: int,
        *,
        widths: Sequence[int] = (32, 64),
        hidden: int = 512,
        dropout: Sequence[float] = (0.25, 0.5),
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            size: the images' height and width.
            widths: the channels of each stage.
            hidden: units of the dense layer before the last.
            dropout: the share of a stage's outputs that a batch goes without, and that
                of the dense layer's.
            num_classes: the number of outputs.
            channels: of the images.
            rngs: where the initial weights and the dropout come from.
        """
        ends = [channels, *widths]
        self.stages = nnx.List(
            Stage(inputs, outputs, rngs=rngs)
            for inputs, outputs in zip(ends, ends[1:], strict=False)
        )
        side = functools.reduce(lambda side, _: (side - 2) // 2, widths, size)
        self.hidden = dense(side * side * widths[-1], hidden, rngs=rngs)
        self.head = dense(hidden, num_classes, rngs=rngs)
        in_stages, at_end = dropout
        self.stage_dropout = nnx.Dropout(in_stages, rngs=rngs)
        self.hidden_dropout = nnx.Dropout(at_end, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float images (n, size, size, channels) to logits (n, num_classes)."""
        x = images
        for stage in self.stages:
            x = self.stage_dropout(stage(x))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.head(self.hidden_dropout(x))
