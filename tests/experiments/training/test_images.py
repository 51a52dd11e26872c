"""A batch from the device is the images and labels that the split has there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import Split
from experiments.training.images import Images, on_device


def random_split(*shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, *shape)).astype(np.uint8)
    return Split(images, rng.integers(0, 10, 20).astype(np.int32))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (2, 5, 3)])
def test_a_batch_is_what_the_split_has_at_its_indices(shape):
    split, indices = random_split(*shape), np.array([3, 19, 0, 3])
    there = on_device(split)
    assert len(there) == 20 and there.rows.shape == (20, math.prod(shape))
    for take in (there.take, jax.jit(there.take)):
        batch = take(jnp.asarray(indices))
        np.testing.assert_array_equal(batch[0], split.images[indices])
        np.testing.assert_array_equal(batch[1], split.labels[indices])
        assert batch[0].dtype == np.uint8


def test_over_many_orders_a_batch_is_taken_from_one_split():
    split, orders = random_split(2, 5, 3), np.array([[5, 1], [0, 5]])
    images, labels = jax.vmap(Images.take, (None, 0))(on_device(split), orders)
    np.testing.assert_array_equal(images, split.images[orders])
    np.testing.assert_array_equal(labels, split.labels[orders])
