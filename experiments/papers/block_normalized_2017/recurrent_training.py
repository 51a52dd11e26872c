"""A small recurrent network trained from a seed at every learning rate at once.

An LSTM reads an image pixel by pixel, and a dense layer names the digit from what it
holds at the end: what the first pixels say has to last for 64 steps. The runs of a seed
are one computation under `jax.vmap`. Those of all seeds would be a slower one: what
they hold between a step's way forwards and back does not fit in a processor's cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.block_normalized_2017.methods import (
    direction_of,
    maybe_normalized,
)
from experiments.training import many_runs

NORM = "l2"
TRAIN_IMAGES, BATCH = 400, 20
HIDDEN, CLASSES = 32, 10

# The exponents of 10 that the learning rates of a method lie about.
MIDDLES = {
    "SGD": -0.75,
    "normalized SGD": -1.0,
    "Adam": -1.75,
    "normalized Adam": -1.75,
}

Params = dict[str, jax.Array]


class Task(NamedTuple):
    """What every run is trained and tested on.

    Attributes:
        pixels: (n, 64, 1), float32, standardised; those of the first `TRAIN_IMAGES`
            images are trained on.
        labels: (n,), int32.
    """

    pixels: jax.Array
    labels: jax.Array


class Start(NamedTuple):
    """What differs between the seeds.

    Attributes:
        params: initial ones.
        batches: (steps, `BATCH`), indices of training images.
    """

    params: Params
    batches: jax.Array


class End(NamedTuple):
    """What a run comes to, or each of many.

    Attributes:
        error: the share of wrong answers on the images that were not trained on.
        loss: the cross-entropy on those that were, in nats.
    """

    error: jax.Array
    loss: jax.Array


def load_task() -> Task:
    """Return the digits as sequences, with the training images first."""
    images, labels = many_runs.standardised_digits()
    return Task(jnp.asarray(images.reshape(len(images), -1, 1)), jnp.asarray(labels))


def start(seed: int, epochs: int) -> Start:
    """Return initial weights, those of Keras' LSTM, and batches.

    Args:
        seed: of both.
        epochs: passes over the training images.
    """
    random = np.random.default_rng(seed)
    bias = np.zeros(4 * HIDDEN)
    bias[HIDDEN : 2 * HIDDEN] = 1  # of the forget gates, which begin open
    params = {
        "input": _glorot(random, 1, 4 * HIDDEN),
        "recurrent": np.linalg.qr(random.normal(size=(4 * HIDDEN, HIDDEN)))[0].T,
        "bias": bias,
        "head_kernel": _glorot(random, HIDDEN, CLASSES),
        "head_bias": np.zeros(CLASSES),
    }
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
    batches = many_runs.shuffled_batches(random, TRAIN_IMAGES, BATCH, epochs)
    return Start(params, batches)


def all_ends(
    method: str, learning_rates: np.ndarray, starts: list[Start], task: Task
) -> End:
    """Train at every rate from every start.

    Args:
        method: one of `MIDDLES`.
        learning_rates: those at the first step.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        Errors and losses, seeds x learning rates.
    """

    def run(start: Start, learning_rate: jax.Array) -> End:
        return end_of(train(method, learning_rate, start, task), task)

    over_rates, rates = jax.jit(jax.vmap(run, (None, 0))), jnp.asarray(learning_rates)
    ends = many_runs.stacked([over_rates(start, rates) for start in starts])
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), ends)


def train(
    method: str, learning_rate: jax.Array | float, start: Start, task: Task
) -> Params:
    """Return the parameters of one run, whose numbers may be traced.

    Args:
        method: one of `MIDDLES`.
        learning_rate: at the first step; a cosine takes it to zero.
        start: where it begins, and its batches.
        task: what is trained on.
    """
    eta = optax.cosine_decay_schedule(1.0, len(start.batches))
    step = optax.scale_by_learning_rate(lambda count: learning_rate * eta(count))
    optimizer = maybe_normalized(optax.chain(direction_of(method), step), method, NORM)

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        return _loss(params, task.pixels[batch], task.labels[batch])

    return many_runs.train(optimizer, loss, start.params, start.batches)


def end_of(params: Params, task: Task) -> End:
    """Return what these parameters come to.

    Those of a run that diverged know nothing: they are wrong on nine in ten, and their
    loss is that of equal odds.
    """
    answers = predict(params, task.pixels[TRAIN_IMAGES:]).argmax(axis=-1)
    error = jnp.mean(answers != task.labels[TRAIN_IMAGES:])
    loss = _loss(params, task.pixels[:TRAIN_IMAGES], task.labels[:TRAIN_IMAGES])
    return End(error, jnp.where(jnp.isfinite(loss), loss, jnp.log(CLASSES)))


def predict(params: Params, pixels: jax.Array) -> jax.Array:
    """Return logits (n, 10) for sequences (n, steps, 1)."""

    # What is read enters step by step: of all steps and images they
    # would be half a gigabyte, where the images not trained on are tested.
    def step(carry: tuple[jax.Array, jax.Array], pixel: jax.Array) -> tuple:
        output, memory = carry
        gates = pixel @ params["input"] + params["bias"] + output @ params["recurrent"]
        let_in, keep, new, let_out = jnp.split(gates, 4, axis=-1)
        memory = jax.nn.sigmoid(keep) * memory + jax.nn.sigmoid(let_in) * jnp.tanh(new)
        return (jax.nn.sigmoid(let_out) * jnp.tanh(memory), memory), None

    nothing = jnp.zeros((len(pixels), HIDDEN))
    (output, _), _ = jax.lax.scan(step, (nothing, nothing), pixels.swapaxes(0, 1))
    return output @ params["head_kernel"] + params["head_bias"]


def _loss(params: Params, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    logits = predict(params, pixels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _glorot(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    limit = (6 / (inputs + outputs)) ** 0.5
    return random.uniform(-limit, limit, (inputs, outputs))
