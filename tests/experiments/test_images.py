"""A batch from the device is the images and labels that the split has there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data import Split
from experiments.images import on_device


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (2, 5, 3)])
def test_a_batch_is_what_the_split_has_at_its_indices(shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, *shape)).astype(np.uint8)
    split = Split(images, rng.integers(0, 10, 20).astype(np.int32))
    there, indices = on_device(split), np.array([3, 19, 0, 3])
    assert len(there) == 20
    for take in (there.take, jax.jit(there.take)):
        batch = take(jnp.asarray(indices))
        np.testing.assert_array_equal(batch[0], images[indices])
        np.testing.assert_array_equal(batch[1], split.labels[indices])
        assert batch[0].dtype == np.uint8


def test_over_many_orders_a_batch_is_taken_from_one_split():
    split = data.load("digits").test
    there, orders = on_device(split), jnp.asarray([[5, 1], [0, 5]])
    images, labels = jax.vmap(lambda data, order: data.take(order), (None, 0))(
        there, orders
    )
    np.testing.assert_array_equal(images, split.images[np.asarray(orders)])
    np.testing.assert_array_equal(labels, split.labels[np.asarray(orders)])
