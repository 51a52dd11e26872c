"""Parts of experiments whose hundreds of small runs are one computation.

Under `jax.vmap` over learning rates, decays and seeds the runs step together, so all
that differs between them is an array: weights, batches and numbers.
"""

from collections.abc import Callable, Sequence
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


def over_all(
    run: Callable[[Any, jax.Array], Any], starts: Sequence[Any], values: np.ndarray
) -> Any:
    """Return what the runs from every start with every value come to, seeds x values.

    Args:
        run: from a start and a value to arrays.
        starts: one for each seed, of the same structure.
        values: what differs between the runs of a seed, learning rates for example.
    """
    over_values = jax.vmap(run, (None, 0))
    over_starts = jax.jit(jax.vmap(over_values, (0, None)))
    ends = over_starts(stacked(starts), jnp.asarray(values))
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), ends)


def stacked(starts: Sequence[Any]) -> Any:
    """Return starts as one, whose leaves have the seeds for their first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


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
    carry = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step_of(optimizer, loss), carry, batches)
    return params


def step_of(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, jax.Array], tuple[Any, None]]:
    """Return a step from parameters and state to the next ones, for `lax.scan`.

    Args:
        optimizer: whose numbers may be traced.
        loss: of parameters and a batch.
    """

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return step
