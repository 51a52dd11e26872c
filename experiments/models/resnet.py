"""The residual networks for small images: three stages of basic blocks.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2:
16, 32 and 64 channels, a 3x3 stem, parameter-free shortcuts (option A), global average
pooling. Paths read as `stages/0/2/conv1/kernel`, which is what rules are written for.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

_conv = functools.partial(
    nnx.Conv,
    kernel_size=(3, 3),
    padding=1,
    use_bias=False,
    # He et al. 2015, fan-out as in the authors' published networks.
    kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
)
_norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        """Build a block from `inputs` to `outputs` channels, shrinking by `stride`."""
        self.conv1 = _conv(inputs, outputs, strides=stride, rngs=rngs)
        self.norm1 = _norm(outputs, rngs=rngs)
        self.conv2 = _conv(outputs, outputs, rngs=rngs)
        self.norm2 = _norm(outputs, rngs=rngs)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x[:, :: self.stride, :: self.stride]
        new = y.shape[-1] - x.shape[-1]
        shortcut = jnp.pad(
            shortcut, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2))
        )
        return nnx.relu(y + shortcut)


class Stem(nnx.Module):
    """The first 3x3 convolution, normalized."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        """Build it from `inputs` to `outputs` channels."""
        self.conv = _conv(inputs, outputs, rngs=rngs)
        self.norm = _norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h, w, outputs)."""
        return nnx.relu(self.norm(self.conv(x)))


class ResNet(nnx.Module):
    """A residual network of 6 `blocks` + 2 layers; images of any size and channels."""

    def __init__(
        self,
        blocks: int,
        *,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            blocks: basic blocks in each of the three stages.
            num_classes: the number of outputs.
            channels: of the images.
            rngs: where the initial weights come from.
        """
        self.stem = Stem(channels, 16, rngs=rngs)
        stages, inputs = [], 16
        for stage, outputs in enumerate((16, 32, 64)):
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(BasicBlock(inputs, outputs, stride, rngs=rngs))
                inputs = outputs
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float images (n, h, w, channels) to logits (n, num_classes)."""
        x = self.stem(images)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


def resnet8(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
    """Build ResNet-8: the smallest of the family, for quick checks."""
    return ResNet(1, num_classes=num_classes, channels=channels, rngs=rngs)


def resnet20(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
    """Build ResNet-20: 0.27 million parameters."""
    return ResNet(3, num_classes=num_classes, channels=channels, rngs=rngs)
