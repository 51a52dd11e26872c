"""Augmentation keeps pixels, moves them no farther than it says, and repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import names
from experiments.data.augment import AUGMENTATIONS, random_crop, random_flip


def batch(n=64, size=8, channels=3):
    pixels = np.random.default_rng(0).integers(1, 256, (n, size, size, channels))
    return jnp.asarray(pixels, jnp.uint8)


def shifted(image, dy, dx):
    """The image moved by (dy, dx), zeros where nothing was."""
    size = image.shape[0]
    out = np.zeros_like(image)
    y, x = slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0))
    y0, x0 = (
        slice(max(-dy, 0), size - max(dy, 0)),
        slice(max(-dx, 0), size - max(dx, 0)),
    )
    out[y, x] = image[y0, x0]
    return out


@pytest.mark.parametrize("padding", [1, 2])
def test_crop_is_a_shift_and_all_shifts_occur(padding):
    images = batch(300)
    cropped = np.asarray(random_crop(jax.random.key(1), images, padding))
    moves = [
        (dy, dx)
        for dy in range(-padding, padding + 1)
        for dx in range(-padding, padding + 1)
    ]
    seen = set()
    for before, after in zip(np.asarray(images), cropped, strict=True):
        found = [m for m in moves if np.array_equal(shifted(before, *m), after)]
        assert len(found) == 1
        seen.update(found)
    assert seen == set(moves)


def test_flip_mirrors_about_half_of_the_images():
    images = batch(400, size=4)
    flipped = np.asarray(random_flip(jax.random.key(0), images))
    before = np.asarray(images)
    mirrored = (flipped == before[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == before).all((1, 2, 3))
    assert np.all(mirrored ^ kept)
    # Five standard deviations of a fair coin around 200.
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("name", [name for name in names() if name != "stdlib"])
def test_every_data_set_has_an_augmentation_that_follows_from_its_key(name):
    augment = jax.jit(AUGMENTATIONS[name])
    images = batch()
    first = augment(jax.random.key(3), images)
    assert first.shape == images.shape and first.dtype == images.dtype
    np.testing.assert_array_equal(first, augment(jax.random.key(3), images))
    changes = name != "svhn"
    other = augment(jax.random.key(4), images)
    assert np.array_equal(first, other) is not changes


@pytest.mark.parametrize("name", ["digits", "mnist", "svhn"])
def test_digits_are_never_mirrored(name):
    assert not AUGMENTATIONS[name].flip
