"""A small convolutional network trained at every learning rate and seed at once.

A run is small enough that all runs of an optimizer, each with its own state, are one
computation under `jax.vmap`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from experiments.training import many_runs

B1, B2, DECAY = 0.95, 0.98, 1e-3
SGD_MOMENTUM = 0.9
TRAIN_IMAGES, BATCH = 400, 20
KERNEL, STRIDE, CLASSES = 3, 2, 10
CHANNELS = (1, 8, 16)

Make = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and the middle of the rates that it is trained at.

    Attributes:
        make: from the learning rate to the optimizer.
        middle: the exponent of 10 that its three decades lie about.
    """

    make: Make
    middle: float

    @property
    def exponents(self) -> np.ndarray:
        """Of 10, those of its learning rates: four for each decade, and both ends."""
        return many_runs.rates_about(self.middle, decades=3)


def _novograd(middle: float, weight_decay: float, grad_averaging: bool) -> Method:
    def make(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return normopt.novograd(
            learning_rate,
            B1,
            B2,
            weight_decay=weight_decay,
            grad_averaging=grad_averaging,
        )

    return Method(make, middle)


def _adamw(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=DECAY)


def _sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, SGD_MOMENTUM)


METHODS = {
    "NovoGrad, sum": _novograd(-2.0, 0.0, False),
    "NovoGrad, sum, decay": _novograd(-2.0, DECAY, False),
    "NovoGrad, average": _novograd(-0.75, 0.0, True),
    "NovoGrad, average, decay": _novograd(-0.75, DECAY, True),
    "AdamW": Method(_adamw, -2.0),
    "SGD": Method(_sgd, -1.75),
}


class Task(NamedTuple):
    """What every run is trained and tested on.

    Attributes:
        images: (n, 8, 8, 1), float32, standardised; the first `TRAIN_IMAGES` are
            trained on.
        labels: (n,), int32.
    """

    images: jax.Array
    labels: jax.Array


class Start(NamedTuple):
    """What differs between the seeds.

    Attributes:
        params: initial ones, a layer each.
        batches: (steps, size of a batch), indices of training images.
    """

    params: Params
    batches: jax.Array


def load_task() -> Task:
    """Return the digits with the training images first."""
    images, labels = many_runs.standardised_digits()
    return Task(jnp.asarray(images), jnp.asarray(labels))


def start(seed: int, epochs: int, batch: int = BATCH) -> Start:
    """Return initial weights and batches.

    Args:
        seed: of both.
        epochs: passes over the training images.
        batch: how many of them a step sees, a divisor of `TRAIN_IMAGES`.
    """
    random = np.random.default_rng(seed)
    side, shapes = 8, []
    for inputs, outputs in zip(CHANNELS[:-1], CHANNELS[1:], strict=True):
        shapes.append((KERNEL, KERNEL, inputs, outputs))
    # The first convolution keeps the image's size, the second halves it.
    shapes.append(((side // STRIDE) ** 2 * CHANNELS[-1], CLASSES))
    params = []
    for shape in shapes:
        deviation = (2 / np.prod(shape[:-1])) ** 0.5
        kernel = random.normal(0, deviation, shape)
        layer = {"kernel": kernel, "bias": np.zeros(shape[-1])}
        params.append({name: jnp.asarray(leaf, float) for name, leaf in layer.items()})
    batches = many_runs.shuffled_batches(random, TRAIN_IMAGES, batch, epochs)
    return Start(params, batches)


def all_errors(
    make: Make, learning_rates: np.ndarray, starts: list[Start], task: Task
) -> np.ndarray:
    """Train at every rate from every start.

    Args:
        make: gives the optimizer.
        learning_rates: those at the first step.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        The errors on the images that were not trained on, seeds x learning rates.
    """

    def error(start: Start, learning_rate: jax.Array) -> jax.Array:
        return held_out_error(train(make, learning_rate, start, task), task)

    return many_runs.over_all(error, starts, learning_rates)


def train(
    make: Make,
    learning_rate: jax.Array | float,
    start: Start,
    task: Task,
    unit: jax.Array | float = 1.0,
    warm_up: float = 0.0,
) -> Params:
    """Return the parameters of one run, whose numbers may be traced.

    Args:
        make: gives the optimizer.
        learning_rate: the largest, at the first step; a cosine takes it to zero.
        start: where it begins, and its batches.
        task: what is trained on.
        unit: what the loss is multiplied by, and with it every gradient.
        warm_up: the share of the steps in which the rate first rises from zero.
    """
    steps = len(start.batches)
    eta = optax.cosine_decay_schedule(1.0, steps)
    if warm_up:
        eta = optax.warmup_cosine_decay_schedule(0.0, 1.0, int(warm_up * steps), steps)
    optimizer = make(lambda count: learning_rate * eta(count))

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        logits, labels = predict(params, task.images[batch]), task.labels[batch]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.asarray(unit, losses.dtype) * losses.mean()

    return many_runs.train(optimizer, loss, start.params, start.batches)


def held_out_error(params: Params, task: Task) -> jax.Array:
    """Return the share of wrong answers on the images that were not trained on.

    A run that diverged answers 0 throughout and so is wrong on nine in ten.
    """
    return jnp.mean(wrong_answers(params, task))


def wrong_answers(params: Params, task: Task) -> jax.Array:
    """Return which images that were not trained on are answered wrong, (n,), bool."""
    answers = predict(params, task.images[TRAIN_IMAGES:]).argmax(axis=-1)
    return answers != task.labels[TRAIN_IMAGES:]


def predict(params: Params, images: jax.Array) -> jax.Array:
    """Return logits (n, 10) for images (n, 8, 8, 1)."""
    first, second, dense = params
    images = jax.nn.relu(convolve(images, first["kernel"], 1) + first["bias"])
    images = jax.nn.relu(convolve(images, second["kernel"], STRIDE) + second["bias"])
    return images.reshape(len(images), -1) @ dense["kernel"] + dense["bias"]


def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve images, a pixel of zeros about them, as one product of matrices.

    With kernels that differ between the runs, XLA's own convolution is slow on a CPU.

    Args:
        images: (n, height, width, inputs).
        kernel: (3, 3, inputs, outputs).
        stride: between the places it is laid on.

    Returns:
        Images (n, height / stride, width / stride, outputs).
    """
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(KERNEL)
        for column in range(KERNEL)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])
