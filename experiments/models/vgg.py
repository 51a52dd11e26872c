"""VGG-16 for small images, with batch norm and without hidden dense layers.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition" (2015), table 1, configuration D: thirteen 3x3 convolutions in five stages,
a 2x2 max pool after each. As is usual for CIFAR, every convolution is normalized and
one linear layer follows the last pool, without dropout. A bias before a normalization
does nothing, so the convolutions have none. Paths read as `stages/4/2/conv/kernel`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.resnet import Stem

# The output channels of each stage's convolutions.
_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_VGG6 = ((8,), (16,), (32,), (64,), (64,))


class VGG(nnx.Module):
    """Stages of normalized convolutions, each of which halves the image."""

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            stages: the output channels of the convolutions of each stage.
            num_classes: the number of outputs.
            channels: of the images.
            rngs: where the initial weights come from.
        """
        inputs, built = channels, []
        for widths in stages:
            layers = []
            for outputs in widths:
                layers.append(Stem(inputs, outputs, rngs=rngs))
                inputs = outputs
            built.append(nnx.List(layers))
        self.stages = nnx.List(built)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float images (n, h, w, channels) to logits (n, num_classes)."""
        x = images
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
            # "SAME" keeps the last pixel of images that are no multiple of 32.
            x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        # One pixel is left of images of 32, of which this is the value.
        return self.head(jnp.mean(x, axis=(1, 2)))


def vgg6(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> VGG:
    """Build VGG-6, an eighth as wide as VGG-16: for quick checks."""
    return VGG(_VGG6, num_classes=num_classes, channels=channels, rngs=rngs)


def vgg16(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> VGG:
    """Build VGG-16 for small images: 14.72 million parameters for ten classes."""
    return VGG(_VGG16, num_classes=num_classes, channels=channels, rngs=rngs)
