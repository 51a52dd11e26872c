"""Train 30 dense layers at a rate tuned for each optimizer, plain and normalized.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, abstract:
normalizing accelerates training and generalizes better. Network, batches, L2 term, norm
and optimizers are those of `deep_mlp`, which has one schedule for all optimizers: rates
of 1e-2, 1e-3 and 1e-4 for 10 epochs each, which suits some better than others. Here
each has the multiple of that schedule that suits it, of 5 that are half a decade apart,
on 6,400 of MNIST's images.

    python -m experiments block_normalized_2017.deep_mlp_tuned --data-dir DIR

takes half an hour on two CPU cores. It writes `deep_mlp_tuned.json`, its figure and
what is finished, from where the same command goes on; `--redraw` draws the records
again.

Two seeds choose a multiple: for the training by the loss of the last epoch, under
dropout and without the L2 term, and for the rest by the error on the 3,000 images held
out. Ten fresh seeds are trained at what is chosen, and judged: by that loss, the
difference of whose logarithms is one of means, and by the error on the test images,
which the sign test judges, as accuracies here climb by stairs. All of that was written
down before any of these runs. The multiples lie about the one with the lowest error
held out in runs of two epochs a rate from another seed, one run each.

Seen, the multiple, and means over the fresh seeds:

                     multiple  training loss  test error
    SGD                 1          2.0           66.2%
    normalized SGD      0.32       0.82          34.0%
    Adam                1          0.80          27.6%
    normalized Adam     1          0.88          38.0%

So normalizing helps SGD much and does not help Adam: with it the test error is higher
by a median of 9 points.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console

from experiments import data
from experiments.config import Options, Stored, run
from experiments.papers.block_normalized_2017 import deep_mlp
from experiments.papers.block_normalized_2017.deep_mlp_training import Task, ends_of
from experiments.papers.block_normalized_2017.methods import METHODS, MOMENTUM, SMOKE
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, of_mean, of_median
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "block_normalized_2017.deep_mlp_tuned"
# The exponents of 10 that the multiples of the published rates lie about.
MIDDLES = {"SGD": 0.5, "normalized SGD": 0.0, "Adam": 0.5, "normalized Adam": 0.0}
AROUND = np.arange(-2, 3) / 2  # added to the middle
TUNING, FIRST_FRESH = (0, 1), 10


@dataclasses.dataclass(frozen=True)
class DeepMlpTunedOptions(Options):
    """What to read, where to write, and how much to compute."""

    data_dir: Path | None = None
    """The folder with the official files of MNIST, or its parent."""
    seeds: int = 10
    """Fresh runs at what is chosen, at least 2."""
    images: int = 6400
    """Train on so many of the training images, the first ones, at least 128."""
    epochs: int = 10
    """Passes over them at each rate."""


def main(args: Sequence[str]) -> None:
    """Tune and train four times, print the summary, and write records and figure."""
    least = {"seeds": 2, "images": deep_mlp.BATCH, "epochs": 1}
    small = {"seeds": 2, "images": 1152, "epochs": 1}
    options = DeepMlpTunedOptions
    run(args, NAME, options, measure, draw, table, least=least, small=small)


def load(config: DeepMlpTunedOptions) -> Task:
    """Return the task with its data: the part of MNIST, or a smoke run's digits."""
    smaller = {"layers": 2, "width": 32} if config.smoke else {}
    images = (
        data.load("digits") if config.smoke else data.load("mnist", config.data_dir)
    )
    return Task(
        data=images.first(config.images),
        settings=deep_mlp.SETTINGS | smaller,
        norm=deep_mlp.NORM,
        rates=deep_mlp.RATES,
        batch=deep_mlp.BATCH,
        epochs=config.epochs,
    )


def measure(config: DeepMlpTunedOptions, console: Console) -> dict[str, Any]:
    """Tune and train every optimizer, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer.

    Returns:
        The settings, and for each optimizer what `study` finds.
    """
    task = load(config)
    around = AROUND[::2] if config.smoke else AROUND
    fresh = range(FIRST_FRESH, FIRST_FRESH + config.seeds)
    told = {
        "data": {"name": task.data.name, **task.data.fingerprint()},
        "network": task.settings,
        "batch": task.batch,
        "norm": task.norm,
        "rates": list(task.rates),
        "epochs_per_rate": task.epochs,
        "nesterov_momentum": MOMENTUM,
        "tuning_seeds": len(TUNING),
        "fresh_seeds": len(fresh),
    }
    settings = {**told, "around": around.tolist()}

    def study_of(method: str) -> dict[str, Any]:
        return study(method, MIDDLES[method] + around, TUNING, fresh, task)

    methods = SMOKE if config.smoke else METHODS
    name = NAME.rpartition(".")[2]
    arms = measure_parts(config, name, settings, methods, study_of, console)
    return {"device": devices.describe(), **told, "arms": arms}


def study(
    method: str,
    exponents: np.ndarray,
    tuning: Sequence[int],
    fresh: Sequence[int],
    task: Task,
) -> dict[str, Any]:
    """Choose the rates of an optimizer, and train it from fresh seeds.

    Args:
        method: one of `METHODS`.
        exponents: of 10, the multiples of the published rates.
        tuning: seeds that choose.
        fresh: seeds of the runs at what is chosen.
        task: what is trained.

    Returns:
        The exponents; losses and errors of the tuning, seeds x multiples; the exponent
        with the lowest mean of the logarithm of the losses, and that with the lowest of
        the errors; at the first the losses by epoch and seed, at the second the errors
        on the test images by seed.
    """
    tuned = ends_of(method, tuning, 10.0**exponents, task)
    losses, errors = tuned.losses[..., -1], tuned.validation_error
    by_loss = float(exponents[np.log(losses).mean(axis=0).argmin()])
    by_error = float(exponents[errors.mean(axis=0).argmin()])
    ends = {
        exponent: ends_of(method, fresh, [10.0**exponent], task)
        for exponent in {by_loss, by_error}
    }
    return {
        "exponents": exponents.tolist(),
        "losses": _rounded(losses),
        "errors": _rounded(errors),
        "best_by_loss": by_loss,
        "best_by_error": by_error,
        "fresh_losses": _rounded(ends[by_loss].losses[:, 0]),
        "fresh_errors": _rounded(ends[by_error].test_error[:, 0]),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """Return nested lists of numbers with five digits."""
    if values.ndim == 0:
        return float(f"{values:.5g}")
    return [_rounded(value) for value in values]


def draw(path: Path, stored: Stored) -> None:
    """Draw what the tuning found, and the training from the fresh seeds.

    Args:
        path: the PNG to write.
        stored: what `deep_mlp_tuned.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(12.5, 4.8), layout="constrained")
        loss, error, curve = figure.subplots(1, 3)
        for method, arm in stored["arms"].items():
            multiples = 10.0 ** np.array(arm["exponents"])
            logs = np.log(arm["losses"]).mean(axis=0)
            errors = np.mean(arm["errors"], axis=0)
            line = figures.LINES[method] | {"label": method, "marker": "o", "ms": 3}
            loss.plot(multiples, np.exp(logs), **line)
            error.plot(multiples, errors, **line)
            _draw_curves(curve, method, np.log(arm["fresh_losses"]))
        for axes in (loss, error):
            axes.set(xlabel="multiple of the published learning rates", xscale="log")
        tuning = f"tuning: mean of {stored['tuning_seeds']} seeds"
        nats = "training loss, under dropout (nats)"
        loss.set(ylabel=f"{nats}, at the end", title=tuning)
        error.set(ylabel="error on held-out images", title=tuning)
        error.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        seeds = stored["fresh_seeds"]
        curve.set(xlabel="epoch", ylabel=nats, title=f"tuned: {seeds} fresh seeds")
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (loss, curve):
            figures.log_scale(axes)
        layers, epochs = stored["network"]["layers"], _epochs(stored)
        figure.suptitle(
            f"{layers} dense layers on {stored['data']['train']:,} images of "
            f"{stored['data']['name']}, {epochs} epochs"
        )
        lines = loss.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=4, frameon=False)
        figures.save(figure, path)


def _draw_curves(axes: Any, method: str, logs: np.ndarray) -> None:
    """Draw the geometric mean of the seeds, and a band for their middle two thirds."""
    line, epochs = figures.LINES[method], range(1, logs.shape[1] + 1)
    ends = np.exp(np.quantile(logs, (1 / 6, 5 / 6), axis=0))
    axes.fill_between(epochs, *ends, color=line["color"], alpha=0.15, linewidth=0)
    axes.plot(epochs, np.exp(logs.mean(axis=0)), lw=1.8, **line)


def _epochs(stored: Stored) -> int:
    return len(stored["rates"]) * stored["epochs_per_rate"]


def table(stored: Stored) -> Table:
    """Return what each optimizer chose, and its fresh seeds at that."""

    def row_of(method: str, arm: Stored) -> tuple[str, ...]:
        losses = of_mean(np.log10(arm["fresh_losses"])[:, -1])
        errors = of_median(np.array(arm["fresh_errors"]))
        return (
            method,
            _chosen(arm, "best_by_loss"),
            " to ".join(f"{10**end:.3f}" for end in (losses.low, losses.high)),
            _chosen(arm, "best_by_error"),
            f"{errors.middle:.2%}",
            f"{np.mean(arm['fresh_errors']):.2%}",
        )

    return Table(
        "at the tuned multiple of the published rates, which are "
        + ", ".join(f"{rate:g}" for rate in stored["rates"]),
        ("optimizer", "at", "training loss (nats)", "at", "test error", "mean"),
        (row_of(*arm) for arm in stored["arms"].items()),
        f"{stored['fresh_seeds']} fresh seeds: 95 % of the geometric mean of the "
        f"losses, median and mean of the errors on {stored['data']['test']:,} images",
    )


def _chosen(arm: Stored, best: str) -> str:
    """Return a multiple, with a mark if what was tried ends at it."""
    exponents = arm["exponents"]
    mark = " (end)" if arm[best] in (exponents[0], exponents[-1]) else ""
    return f"{10 ** arm[best]:.2g}{mark}"


def _losses(stored: Stored, method: str) -> np.ndarray:
    return np.log10(stored["arms"][method]["fresh_losses"])[:, -1]


def _errors(stored: Stored, method: str) -> np.ndarray:
    return np.array(stored["arms"][method]["fresh_errors"])


LOSS = Metric(
    "log10 of the training loss", _losses, unit="decades", scale=1.0, form="{:.2f}"
)
ERROR = Metric("test error", _errors, skewed=True)


def _extent(stored: Stored) -> str:
    return (
        f"n = {stored['fresh_seeds']} fresh seeds at the best of "
        f"{len(next(iter(stored['arms'].values()))['exponents'])} multiples of the "
        f"published rates, chosen by {stored['tuning_seeds']} others; "
        f"{_epochs(stored)} epochs of {stored['data']['train']:,} images of "
        f"{stored['data']['name']}; errors over {stored['data']['test']:,} images"
    )


EXHIBIT = Exhibit(
    claims=tuple(
        Claim(text, (Check(metric, f"normalized {kind}", kind),))
        for kind in ("SGD", "Adam")
        for text, metric in (
            (
                f"Normalizing accelerates the training of 30 dense layers by {kind}.",
                LOSS,
            ),
            (f"Normalized {kind} generalizes better on 30 dense layers.", ERROR),
        )
    ),
    extent=_extent,
    note="A tenth of the published run's steps: where all of them would end this does "
    "not tell.",
    tables=(table,),
    pictures=(
        Picture(
            "deep_mlp_tuned",
            "Training loss and held-out error of 30 dense layers over the multiple of "
            "the published learning rates, for SGD and Adam, each plain and "
            "normalized; and the training loss over the epochs from fresh seeds at "
            "the best multiple, with bands for the middle two thirds of the seeds.",
            draw,
        ),
    ),
)
