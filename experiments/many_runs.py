"""Parts of experiments whose hundreds of small runs are one computation.

Under `jax.vmap` over learning rates, decays and seeds the runs step together, so all
that differs between them is an array: weights, batches and numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import digits


def standardised_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all 1,797 images (n, 8, 8, 1), the training images first, and labels."""
    data = digits.load()
    splits = (data.train, data.validation, data.test)
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    return ((images - data.mean) / data.std).astype(np.float32), labels


def rates_about(middle: float, decades: int) -> np.ndarray:
    """Return exponents of 10 of learning rates, four for each decade, and both ends.

    Args:
        middle: what they lie about.
        decades: how many they are.
    """
    return middle + np.linspace(-decades / 2, decades / 2, 4 * decades + 1)


def at_every_rate(
    run: Callable[[Any, jax.Array], Any], learning_rates: np.ndarray, starts: list[Any]
) -> Any:
    """Return what runs from every start at every rate come to, seeds x rates.

    Args:
        run: from a start and a learning rate to arrays.
        learning_rates: as many as there are to be.
        starts: one for each seed, of the same structure.
    """
    over_rates = jax.vmap(run, (None, 0))
    over_starts = jax.jit(jax.vmap(over_rates, (0, None)))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    ends = over_starts(stacked, jnp.asarray(learning_rates))
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), ends)


def shuffled_batches(
    random: np.random.Generator, images: int, batch: int, epochs: int
) -> jax.Array:
    """Return indices of images, a row a step, each image once an epoch.

    Drawn by NumPy: a shuffle of JAX's under vmap takes seconds to compile.

    Args:
        random: the source of the order.
        images: how many there are, a multiple of `batch`.
        batch: how many of them a step sees.
        epochs: passes over them.
    """
    order = [random.permutation(images) for _ in range(epochs)]
    return jnp.asarray(np.reshape(order, (-1, batch)))


def train(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    batches: jax.Array,
) -> Any:
    """Return the parameters after a step for each batch.

    Args:
        optimizer: whose numbers may be traced.
        loss: of parameters and one row of `batches`.
        params: initial ones.
        batches: (steps, ...).
    """

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return params
