"""Map the test error over learning rate and decay, coupled and decoupled.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101,
Figure 2: SGD with momentum and Adam, with L2 in the gradient and with decoupled decay,
all on one cosine to zero. Here on 200 of the handwritten digits of scikit-learn, with a
network of two hidden layers of 64 units, batch-normalised as the paper's ResNet is, for
60 epochs of batches of 20; the error is that on the 1,597 other images, over 4 seeds.

    python -m experiments decoupled_decay_2019.decay_grid

takes TIME on two CPU cores.
"""

import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table

import normopt
from experiments import devices
from experiments.data import digits
from experiments.runs import write_bytes, write_json

MOMENTUM = 0.9
TRAIN_IMAGES, BATCH = 200, 20
# What is near the best: half of what decay gained in a first look at SGD with L2.
MARGIN = 0.005
BEST_CELLS = 10
# Errors above the best that the colours tell apart.
COLOUR_SPAN = 0.04

Optimizer = optax.GradientTransformation
Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and the grid that has its optimum inside.

    Attributes:
        make: from learning rate, decay and eta_t to the optimizer.
        learning_rates: exponents of 2.
        decays: exponents of 2.
    """

    make: Callable[[Any, Any, optax.Schedule], Optimizer]
    learning_rates: range
    decays: range


def _sgd(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    step = normopt.sgdw(learning_rate, MOMENTUM, schedule=eta)
    return optax.chain(normopt.add_decay(decay), step)


def _sgdw(learning_rate: Any, decay: Any, eta: optax.Schedule) -> Optimizer:
    return normopt.sgdw(learning_rate, MOMENTUM, decay, schedule=eta)


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
    "Adam, L2": Method(_adam, range(-12, -1), range(-13, -2)),
    "AdamW": Method(_adamw, range(-12, -1), range(-14, -3)),
}


@dataclasses.dataclass(frozen=True)
class DecayGridConfig:
    """Where to write, and how much to compute."""

    out: Path = Path("runs/decoupled_decay_2019")
    """The folder for the records and the figure."""
    name: str = "grid"
    """Of the two files, without their endings."""
    seeds: int = 4
    """Runs a cell, whose errors are averaged."""
    epochs: int = 60
    """Passes over the training images."""
    hidden: int = 64
    """Units in each of the two hidden layers."""
    batch_norm: bool = True
    """Whether the hidden layers are normalised."""
    smoke: bool = False
    """A tenth of the work: every fourth row and column, 2 seeds, 3 epochs, 16 units."""
    redraw: bool = False
    """Print and draw the stored records, without training."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What one run trains on.

    Attributes:
        images: (n, 64), float32, standardised; the first `TRAIN_IMAGES` are trained on.
        labels: (n,), int32.
        epochs: passes over the training images.
        hidden: units a hidden layer.
        batch_norm: whether these are normalised.
    """

    images: jax.Array
    labels: jax.Array
    epochs: int
    hidden: int
    batch_norm: bool


def main(args: Sequence[str]) -> None:
    """Train the grids, print the summary, and write records and figure."""
    prog = "python -m experiments decoupled_decay_2019.decay_grid"
    config = tyro.cli(DecayGridConfig, args=args, prog=prog)
    if config.smoke:
        config = dataclasses.replace(config, seeds=2, epochs=3, hidden=16)
    console = Console()
    records, figure = (config.out / f"{config.name}.{end}" for end in ("json", "png"))
    if not config.redraw:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(records, measure(config, console))
    stored = json.loads(records.read_text())
    draw(figure, stored)
    console.print(_table(stored))
    console.print(f"{records}\n{figure}", markup=False, highlight=False, soft_wrap=True)


def measure(config: DecayGridConfig, console: Console) -> dict[str, Any]:
    """Train every cell of every method.

    Args:
        config: how much of it.
        console: gets a line for each method.

    Returns:
        For each method the exponents of 2 and the errors, seeds x rates x decays.
    """
    task = load_task(config)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    stride, grids = 4 if config.smoke else 1, {}
    for name, method in METHODS.items():
        began = time.perf_counter()
        rates, decays = method.learning_rates[::stride], method.decays[::stride]
        errors = train_grid(method.make, rates, decays, keys, task)
        errors = np.asarray(errors, float).transpose(2, 0, 1).tolist()
        grid = {"learning_rates": list(rates), "decays": list(decays)}
        grids[name] = grid | {"errors": errors}
        console.print(f"{name}: {time.perf_counter() - began:.0f} s", highlight=False)
    settings = {"epochs": task.epochs, "hidden": task.hidden}
    settings |= {"batch_norm": task.batch_norm, "device": devices.describe()}
    return settings | {"grids": grids}


def load_task(config: DecayGridConfig) -> Task:
    """Return the digits with the training images first."""
    data = digits.load()
    splits = (data.train, data.validation, data.test)
    images = np.concatenate([split.images for split in splits])
    images = ((images - data.mean) / data.std).reshape(len(images), -1)
    labels = np.concatenate([split.labels for split in splits])
    return Task(
        jnp.asarray(images, jnp.float32),
        jnp.asarray(labels),
        config.epochs,
        config.hidden,
        config.batch_norm,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="task")
def train_grid(): ...
