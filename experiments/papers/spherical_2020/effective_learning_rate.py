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
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console

from experiments import data
from experiments.config import Options, Stored, run
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
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic
from experiments.report.tables import Table
from experiments.training import devices, preparation
from experiments.training.locking import alone_in
from experiments.training.loop import Plan
from experiments.training.measuring import folder_of
from experiments.training.preparation import Prepared, TrainConfig
from experiments.training.runs import Run, read_records

NAME = "spherical_2020.effective_learning_rate"
OPTIMIZERS = ("adam", "adams", "adamsrt")
# None, for all alike: see the head of this file.
WEIGHT_DECAY = 0.0


@dataclasses.dataclass(frozen=True)
class EffectiveLearningRateOptions(Options):
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


def main(args: Sequence[str]) -> None:
    """Train with each optimizer, print the ends, and write records and figure."""
    # Of one epoch there is no growth to draw.
    least, small = {"epochs": 2, "seed": 0}, {"model": "vgg6", "epochs": 2}
    options = EffectiveLearningRateOptions
    run(args, NAME, options, measure, draw, table, least=least, small=small)


def measure(config: EffectiveLearningRateOptions, console: Console) -> dict[str, Any]:
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
        own = Run(
            folder_of(config) / "rates",
            f"{config.dataset}-{config.model}-{name}",
            {**prepared.run.config, "factors": factors},
        )
        with alone_in(own.folder):
            if config.fresh:
                own.remove()
            stored["runs"][name] = _records(own, prepared, factors, console)
        stored["factors"] = factors
        stored["optimizers"][name] = {
            "config": own.config["optimizer"],
            "provenance": own.provenance(),
        }
    return stored


def _prepare(
    config: EffectiveLearningRateOptions, name: str, images: data.Dataset
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


def draw(path: Path, stored: Stored) -> None:
    """Draw measured angles against predicted ones, and lengths, a column an optimizer.

    Args:
        path: the PNG to write.
        stored: what `effective_learning_rate.json` holds.
    """
    runs, factors = stored["runs"], stored["factors"]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        panels = figure.subplots(2, len(runs), sharex="row", sharey="row")
        for (above, below), (name, records) in zip(panels.T, runs.items(), strict=True):
            above.set_title(name)
            for layer, colour in _layers(records):
                norm = [record["norm"][layer] for record in records]
                label = f"{layer.removesuffix('/kernel')} × {factors[layer]:.2f}"
                # Less the mean of an epoch, which is that of the learning rate.
                dots = {"s": 9, "color": colour, "label": label, "linewidths": 0}
                above.scatter(*(_relative(records, q, layer) for q in _FOLLOWS), **dots)
                epochs = [record["epoch"] for record in records]
                below.plot(epochs, norm, color=colour, lw=1.8)
            span = np.array(above.get_xlim())
            above.plot(span, span, color=figures.GREY, lw=1, ls=":", zorder=0)
            above.set(
                xscale="log", yscale="log", xlabel=r"predicted: $\sqrt{d}\,/\,\|w\|$"
            )
            for axis in (above.xaxis, above.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 3)))
                axis.set_minor_formatter(NullFormatter())
                axis.set_major_formatter("{x:g}")
            below.set(xlabel="epoch")
            figures.log_scale(below)
        panels[0, 0].set_ylabel("measured: angle of a step")
        panels[1, 0].set_ylabel(r"norm $\|w\|$")
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            markerscale=3,
            title="layer, from the first on, × the factor of its initial kernel",
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        figure.suptitle(
            f"{stored['model']} on {stored['dataset']}, mean over the channels; above, "
            "a dot an epoch, relative to the epoch's mean over the layers"
        )
        figures.save(figure, path)


_FOLLOWS = ("rate", "angle")


def _relative(records: Sequence[Record], quantity: str, layer: str) -> list[float]:
    """Return a layer's number beside the geometric mean of all layers', by epoch."""
    return [
        record[quantity][layer]
        / np.exp(np.mean(np.log(list(record[quantity].values()))))
        for record in records
    ]


def _layers(records: Sequence[Record]) -> list[tuple[str, Any]]:
    """Return the layers by depth, each with its colour."""
    # The stem, whose name comes late, is the first layer.
    layers = sorted(records[0]["norm"], key=lambda path: not path.startswith("stem"))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    return list(zip(layers, colours, strict=True))


def table(stored: Stored) -> Table:
    """Return what each optimizer begins and ends with, and what the angles follow."""

    def row_of(name: str, records: Sequence[Record]) -> tuple[str, ...]:
        cells = []
        for quantity in ("norm", "angle"):
            first, last = (
                np.mean(list(record[quantity].values()))
                for record in (records[0], records[-1])
            )
            cells.append(f"{first:.3g} → {last:.3g}")
        for fit in (fit_rates(records), fit_widths(records, stored["factors"])):
            cells.append(f"{fit.correlation:.3f} ({fit.slope:.2f})")
        return (name, *cells)

    return Table(
        "mean over the convolutions, first epoch → last one; correlation "
        "(slope) of the angles with the rates and with the widths",
        ("optimizer", "norm", "angle", "rates", "widths"),
        (row_of(*run) for run in stored["runs"].items()),
        "the widths: the rates that the layers would have had, had their "
        "kernels not been made shorter or longer",
    )


def _slope(stored: Stored, name: str) -> Statistic | None:
    """Return how the angles go with the rates, over some of the layers."""
    if name not in stored["runs"]:
        return None
    records = stored["runs"][name]
    layers = list(records[0]["angle"])

    def of(drawn: np.ndarray) -> float:
        return fit_rates(records, [layers[k] for k in drawn]).slope

    return Statistic(len(layers), of)


def _correlation(stored: Stored, name: str) -> float | None:
    """Return it as it stands: layers of one rate, drawn together, would have none."""
    runs = stored["runs"]
    return fit_rates(runs[name]).correlation if name in runs else None


SLOPE, CORRELATION = (
    Metric(
        f"{name} of the logarithms of angle and rate", read, form="{:.3f}", over=over
    )
    for name, read, over in (
        ("slope", _slope, "layers"),
        ("correlation", _correlation, "run"),
    )
)


def _extent(stored: Stored) -> str:
    factors = stored["factors"].values()
    configs = [trained["config"] for trained in stored["optimizers"].values()]
    decays = " and ".join(sorted({f"{one['weight_decay']:g}" for one in configs}))
    return (
        f"n = 1 (seed {stored['seed']}), {stored['epochs']} epochs of "
        f"{stored['model']} on {stored['dataset']}, weight decay {decays}, initial "
        f"kernels times random factors from {min(factors):.2f} to {max(factors):.2f}"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "The effective learning rate goes from layer to layer as √d / |w|, the "
            "size of a block over the length of its weights.",
            # Fixed before a full run; a slope of 1 is in proportion.
            tuple(
                test
                for name in OPTIMIZERS
                for test in (
                    Check(CORRELATION, name, low=0.9),
                    Check(SLOPE, name, low=0.8, high=1.2),
                )
            ),
        ),
    ),
    extent=_extent,
    tables=(table,),
    pictures=(
        Picture(
            "effective_learning_rate",
            "The measured angle of a step against the predicted rate, a dot an epoch "
            "and a colour a layer, and the length of the weights by epoch; a column an "
            "optimizer.",
            draw,
        ),
    ),
)
