"""A network trained by four optimizers, each a run that can be resumed, and its curves.

The two networks of this paper share it: SGD with momentum and Adam, each plain and with
normalized gradients, and one figure for the training and one for the test images. Each
seed has runs, and folders, of its own.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import normopt
from experiments.config import Options
from experiments.data import Dataset, Split
from experiments.data.augment import Augmentation
from experiments.data.dataset import normalised
from experiments.papers.block_normalized_2017.curve_figures import (
    SPLITS,
    Published,
    draw,
    table,
)
from experiments.papers.block_normalized_2017.methods import (
    METHODS,
    MOMENTUM,
    SMOKE,
    kind_of,
    optimizer_of,
)
from experiments.train import train
from experiments.training import provenance
from experiments.training.loop import Job, Loop, Plan
from experiments.training.measuring import (
    check_least,
    folder_of,
    one_line_errors,
    read_stored,
    showing,
)
from experiments.training.preparation import Prepared
from experiments.training.runs import Run, read_records, write_json
from experiments.training.steps import Network, create, initial_state, scans

# A network, its parameters and its other state.
Model = tuple[Network, Any, Any]


@dataclasses.dataclass(frozen=True)
class CurvesOptions(Options):
    """What to read, where to write, and how much to compute."""

    data_dir: Path | None = None
    """The folder with the data set's official files, or its parent."""
    seeds: int = 3
    """Runs of each optimizer, with seeds from 0 on for the initial weights, dropout and
    the order of the images; one in a smoke run."""
    images: int | None = None
    """Train on so many of the training images, the first ones; left out, on all."""
    epochs: int | None = None
    """Passes over the training images at each rate; left out, the example's."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What all four optimizers train, and how.

    Attributes:
        name: of the experiment, part of the folders' names.
        build: the network from the images' `size`, `num_classes`, `channels`, `rngs`.
        settings: further arguments of `build`, which JSON can hold.
        data: whose validation images are its test images; see `with_test_curve`.
        batch_size: images in a step.
        norm: of normopt, by which gradients are divided.
        rates: the learning rates of the two kinds of optimizer, one after the other.
        epochs: passes over the training images at each rate.
        published: what the notebook of the example printed.
    """

    name: str
    build: Callable[..., nnx.Module]
    settings: dict[str, Any]
    data: Dataset
    batch_size: int
    norm: str
    rates: dict[str, tuple[float, ...]]
    epochs: int
    published: Published

    def described(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return {
            "data": self.data.name,
            "images": len(self.data.train),
            "network": self.settings,
            "batch_size": self.batch_size,
            "norm": self.norm,
            "learning_rates": {kind: list(rates) for kind, rates in self.rates.items()},
            "epochs_per_rate": self.epochs,
            "nesterov_momentum": MOMENTUM,
        }

    @property
    def plan(self) -> Plan:
        """The length of a run, which has one record an epoch."""
        images, stages = len(self.data.train), len(self.rates["SGD"])
        per_epoch = images // self.batch_size
        return Plan(images, self.batch_size, stages * self.epochs, per_epoch)


def with_test_curve(data: Dataset) -> Dataset:
    """Return the official splits: all training images, and those of the test twice.

    The test images stand for the validation images as well, which is what gives a test
    curve. Nothing is chosen by it: neither a rate nor the epoch to stop at.
    """
    train = Split(
        np.concatenate([data.train.images, data.validation.images]),
        np.concatenate([data.train.labels, data.validation.labels]),
    )
    return normalised(data.name, data.num_classes, train, data.test, data.test)


def shortened(task: Task, config: CurvesOptions) -> Task:
    """Return the part of a task that the command line asks for."""
    epochs = task.epochs if config.epochs is None else config.epochs
    part = task.data if config.images is None else task.data.first(config.images)
    if (images := len(part.train)) < task.batch_size:
        raise ValueError(
            f"`images` must fill a batch of {task.batch_size}, got {images}"
        )
    return dataclasses.replace(task, data=part, epochs=epochs)


def build(task: Task, seed: int) -> Model:
    """Build the network that all optimizers begin with, taken apart.

    Args:
        task: whose network.
        seed: for the initial weights and dropout.
    """
    images = task.data
    _, size, _, channels = images.train.images.shape
    # Images from 0 to 1, as the notebooks have them: not by mean and deviation.
    peak = np.full(channels, images.train.images.max(), np.float32)
    return create(
        lambda: task.build(
            size,
            **task.settings,
            num_classes=images.num_classes,
            channels=channels,
            rngs=nnx.Rngs(seed),
        ),
        np.zeros_like(peak),
        peak,
    )


def prepare(
    method: str, task: Task, model: Model, seed: int, runs_dir: Path
) -> Prepared:
    """Prepare the run of one optimizer, without writing anything.

    Args:
        method: one of `METHODS`.
        task: what it trains.
        model: what `build` returned.
        seed: of the model, here for the order of the images.
        runs_dir: where the run's folder goes.

    Returns:
        What `experiments.train.train` takes.
    """
    images, plan = task.data, task.plan
    # Copies: a run takes the buffers that it begins with.
    network, *arrays = model
    params, model_state = jax.tree.map(jnp.copy, arrays)
    steps = task.epochs * plan.steps_per_epoch
    optimizer, schedule = optimizer_of(
        method, task.norm, task.rates[kind_of(method)], steps
    )
    loop = Loop(
        Job(
            network=network,
            optimizer=optimizer,
            optimizer_name=method,
            schedule=schedule,
            data=images,
            augmentation=Augmentation(),  # none, as in the original
            plan=plan,
            seed=seed,
            scan=scans(),
        )
    )
    state = initial_state(params, model_state, optimizer)
    loop.check(state)
    label = f"{images.name}-{task.name}-{method.replace(' ', '_').lower()}"
    config = {
        **task.described(),
        "method": method,
        "images": images.fingerprint(),  # in the place of their number
        "seed": seed,
    }
    run = Run(runs_dir, label, config)
    return Prepared(run, loop, plan, images, state, normopt.describe(params))


def run(config: CurvesOptions, name: str, load: Callable[[], Task]) -> None:
    """Train all four, print the summary, and write records and figures.

    Args:
        config: from the command line.
        name: of the records and figures.
        load: gives the task, whose data may be missing or damaged.
    """
    check_least(config, seeds=1, images=1, epochs=1)
    console = Console()
    folder = folder_of(config)
    records = folder / f"{name}.json"
    if config.redraw and not records.exists():
        sys.exit(f"error: --redraw needs {records}, which a run without it writes")
    if not config.redraw:
        with one_line_errors():
            _train_and_store(config, shortened(load(), config), records, console)
    stored, paths = read_stored(records), [records]
    with showing(records, redraw=config.redraw):
        for split in SPLITS:
            paths.append(folder / f"{name}_{split}.png")
            draw(paths[-1], stored, split)
        shown = table(stored)
    console.print(shown)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _train_and_store(
    config: CurvesOptions, task: Task, records: Path, console: Console
) -> None:
    records.parent.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for seed in range(1 if config.smoke else config.seeds):
        seeds[str(seed)] = measure(config, task, seed, records.parent, console)
        stored = {
            "config": {**task.described(), "test_images": len(task.data.test)},
            "published": task.published._asdict(),
            "seeds": seeds,
            "provenance": provenance.describe(),
        }
        write_json(records, stored)


def measure(
    config: CurvesOptions, task: Task, seed: int, folder: Path, console: Console
) -> dict[str, Any]:
    """Train by each optimizer, or go on where an earlier command stopped.

    Args:
        config: whether to begin anew, and whether only those of `SMOKE`.
        task: what to train.
        seed: of the runs.
        folder: where the runs' folders go.
        console: where progress goes.

    Returns:
        The curves of the seed, loss and accuracy by epoch of each optimizer, and what
        they are read from.
    """
    curves, runs, model = {}, {}, build(task, seed)
    for method in SMOKE if config.smoke else METHODS:
        console.print(f"[bold]{method}[/bold]")
        prepared = prepare(method, task, model, seed, folder)
        result = train(prepared, fresh=config.fresh, console=console)
        curves[method] = curves_of(read_records(prepared.run.metrics_file))
        runs[method] = {
            "folder": prepared.run.folder.name,
            "parameters": result["parameters"],
            "steps": result["steps"],
            "provenance": prepared.run.provenance(),
        }
    return {"curves": curves, "runs": runs}


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return loss and accuracy at the end of each epoch, rounded as figures show them.

    Args:
        records: of a run with one an epoch, whose validation images are its test's.
    """
    return {
        f"{split}_{quantity}": [
            float(f"{record[f'{source}_{quantity}']:.5g}") for record in records
        ]
        for split, source in (("train", "train"), ("test", "validation"))
        for quantity in ("loss", "accuracy")
    }
