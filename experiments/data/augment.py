"""Augmentation on the device: pure functions of a random key and a batch.

Examples never travel back to the host for it, and a step's augmentation follows from
its key alone, so that a resumed run repeats it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.data.text import CONTEXT

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, batch) -> batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random crop of the zero-padded image, and a random horizontal flip.

    Attributes:
        padding: pixels added on each side before the crop; 0: no crop.
        flip: whether half of the images are mirrored.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Return a batch like `images`, (n, height, width, channels)."""
        crop_key, flip_key = jax.random.split(key)
        if self.padding:
            images = random_crop(crop_key, images, self.padding)
        if self.flip:
            images = random_flip(flip_key, images)
        return images


@dataclasses.dataclass(frozen=True)
class Crop:
    """A crop at a random place of each row.

    Attributes:
        length: of the crop.
    """

    length: int

    def __call__(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Return a part of each row of (n, numbers), (n, length)."""
        last = rows.shape[1] - self.length
        starts = jax.random.randint(key, (len(rows), 1), 0, last + 1)
        return jnp.take_along_axis(rows, starts + jnp.arange(self.length), axis=1)


# What keeps a class a class: digits have no mirror images, and SVHN's neighbouring
# digits already stand at random places.
AUGMENTATIONS: dict[str, Augment] = {
    "digits": Augmentation(padding=1),
    "mnist": Augmentation(padding=2),
    "cifar10": Augmentation(padding=4, flip=True),
    "cifar100": Augmentation(padding=4, flip=True),
    "svhn": Augmentation(),
    # A byte more than is read: the last one is foreseen only.
    "stdlib": Crop(CONTEXT + 1),
}


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shift every image by up to `padding` pixels each way, filling with zeros.

    Args:
        key: a random key.
        images: (n, height, width, channels).
        padding: the largest shift, in pixels.

    Returns:
        The shifted images, same shape and dtype.
    """
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    return jax.vmap(crop)(jnp.pad(images, widths), corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror every image, (n, height, width, channels), with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
