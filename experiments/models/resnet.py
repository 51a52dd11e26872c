"""Residual networks of basic blocks for small images.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2:
a 3x3 stem, stages of 16, 32 and 64 channels, parameter-free shortcuts (option A),
global average pooling. ResNet-18 for small images has that stem before the stages of
the paper's table 1, with projected shortcuts (option B). Paths read as
`stages/0/2/conv1/kernel`, which is what rules are written for.
"""

import functools
from collections.abc import Callable, Sequence

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


class Padding(nnx.Module):
    """The shortcut without parameters: leaves out pixels, adds channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        """Build one from `inputs` to `outputs` channels; `rngs` goes unused."""
        del rngs
        before = (outputs - inputs) // 2
        self.channels = (before, outputs - inputs - before)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.channels))


class Projection(nnx.Module):
    """The shortcut with parameters: a 1x1 convolution, normalized."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        """Build one from `inputs` to `outputs` channels, shrinking by `stride`."""
        self.conv = _conv(
            inputs, outputs, kernel_size=(1, 1), strides=stride, padding=0, rngs=rngs
        )
        self.norm = _norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        shortcut: Callable[..., nnx.Module],
        rngs: nnx.Rngs,
    ):
        """Build a block from `inputs` to `outputs` channels, shrinking by `stride`."""
        self.conv1 = _conv(inputs, outputs, strides=stride, rngs=rngs)
        self.norm1 = _norm(outputs, rngs=rngs)
        self.conv2 = _conv(outputs, outputs, rngs=rngs)
        self.norm2 = _norm(outputs, rngs=rngs)
        self.shortcut = shortcut(inputs, outputs, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, h, w, inputs) to (n, h / stride, w / stride, outputs)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + self.shortcut(x))


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
    """A residual network for images of any size and number of channels."""

    def __init__(
        self,
        blocks: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Callable[..., nnx.Module] = Padding,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            blocks: basic blocks in each stage.
            widths: the channels of each stage; the first are the stem's too.
            shortcut: what leads around a block that changes the shape; a block that
                keeps it has the identity.
            num_classes: the number of outputs.
            channels: of the images.
            rngs: where the initial weights come from.
        """
        inputs = widths[0]
        self.stem = Stem(channels, inputs, rngs=rngs)
        stages = []
        for stage, outputs in enumerate(widths):
            layers = []
            for block in range(blocks):
                begins = stage > 0 and block == 0
                layers.append(
                    BasicBlock(
                        inputs,
                        outputs,
                        stride=2 if begins else 1,
                        shortcut=shortcut if begins else Padding,
                        rngs=rngs,
                    )
                )
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
    """Build ResNet-20: 6 x 3 + 2 layers, 0.27 million parameters."""
    return ResNet(3, num_classes=num_classes, channels=channels, rngs=rngs)


def resnet18(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
    """Build ResNet-18 for small images: 11.17 million parameters for ten classes."""
    return ResNet(
        2,
        widths=(64, 128, 256, 512),
        shortcut=Projection,
        num_classes=num_classes,
        channels=channels,
        rngs=rngs,
    )
