"""The 30 dense layers trained at a multiple of the published rates, a run a program.

Initial weights, dropout and the order of the images follow from a seed, so that the
four optimizers begin alike from it. A run stays in a processor's cache, which many at
once under `jax.vmap` would not.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import Dataset
from experiments.models.mlp import MLP
from experiments.papers.block_normalized_2017.methods import (
    direction_of,
    maybe_normalized,
)
from experiments.training.steps import Network, arrays_of, network_of


# Arrays have no hash: a task is itself alone, so that compiled programs know it.
@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a run trains, and how.

    Attributes:
        data: its three splits.
        settings: arguments of `MLP`.
        norm: of normopt, by which gradients are divided.
        rates: one after the other, before they are multiplied.
        batch: images in a step; the rest of an epoch's is left out.
        epochs: passes over the training images at each rate.
    """

    data: Dataset
    settings: Mapping[str, Any]
    norm: str
    rates: Sequence[float]
    batch: int
    epochs: int


class End(NamedTuple):
    """What a run comes to, or each of many.

    Attributes:
        losses: the cross-entropy on each epoch's training images, under dropout, in
            nats and without the L2 term; float32 (epochs,).
        validation_error: the share of wrong answers on those images at the end.
        test_error: that on the test images.
    """

    losses: Any
    validation_error: Any
    test_error: Any


def ends_of(
    method: str, seeds: Sequence[int], multiples: Sequence[float], task: Task
) -> End:
    """Train from every seed at every multiple of the rates.

    Args:
        method: one of `methods.METHODS`.
        seeds: of the runs.
        multiples: of the task's rates.
        task: what is trained.

    Returns:
        Arrays whose first axes are seeds x multiples.
    """
    splits = (task.data.train, task.data.validation, task.data.test)
    # Not a part of the program, which would take a minute longer to compile.
    arrays = [(jnp.asarray(one.images), jnp.asarray(one.labels)) for one in splits]
    ends = [
        _train(method, task, arrays, jnp.uint32(seed), jnp.float32(multiple))
        for seed in seeds
        for multiple in multiples
    ]

    def arrayed(*values: jax.Array) -> np.ndarray:
        values = np.array(values, float)
        return values.reshape(len(seeds), len(multiples), *values.shape[1:])

    return jax.tree.map(arrayed, *ends)


@functools.partial(jax.jit, static_argnames=("method", "task"))
def _train(
    method: str, task: Task, arrays: Any, seed: jax.Array, multiple: jax.Array
) -> End:
    start_key, order_key = jax.random.split(jax.random.key(seed))
    (pixels, labels), *held_out = arrays
    # Images from 0 to 1, as in the notebook.
    images = task.data.train.images
    peak = np.full(images.shape[-1], images.max(), np.float32)
    build = _builder(task)
    network = network_of(lambda: build(jax.random.key(0)), np.zeros_like(peak), peak)
    steps = len(images) // task.batch

    def stage(carry: Any, rate_and_keys: Any) -> tuple[Any, jax.Array]:
        rate, keys = rate_and_keys
        optimizer = maybe_normalized(
            optax.chain(direction_of(method), optax.scale_by_learning_rate(rate)),
            method,
            task.norm,
        )

        def step(carry: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
            params, rest, state = carry
            gradients, (rest, entropy) = jax.grad(_loss, has_aux=True)(
                params, network, rest, pixels[batch], labels[batch]
            )
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), rest, state), entropy

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            order = jax.random.permutation(key, len(images))[: steps * task.batch]
            carry, entropies = jax.lax.scan(step, carry, order.reshape(steps, -1))
            return carry, entropies.mean()

        params, rest = carry
        carry, losses = jax.lax.scan(
            epoch, (params, rest, optimizer.init(params)), keys
        )
        return carry[:2], losses

    rates = multiple * jnp.asarray(task.rates)
    keys = jax.random.split(order_key, (len(task.rates), task.epochs))
    carry, losses = jax.lax.scan(
        stage, arrays_of(lambda: build(start_key)), (rates, keys)
    )
    # What diverged knows nothing: its loss is that of equal odds.
    lost = jnp.log(float(task.data.num_classes))
    losses = jnp.where(jnp.isfinite(losses), losses, lost).ravel()
    errors = (_error(network, *carry, *split) for split in held_out)
    return End(losses, *errors)


def _builder(task: Task) -> Any:
    size = task.data.train.images.shape[1]

    def build(key: jax.Array) -> nnx.Module:
        return MLP(
            size, **task.settings, **task.data.model_arguments, rngs=nnx.Rngs(key)
        )

    return build


def _loss(
    params: Any, network: Network, rest: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Any]:
    """Return what is minimized; and the new other state, and the cross-entropy."""
    logits, new = network.train(params, rest, images)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return entropy + network.penalty(params, rest), (new, entropy)


def _error(
    network: Network, params: Any, rest: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    answers = network.evaluate(params, rest, images).argmax(axis=-1)
    return jnp.mean(answers != labels)
