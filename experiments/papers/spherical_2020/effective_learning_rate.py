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

takes two to four minutes on two CPU cores. It trains a ResNet-8 on the digits of
scikit-learn by the paper's steps of the rate, with what it tuned for ResNet-20 on
CIFAR-10, but for the decay. It writes `effective_learning_rate.json` and `.png`, and a
folder for each optimizer's run, which the same command resumes; `--redraw` draws the
stored records again.

He's initial weights make sqrt(d) / |w| a function of a layer's width alone, so that an
angle that knew the width and nothing of |w| would go with it just as well. So each
kernel is first multiplied by a factor of its own, drawn log-uniformly from 1/4 to 4
and the same for the three optimizers; the batch norm behind leaves the function as it
is. The table has what the widths alone would explain beside what the rates do.

There is no weight decay. The paper's differ between the three, and one that is in the
gradient weighs more in longer filters, as |w|^2: both would show in the norms and in
the angles, where the optimizer's doing is to be seen.

The paper gives no number for these. Seen, in 60 epochs of nine steps, over the seven
layers within an epoch: the logarithms of angle and rate correlate by 0.993 to 0.995,
with slopes from 0.98 to 1.00; those of the angle and what the widths alone would give
by -0.1. With `--seed 1`, whose records are not stored, they do by 0.996 and 0.997 with
slopes of 0.96 and 0.97, and by 0.73 with a slope of 2.4. The norms grow, in the stored
records: those of the two kernels that are made nearly four times shorter by 16 to 19 %
under Adam and AdamS and by 1 % under AdamSRT, the others by at most 3.3 % and 0.2 %.
The angle is 0.6 to 0.7 of the rate at first and, as gradients disagree, 0.12 to 0.17
after 20 epochs and a quarter at the end.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import data
from experiments.models import MODELS
from experiments.papers.spherical_2020 import protocol
from experiments.papers.spherical_2020.epochs import Record, train_epochs
from experiments.papers.spherical_2020.turning import (
    draw_factors,
    fit_rates,
    fit_widths,
    lengthen,
    make_train_epoch,
)
from experiments.report import figures
from experiments.report.claims import NO_VALUE
from experiments.training import devices, preparation
from experiments.training.locking import alone_in
from experiments.training.loop import Plan
from experiments.training.measuring import check_least, folder_of, measure_and_show
from experiments.training.preparation import Prepared, TrainConfig
from experiments.training.runs import Run, read_records

OPTIMIZERS = ("adam", "adams", "adamsrt")
# None, for all alike: see the head of this file.
WEIGHT_DECAY = 0.0
QUANTITIES = ("norm", "angle", "rate")
_LABELS = {
    "norm": r"norm $\|w\|$",
    "growth": r"$\|w\|$ / first epoch's $- 1$",
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
    """For the initial weights and their factors, the order of the images and the
    augmentation."""
    out: Path = Path("runs/spherical_2020")
    """The folder for records and figure."""
    smoke: bool = False
    """VGG-6 for two epochs, without AdamS."""
    redraw: bool = False
    """Print and draw the stored records, without training."""
    fresh: bool = False
    """Train again what is finished or under way."""


def main(args: Sequence[str]) -> None:
    """Train with each optimizer, print the ends, and write records and figure."""
    prog = "python -m experiments spherical_2020.effective_learning_rate"
    config = tyro.cli(EffectiveLearningRateConfig, args=args, prog=prog)
    # Of one epoch there is no growth to draw.
    check_least(config, epochs=2, seed=0)
    if config.smoke:
        config = dataclasses.replace(config, model="vgg6", epochs=2)
    name = "effective_learning_rate"
    measure_and_show(
        config, name, lambda console: measure(config, console), draw, table
    )


def measure(config: EffectiveLearningRateConfig, console: Console) -> dict[str, Any]:
    """Train with each optimizer, or go on, or read what is finished.

    Returns:
        The settings; the factors by path; and for each optimizer its configuration,
        where it comes from, and its records, one an epoch: by quantity, by path, the
        mean over blocks and steps.
    """
    images = data.load(config.dataset, config.data_dir)
    stored: dict[str, Any] = {
        "device": devices.describe().splitlines()[0],
        "dataset": config.dataset,
        "model": config.model,
        "epochs": config.epochs,
        "seed": config.seed,
        "factors": {},
        "optimizers": {},
        "runs": {},
    }
    for name in ("adam", "adamsrt") if config.smoke else OPTIMIZERS:
        prepared = _prepare(config, name, images)
        factors = draw_factors(prepared.state.params, config.seed)
        # Part of what names the folder, as all that its numbers depend on.
        run = Run(
            folder_of(config) / "rates",
            f"{config.dataset}-{config.model}-{name}",
            {**prepared.run.config, "factors": factors},
        )
        with alone_in(run.folder):
            if config.fresh:
                run.remove()
            stored["runs"][name] = _records(run, prepared, factors, console)
        stored["factors"] = factors
        stored["optimizers"][name] = {
            "config": run.config["optimizer"],
            "provenance": run.provenance(),
        }
    return stored


def _prepare(
    config: EffectiveLearningRateConfig, name: str, images: data.Dataset
) -> Prepared:
    steps = Plan(len(images.train), protocol.BATCH_SIZE, config.epochs, 1).total_steps
    optimizer = {
        **protocol.optimizer(name, "cifar10", "resnet20", steps),
        "weight_decay": WEIGHT_DECAY,
    }
    settings = TrainConfig(
        dataset=config.dataset,
        model=config.model,
        optimizer=json.dumps(optimizer),
        epochs=config.epochs,
        batch_size=protocol.BATCH_SIZE,
        seed=config.seed,
    )
    return preparation.prepare(settings, images, optimizer_name=name)


def _records(
    run: Run, prepared: Prepared, factors: Mapping[str, float], console: Console
) -> list[Record]:
    if not run.is_finished():
        job = prepared.loop.job
        start = lengthen(prepared.state, job, factors)
        train_epochs(run, start, prepared.plan, make_train_epoch(job), console)
        run.finish({"steps": prepared.plan.total_steps})
    return read_records(run.metrics_file)


def draw(path: Path, stored: Mapping[str, Any]) -> None:
    """Draw the quantities of each layer over the epochs, a column an optimizer.

    Args:
        path: the PNG to write.
        stored: what `effective_learning_rate.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 11), layout="constrained")
        panels = figure.subplots(
            len(_LABELS), len(stored["runs"]), sharex=True, sharey="row"
        )
        for column, (name, records) in zip(
            panels.T, stored["runs"].items(), strict=True
        ):
            column[0].set_title(name)
            column[-1].set_xlabel("epoch")
            for axes, quantity in zip(column, _LABELS, strict=True):
                _draw_layers(axes, records, quantity, stored["factors"])
        for row, label in zip(panels, _LABELS.values(), strict=True):
            row[0].set_ylabel(label)
        lines, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(
            *(lines, labels),
            title="layer, from the first on, × the factor of its initial kernel",
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        figure.suptitle(
            f"{stored['model']} on {stored['dataset']}, mean over the channels"
        )
        figures.save(figure, path, NO_VALUE)


def _draw_layers(
    axes: Any, records: Sequence[Record], quantity: str, factors: Mapping[str, float]
) -> None:
    measured = "norm" if quantity == "growth" else quantity
    # By depth: the stem, whose name comes late, is the first layer.
    layers = sorted(records[0][measured], key=lambda path: not path.startswith("stem"))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for place, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
        values = np.array([record[measured][layer] for record in records])
        axes.plot(
            [record["epoch"] for record in records],
            # Nothing at first, which is not drawn, nor what has become shorter.
            values / values[0] - 1 if quantity == "growth" else values,
            color=colour,
            # Rates may lie on each other: dashes above show the line beneath.
            linestyle=("-", (0, (5, 5)))[place % 2],
            zorder=2 + place % 2,
            linewidth=1.8,
            label=f"{layer.removesuffix('/kernel')} × {factors[layer]:.2f}",
        )
    if quantity == "norm":
        figures.log_scale(axes)
    else:
        axes.set_yscale("log", nonpositive="mask")


def table(stored: Mapping[str, Any]) -> Table:
    """Return what each optimizer begins and ends with, and what the angles follow."""
    shown = Table(
        "optimizer",
        title="mean over the convolutions, first epoch -> last one; correlation "
        "(slope) of the angles with the rates and with the widths",
        caption="the widths: the rates that the layers would have had, had their "
        "kernels not been made shorter or longer",
        box=box.SIMPLE_HEAD,
        # It fits a terminal of 80.
        padding=(0, 1, 0, 0),
    )
    for heading in ("norm", "angle", "rates", "widths"):
        shown.add_column(heading, justify="right")
    for name, records in stored["runs"].items():
        cells = []
        for quantity in ("norm", "angle"):
            first, last = (
                np.mean(list(record[quantity].values()))
                for record in (records[0], records[-1])
            )
            cells.append(f"{first:.3g} -> {last:.3g}")
        for fit in (fit_rates(records), fit_widths(records, stored["factors"])):
            cells.append(f"{fit.correlation:.3f} ({fit.slope:.2f})")
        shown.add_row(name, *cells)
    return shown
