"""A small network trained at every learning rate and decay at once.

The network is small enough that hundreds of runs, each with its own optimizer state,
are one computation under `jax.vmap`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from experiments.training import many_runs

MOMENTUM = 0.9
TRAIN_IMAGES, BATCH = 200, 20
# Of those held out, the first choose a cell, and the others judge it.
TUNING_IMAGES = 400
VARIANCE_EPS = 1e-5

Optimizer = optax.GradientTransformation
Make = Callable[[Any, Any, optax.Schedule], Optimizer]
Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and the grid that has its optimum inside.

    Attributes:
        make: from learning rate, decay and eta_t to the optimizer.
        learning_rates: exponents of 2.
        decays: exponents of 2.
    """

    make: Make
    learning_rates: range
    decays: range


def _sgd(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    step = normopt.sgdw(learning_rate, MOMENTUM, schedule=eta)
    return optax.chain(normopt.add_decay(decay), step)


def _sgdw(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    return normopt.sgdw(learning_rate, MOMENTUM, weight_decay=decay, schedule=eta)


def _adam(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    return optax.chain(
        normopt.add_decay(decay),
        normopt.scale_by_block_adam(),
        optax.scale_by_learning_rate(lambda count: learning_rate * eta(count)),
    )


def _adamw(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    return normopt.adamw(learning_rate, weight_decay=decay, schedule=eta)


METHODS = {
    "SGD, L2": Method(_sgd, range(-10, 1), range(-13, -2)),
    "SGDW": Method(_sgdw, range(-10, 1), range(-14, -3)),
    "Adam, L2": Method(_adam, range(-12, -1), range(-12, -1)),
    "AdamW": Method(_adamw, range(-12, -1), range(-14, -3)),
}


# Arrays have no hash: a task is itself alone, so that compiled programs know it.
@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What one run trains, and on what.

    Attributes:
        images: (n, 64), float32, standardised; the first are trained on, and there once
            for each draw of their noise.
        labels: (n,), int32.
        epochs: passes over the training images.
        hidden: units in each of the two hidden layers.
        batch_norm: whether these are normalised.
        train_images: how many are trained on.
        draws: of their noise.
    """

    images: jax.Array
    labels: jax.Array
    epochs: int
    hidden: int
    batch_norm: bool
    train_images: int = TRAIN_IMAGES
    draws: int = 1

    @property
    def held_out(self) -> int:
        """How many images are not trained on."""
        return len(self.labels) - self.draws * self.train_images


class Start(NamedTuple):
    """What differs between the seeds.

    Attributes:
        params: initial ones, a layer each.
        batches: (steps, `BATCH`), indices of training images.
    """

    params: Params
    batches: jax.Array


def load_task(epochs: int, hidden: int, batch_norm: bool) -> Task:
    """Return the digits with the training images first; see `Task`."""
    images, labels = many_runs.standardised_digits()
    flat = jnp.asarray(images.reshape(len(images), -1))
    return Task(flat, jnp.asarray(labels), epochs, hidden, batch_norm)


def load_noisy_task(
    epochs: int, hidden: int, train_images: int, deviation: float
) -> Task:
    """Return digits under noise, which each epoch draws anew of the training images.

    Args:
        epochs: passes over the training images.
        hidden: units in each of the two hidden layers, which are normalised.
        train_images: how many are trained on.
        deviation: of the noise of a pixel, in deviations of the pixels.
    """
    images, labels = many_runs.standardised_digits()
    flat, random = images.reshape(len(images), -1), np.random.default_rng(0)
    some, others = np.split(np.arange(len(flat)), [train_images])
    order = np.concatenate([np.tile(some, epochs), others])
    noise = deviation * random.normal(size=(len(order), flat.shape[1]))
    noisy = jnp.asarray(flat[order] + noise, jnp.float32)
    return Task(
        noisy, jnp.asarray(labels[order]), epochs, hidden, True, train_images, epochs
    )


def grid_wrong(
    make: Make,
    learning_rates: Sequence[int],
    decays: Sequence[int],
    starts: Sequence[Start],
    task: Task,
) -> np.ndarray:
    """Train every cell of a grid, from every start.

    Args:
        make: gives the optimizer.
        learning_rates: exponents of 2.
        decays: exponents of 2.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        How many answers are wrong on the images that tune and on those that judge,
        seeds x learning rates x decays x 2.
    """

    def wrong(start: Start, learning_rate: jax.Array, decay: jax.Array) -> jax.Array:
        return wrong_answers(train(make, learning_rate, decay, start, task), task)

    over_decays = jax.vmap(wrong, (None, None, 0))
    over_rates = jax.vmap(over_decays, (None, 0, None))
    over_starts = jax.jit(jax.vmap(over_rates, (0, None, None)))
    powers = (2.0 ** jnp.asarray(exponents) for exponents in (learning_rates, decays))
    return np.asarray(over_starts(many_runs.stacked(starts), *powers))


def cell_curves(
    make: Make, learning_rate: int, decay: int, starts: Sequence[Start], task: Task
) -> np.ndarray:
    """Train one cell of a grid, from every start.

    Args:
        make: gives the optimizer.
        learning_rate: an exponent of 2.
        decay: an exponent of 2.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        How many answers are wrong on the images that judge after each epoch, seeds x
        epochs.
    """
    exponents = (learning_rate, decay)
    powers = (jnp.asarray(2.0**exponent, float) for exponent in exponents)
    return np.asarray(_curves(make, *powers, many_runs.stacked(starts), task))


# Compiled once for a cell after another of the same optimizer.
@functools.partial(jax.jit, static_argnames=("make", "task"))
def _curves(
    make: Make, learning_rate: jax.Array, decay: jax.Array, starts: Start, task: Task
) -> jax.Array:
    def curve(start: Start) -> jax.Array:
        return wrong_by_epoch(make, learning_rate, decay, start, task)

    return jax.vmap(curve)(starts)


def start(seed: int, task: Task) -> Start:
    """Return initial weights and batches."""
    random = np.random.default_rng(seed)
    sizes, params = [task.images.shape[1], task.hidden, task.hidden, 10], []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        kernel = random.normal(0, (2 / fan_in) ** 0.5, (fan_in, fan_out))
        layer = {"kernel": kernel, "bias": np.zeros(fan_out)}
        is_hidden = len(params) < len(sizes) - 2
        if task.batch_norm and is_hidden:
            layer["scale"] = np.ones(fan_out)
        params.append({name: jnp.asarray(leaf, float) for name, leaf in layer.items()})
    images = task.train_images
    batches = many_runs.shuffled_batches(random, images, BATCH, task.epochs)
    if task.draws > 1:
        epochs = np.repeat(np.arange(task.epochs), images // BATCH)
        batches = batches + images * epochs[:, None]
    return Start(params, batches)


def train(
    make: Make,
    learning_rate: jax.Array | float,
    decay: jax.Array | float,
    start: Start,
    task: Task,
) -> Params:
    """Return the parameters of one run, all of whose numbers may be traced.

    Args:
        make: gives the optimizer.
        learning_rate: at eta_t = 1.
        decay: at eta_t = 1.
        start: where it begins, and its batches.
        task: what is trained on.
    """
    optimizer = make(learning_rate, decay, _one_cosine(start))
    loss = functools.partial(_loss, task)
    return many_runs.train(optimizer, loss, start.params, start.batches)


def wrong_by_epoch(
    make: Make,
    learning_rate: jax.Array | float,
    decay: jax.Array | float,
    start: Start,
    task: Task,
) -> jax.Array:
    """Return the wrong answers that judge, after each epoch of what `train` does.

    Args:
        make: gives the optimizer.
        learning_rate: at eta_t = 1.
        decay: at eta_t = 1.
        start: where it begins, and its batches.
        task: what is trained on.
    """
    optimizer = make(learning_rate, decay, _one_cosine(start))
    step = many_runs.step_of(optimizer, functools.partial(_loss, task))

    def epoch(carry: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, wrong_answers(carry[0], task)[1]

    epochs = start.batches.reshape(task.epochs, -1, BATCH)
    begin = (start.params, optimizer.init(start.params))
    return jax.lax.scan(epoch, begin, epochs)[1]


def _one_cosine(start: Start) -> optax.Schedule:
    return normopt.cosine_restarts(len(start.batches))


def wrong_answers(params: Params, task: Task) -> jax.Array:
    """Return how many are wrong on the images that tune, and on those that judge, (2,).

    A run that diverged answers 0 throughout and so is wrong on nine in ten.
    """
    # The first of their draws gives the statistics of the training images.
    ends = task.images[: task.train_images], task.images[-task.held_out :]
    images = jnp.concatenate(ends)
    answers = _logits(params, images, task.train_images).argmax(axis=-1)
    wrong = answers[task.train_images :] != task.labels[-task.held_out :]
    return jnp.stack([wrong[:TUNING_IMAGES].sum(), wrong[TUNING_IMAGES:].sum()])


def _loss(task: Task, params: Params, batch: jax.Array) -> jax.Array:
    logits = _logits(params, task.images[batch], BATCH)
    labels = task.labels[batch]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _logits(params: Params, images: jax.Array, counted: int) -> jax.Array:
    """Answer for all images; the first `counted` give the batch norm's statistics."""
    for layer in params[:-1]:
        images = images @ layer["kernel"]
        if "scale" in layer:
            mean, variance = images[:counted].mean(0), images[:counted].var(0)
            factor = layer["scale"] * jax.lax.rsqrt(variance + VARIANCE_EPS)
            images = (images - mean) * factor
        images = jax.nn.relu(images + layer["bias"])
    return images @ params[-1]["kernel"] + params[-1]["bias"]


def as_text(counts: np.ndarray) -> Any:
    """Return counts as lists whose innermost are texts: JSON has a line for each."""
    if counts.ndim == 1:
        return " ".join(map(str, counts))
    return [as_text(inner) for inner in counts]


def from_text(stored: Any) -> np.ndarray:
    """Return the counts that `as_text` has written."""
    if isinstance(stored, str):
        return np.array(stored.split(), int)
    return np.array([from_text(inner) for inner in stored])
