"""Train a recurrent network at many learning rates, plain and normalized.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, abstract:
normalizing accelerates training and generalizes better, and on recurrent networks the
normalized gradient does better with adaptive step sizes, such as Adam's; no value of a
network as small as this is published. An LSTM of 32 units reads 400 of the handwritten
digits of scikit-learn pixel by pixel, 64 steps each, in batches of 20 for 30 epochs on
a cosine to zero; the error is that on the 1,397 other images. SGD with Nesterov's
momentum of 0.9 and Adam, each plain and with the gradient of each array divided by its
length (`l2`), have 9 rates over two decades and 40 seeds.

    python -m experiments block_normalized_2017.recurrent

takes a quarter of an hour on two CPU cores. It writes `recurrent.json`, its figure and
what is finished, from where the same command goes on; `--redraw` draws the records
again.

Fixed in advance: the optimizers are those of the paper's two other networks here, with
their constants; training is compared by the loss and the rest by the error, each at the
best learning rate, which the other seeds choose for a seed. Only the length of training
and the ranges were chosen after coarse looks, the first at two other seeds, the last at
the first two. Seen: normalizing accelerates both, whose loss falls to a fifth and to a
third. Adam's error is lower with it by a point, and is two and a half points below that
of normalized SGD. Whether SGD's is lower, too, forty seeds cannot tell. A network so
small says little of those of the paper.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.block_normalized_2017.methods import METHODS, MOMENTUM, SMOKE
from experiments.papers.block_normalized_2017.recurrent_training import (
    BATCH,
    HIDDEN,
    MIDDLES,
    NORM,
    TRAIN_IMAGES,
    all_ends,
    load_task,
    start,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, by_others
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.many_runs import rates_about
from experiments.training.measuring import measure_parts

NAME = "block_normalized_2017.recurrent"
DECADES = 2  # of learning rates
ERROR_TICKS = (0.1, 0.2, 0.3, 0.5, 0.9)  # marks of a logarithmic axis


@dataclasses.dataclass(frozen=True)
class RecurrentOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 40
    """Runs at each learning rate, at least 2."""
    epochs: int = 30
    """Passes over the training images."""


class Best(NamedTuple):
    """A method at the rate where one of its quantities is lowest.

    Attributes:
        exponent: of 10, that rate.
        values: one for each seed.
    """

    exponent: float
    values: np.ndarray


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "epochs": 1}, {"seeds": 2, "epochs": 1}
    run(args, NAME, RecurrentOptions, measure, draw, table, least=least, small=small)


def measure(config: RecurrentOptions, console: Console) -> dict[str, Any]:
    """Train every optimizer at all its learning rates, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer.

    Returns:
        The settings, and for each optimizer the exponents of 10 of its learning rates,
        and errors and losses, seeds x learning rates.
    """
    task = load_task()
    starts = [start(seed, config.epochs) for seed in range(config.seeds)]
    stride = 4 if config.smoke else 1

    def curve_of(method: str) -> dict[str, Any]:
        exponents = rates_about(MIDDLES[method], DECADES)[::stride]
        ends = all_ends(method, 10.0**exponents, starts, task)
        return {
            "exponents": exponents.tolist(),
            "errors": [[float(f"{x:.4g}") for x in seed] for seed in ends.error],
            "losses": [[float(f"{x:.4g}") for x in seed] for seed in ends.loss],
        }

    settings = {"epochs": config.epochs, "seeds": config.seeds, "stride": stride}
    methods = SMOKE if config.smoke else METHODS
    curves = measure_parts(config, "recurrent", settings, methods, curve_of, console)
    return {
        "device": devices.describe(),
        "epochs": config.epochs,
        "training_images": TRAIN_IMAGES,
        "batch": BATCH,
        "hidden": HIDDEN,
        "norm": NORM,
        "nesterov_momentum": MOMENTUM,
        "curves": curves,
    }


def best(curve: Stored, quantity: str) -> Best:
    """Return where the mean over the seeds is lowest, of losses that of logarithms.

    Args:
        curve: of one method.
        quantity: "errors" or "losses".
    """
    values = np.asarray(curve[quantity])
    means = (np.log(values) if quantity == "losses" else values).mean(axis=0)
    place = int(means.argmin())
    return Best(curve["exponents"][place], values[:, place])


def draw(path: Path, stored: Stored) -> None:
    """Draw what the methods end with over their learning rates.

    Args:
        path: the PNG to write.
        stored: what `recurrent.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        error, loss = figure.subplots(1, 2)
        for method, curve in stored["curves"].items():
            rates = 10 ** np.array(curve["exponents"])
            errors, logs = np.array(curve["errors"]), np.log(curve["losses"])
            _draw_curve(error, rates, errors, errors.mean(axis=0), method)
            # The mean of logarithms, as the axis is: a bad seed does not hide the rest.
            _draw_curve(loss, rates, np.exp(logs), np.exp(logs.mean(axis=0)), method)
        for axes in (error, loss):
            axes.set(xlabel="learning rate", xscale="log", yscale="log")
        error.set(ylabel="test error, log scale")
        error.set_yticks([], minor=True)
        error.set_yticks(ERROR_TICKS, [f"{tick:.0%}" for tick in ERROR_TICKS])
        loss.set(ylabel="training loss at the end (nats), log scale")
        seeds = len(errors)
        figure.suptitle(
            f"an LSTM that reads {stored['training_images']} digits pixel by pixel, "
            f"{stored['epochs']} epochs; {seeds} seeds: mean, and two thirds of them"
        )
        lines = error.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=4, frameon=False)
        figures.save(figure, path)


def _draw_curve(
    axes: Any, rates: np.ndarray, values: np.ndarray, mean: np.ndarray, method: str
) -> None:
    """Draw the mean of the seeds, and a band for the middle two thirds of them."""
    line = figures.LINES[method]
    low, high = np.quantile(values, (1 / 6, 5 / 6), axis=0)
    axes.fill_between(rates, low, high, color=line["color"], alpha=0.15, linewidth=0)
    axes.plot(rates, mean, lw=2, label=method, **line)


def table(stored: Stored) -> Table:
    """Return the lowest error and the lowest loss of each method."""

    def row_of(method: str, curve: Stored) -> tuple[str, ...]:
        error, loss = (best(curve, quantity) for quantity in ("errors", "losses"))
        logs = np.log(loss.values)
        return (
            method,
            f"{error.values.mean():.2%} ± {error.values.std(ddof=1):.2%}",
            f"{10**error.exponent:.2g}",
            f"{np.exp(logs.mean()):.2g} ×/÷ {np.exp(logs.std(ddof=1)):.2g}",
            f"{10**loss.exponent:.2g}",
        )

    return Table(
        "lowest test error and lowest training loss over the learning rates",
        ("optimizer", "test error", "at", "training loss (nats)", "at"),
        (row_of(*curve) for curve in stored["curves"].items()),
        f"{_seeds(stored)} seeds: mean ± standard deviation, of the loss the geometric "
        "mean and a factor",
    )


def _seeds(stored: Stored) -> int:
    return len(next(iter(stored["curves"].values()))["errors"])


def _errors(stored: Stored, method: str) -> np.ndarray:
    return by_others(np.array(stored["curves"][method]["errors"]))


def _losses(stored: Stored, method: str) -> np.ndarray:
    return by_others(np.log10(stored["curves"][method]["losses"]))


# A rate that other seeds have chosen may be a bad one for a seed: spreads are skewed.
ERROR = Metric("test error", _errors, skewed=True)
LOSS = Metric(
    "log10 of the training loss",
    _losses,
    unit="decades",
    scale=1.0,
    form="{:.2f}",
    skewed=True,
)


def _extent(stored: Stored) -> str:
    rates = len(next(iter(stored["curves"].values()))["exponents"])
    return (
        f"n = {_seeds(stored)} seeds at each of {rates} learning rates, "
        f"{stored['epochs']} epochs of {stored['training_images']} digits, an LSTM of "
        f"{stored['hidden']} units"
    )


def _stored_by(stored: Stored) -> tuple[str, ...]:
    seeds = _seeds(stored)
    return ("" if seeds == RecurrentOptions.seeds else f"--seeds {seeds}",)


EXHIBIT = Exhibit(
    claims=(
        *(
            claim
            for kind in ("SGD", "Adam")
            for claim in (
                Claim(
                    "Normalizing accelerates the training of a recurrent network by "
                    f"{kind}.",
                    (Check(LOSS, f"normalized {kind}", kind),),
                ),
                Claim(
                    f"Normalized {kind} generalizes better on a recurrent network.",
                    (Check(ERROR, f"normalized {kind}", kind),),
                ),
            )
        ),
        Claim(
            "On recurrent networks, the normalized gradient does better with adaptive "
            "step sizes, such as Adam's.",
            (Check(ERROR, "normalized Adam", "normalized SGD"),),
        ),
    ),
    extent=_extent,
    stored_by=_stored_by,
    tables=(table,),
    pictures=(
        Picture(
            "recurrent",
            "Test error and training loss at the end over the learning rate, for a "
            "recurrent network that SGD and Adam train, each plain and normalized; "
            "bands for the deviation of the seeds.",
            draw,
        ),
    ),
)
