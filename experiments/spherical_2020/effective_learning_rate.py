"""Follow the effective learning rate of each layer: Adam against AdamS and AdamSRT.

Roburin et al., "Spherical Perspective on Learning with Normalization Layers", 2020,
arXiv 2006.13382, section 3: before a batch norm only the direction of a filter counts,
so what a step does is to turn it. Measured per output channel of each convolution, and
averaged over the channels and over the steps of an epoch:

    norm   |w|, the length of the filter
    angle  between the filter before and after a step, in radians: the effective
           learning rate that came about
    rate   learning rate x sqrt(d) / |w|, with d elements in the filter: the angle, if
           small, of a step that moves each element by the learning rate, across w. It
           is lr / |w| and not SGD's lr / |w|^2, because these optimizers divide the
           length of the gradient, which is as 1 / |w|, out

    python -m experiments spherical_2020.effective_learning_rate

takes two minutes on two CPU cores. It trains a ResNet-8 on the digits of
scikit-learn by the paper's steps of the rate, with what it tuned for ResNet-20 on
CIFAR-10. It writes `effective_learning_rate.json` and `.png`, and a folder for each
optimizer's run, which the same command resumes; `--redraw` draws the stored records
again.

The paper gives no number for these. Seen, in 60 epochs of nine steps: under AdamSRT
each norm grows, by at most 0.2 %, while the last convolution shrinks by 5 % under Adam
and 3 % under AdamS. So the rate is all but the schedule, and falls by ten at each of
its steps, and the angle with it: that is two thirds of the rate at first, and a sixth
to a third after 20 epochs, as gradients disagree.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

import normopt
from experiments import data, devices, figures, preparation
from experiments.claims import NO_VALUE
from experiments.loop import Job, Plan, keys_of, on_device, order_of
from experiments.models import MODELS
from experiments.preparation import Prepared, TrainConfig
from experiments.runs import Run, measure_and_show, read_records
from experiments.spherical_2020 import protocol
from experiments.spherical_2020.epochs import Record, train_epochs
from experiments.steps import Sums, TrainState, make_train_step, repeat

OPTIMIZERS = ("adam", "adams", "adamsrt")
QUANTITIES = ("norm", "angle", "rate")
_LABELS = {
    "norm": r"norm $\|w\|$ / first epoch's",
    "angle": "angle of a step (rad)",
    "rate": r"lr $\sqrt{d}\,/\,\|w\|$",
}


@dataclasses.dataclass(frozen=True)
class EffectiveLearningRateConfig:
    """What to train, and where to write."""

    dataset: Literal[data.names()] = "digits"  # type: ignore[valid-type]
    """The data set; `digits` comes with scikit-learn."""
    data_dir: Path | None = None
    """The folder with the data set's official files, or its parent."""
    model: Literal[tuple(MODELS)] = "resnet8"  # type: ignore[valid-type]
    """The network, with batch norm after each convolution."""
    epochs: int = 60
    """Passes over the training images; the steps of the rate keep their fractions."""
    seed: int = 0
    """For the initial weights, the order of the images and the augmentation."""
    out: Path = Path("runs/spherical_2020")
    """The folder for records and figure."""
    smoke: bool = False
    """VGG-6 for two epochs, without AdamS."""
    redraw: bool = False
    """Print and draw the stored records, without training."""


class Measures(NamedTuple):
    """Sums over the steps of an epoch of means over the blocks, a scalar a layer."""

    norm: dict[str, jax.Array]
    angle: dict[str, jax.Array]
    rate: dict[str, jax.Array]


def main(args: Sequence[str]) -> None:
    """Train with each optimizer, print the ends, and write records and figure."""
    prog = "python -m experiments spherical_2020.effective_learning_rate"
    config = tyro.cli(EffectiveLearningRateConfig, args=args, prog=prog)
    if config.smoke:
        config = dataclasses.replace(config, model="vgg6", epochs=2)
    name = "effective_learning_rate"
    measure_and_show(
        config, name, lambda console: measure(config, console), draw, table
    )


def measure(config: EffectiveLearningRateConfig, console: Console) -> dict[str, Any]:
    """Train with each optimizer, or go on, or read what is finished.

    Returns:
        The settings, and for each optimizer its records, one an epoch: by quantity, by
        path, the mean over blocks and steps.
    """
    images = data.load(config.dataset, config.data_dir)
    steps = Plan(len(images.train), protocol.BATCH_SIZE, config.epochs, 1).total_steps
    runs = {}
    for name in ("adam", "adamsrt") if config.smoke else OPTIMIZERS:
        optimizer = protocol.optimizer(name, "cifar10", "resnet20", steps)
        settings = TrainConfig(
            dataset=config.dataset,
            model=config.model,
            optimizer=json.dumps(optimizer),
            epochs=config.epochs,
            batch_size=protocol.BATCH_SIZE,
            seed=config.seed,
            runs_dir=(config.out / "smoke" if config.smoke else config.out) / "rates",
        )
        prepared = preparation.prepare(settings, images, optimizer_name=name)
        runs[name] = _records(prepared, console)
    return {
        "device": devices.describe().splitlines()[0],
        "dataset": config.dataset,
        "model": config.model,
        "epochs": config.epochs,
        "runs": runs,
    }


def _records(prepared: Prepared, console: Console) -> list[Record]:
    run: Run = prepared.run
    if not run.is_finished():
        train_epoch = make_train_epoch(prepared.loop.job)
        train_epochs(run, prepared.state, prepared.plan, train_epoch, console)
        run.finish({"steps": prepared.plan.total_steps})
    return read_records(run.metrics_file)


def make_train_epoch(
    job: Job,
) -> Callable[[TrainState, int], tuple[TrainState, Record]]:
    """Return an epoch of a job that measures each step; see `train_epochs`."""
    order_key, step_key = keys_of(job.seed)
    images = on_device(job.data.train)
    step = make_train_step(
        job.network, job.optimizer, job.augmentation, job.plan.batch_size
    )

    def measured_step(carry: Any, *args: Any) -> Any:
        (state, sums), before = carry
        after, sums = step((state, sums), *args)
        rate = job.schedule(state.step)
        new = measures(state.params, after.params, rate)
        return (after, sums), jax.tree.map(jnp.add, before, new)

    run_steps = repeat(measured_step, scan=job.scan)

    def train_epoch(state: TrainState, epoch: int) -> tuple[TrainState, Record]:
        order = order_of(order_key, epoch, job.plan.images)
        shapes = jax.eval_shape(lambda p: measures(p, p, 1.0), state.params)
        zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
        steps = job.plan.steps_per_epoch
        carry = ((state, Sums.zeros()), zeros)
        (state, sums), summed = run_steps(carry, steps, step_key, order, images)
        means = jax.tree.map(lambda total: float(total) / steps, summed)
        return state, {
            "train_loss": float(sums.loss) / int(sums.images),
            "train_accuracy": int(sums.correct) / int(sums.images),
            **means._asdict(),
        }

    return train_epoch


def measures(before: Any, after: Any, learning_rate: Any) -> Measures:
    """Return the quantities of one step, by the path of each convolution.

    Args:
        before: the parameters before the step.
        after: those after it.
        learning_rate: of the step.
    """
    axes = protocol.CHANNEL_AXES
    norms = normopt.block_norms(before, axes)
    angles = normopt.block_angles(before, after, axes)
    found = Measures({}, {}, {})
    (pattern,) = axes
    paths = normopt.leaf_paths(before, pattern)
    # In one order: leaves without blocks are None, which is no leaf of the results.
    kernels = [leaf for leaf in jax.tree.leaves(before) if leaf.ndim == 4]
    for path, kernel, norm, angle in zip(
        paths, kernels, jax.tree.leaves(norms), jax.tree.leaves(angles), strict=True
    ):
        size = kernel.size // kernel.shape[-1]
        found.norm[path] = jnp.mean(norm)
        found.angle[path] = jnp.mean(angle)
        found.rate[path] = jnp.mean(learning_rate * size**0.5 / norm)
    return found


def draw(path: Path, stored: Mapping[str, Any]) -> None:
    """Draw the three quantities of each layer over the epochs, a column an optimizer.

    Args:
        path: the PNG to write.
        stored: what `effective_learning_rate.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 8.5), layout="constrained")
        panels = figure.subplots(len(QUANTITIES), len(stored["runs"]), sharey="row")
        for column, (name, records) in zip(
            panels.T, stored["runs"].items(), strict=True
        ):
            column[0].set_title(name)
            column[-1].set_xlabel("epoch")
            for axes, quantity in zip(column, QUANTITIES, strict=True):
                _draw_layers(axes, records, quantity)
        for axes, quantity in zip(panels[:, 0], QUANTITIES, strict=True):
            axes.set_ylabel(_LABELS[quantity])
        lines, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(
            f"{stored['model']} on {stored['dataset']}, mean over the channels"
        )
        figures.save(figure, path, NO_VALUE)


def _draw_layers(axes: Any, records: Sequence[Record], quantity: str) -> None:
    layers = list(records[0][quantity])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for place, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
        values = np.array([record[quantity][layer] for record in records])
        axes.plot(
            [record["epoch"] for record in records],
            # Lengths begin apart, and change by a few percent.
            values / values[0] if quantity == "norm" else values,
            color=colour,
            # Layers of one shape have one rate: dashes show the line beneath.
            linestyle=("-", (0, (5, 5)))[place % 2],
            linewidth=1.8,
            label=layer.removesuffix("/kernel"),
        )
    if quantity != "norm":
        axes.set_yscale("log")


def table(stored: Mapping[str, Any]) -> Table:
    """Return what each optimizer begins and ends with."""
    shown = Table(
        "optimizer",
        title="mean over the convolutions, in the first and in the last epoch",
        box=box.SIMPLE_HEAD,
    )
    for quantity in QUANTITIES:
        shown.add_column(quantity, justify="right")
    for name, records in stored["runs"].items():
        cells = []
        for quantity in QUANTITIES:
            first, last = (
                np.mean(list(record[quantity].values()))
                for record in (records[0], records[-1])
            )
            cells.append(f"{first:.3g} -> {last:.3g}")
        shown.add_row(name, *cells)
    return shown
