"""Models by name: Flax NNX, built from the data's shape and a seed.

Those for images are channel-last.
"""

from collections.abc import Callable

from flax import nnx

from experiments.models.resnet import ResNet as ResNet
from experiments.models.resnet import resnet8 as resnet8
from experiments.models.resnet import resnet18 as resnet18
from experiments.models.resnet import resnet20 as resnet20
from experiments.models.transformer import micro as micro
from experiments.models.transformer import nano as nano
from experiments.models.transformer import small as small
from experiments.models.vgg import VGG as VGG
from experiments.models.vgg import vgg6 as vgg6
from experiments.models.vgg import vgg16 as vgg16

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet8": resnet8,
    "vgg16": vgg16,
    "vgg6": vgg6,
}
LANGUAGE_MODELS: dict[str, Callable[..., nnx.Module]] = {
    "nano": nano,
    "micro": micro,
    "small": small,
}
