"""Measure over which learning rates NovoGrad's four modes train well, and AdamW, SGD.

Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
Training of Deep Networks", 2019, arXiv 1905.11286, abstract: NovoGrad is robust to the
choice of learning rate; no value is published. The modes are the paper's Algorithm 1
with and without decay, with a momentum that sums or averages (`grad_averaging`). Two
convolutions and a dense layer learn 400 of the handwritten digits of scikit-learn, in
batches of 20 for 30 epochs on a cosine to zero without warm-up; the error is that on
the 1,397 other images. Each optimizer has 13 rates over three decades and 10 seeds.

    python -m experiments novograd_2019.modes

takes under two minutes on two CPU cores. It writes `modes.json`, `modes.png` and what
is finished, from where the same command goes on; `--redraw` draws the records again.

Fixed in advance: NovoGrad has b1 = 0.95, b2 = 0.98 and decay 1e-3, as the paper, and
the default eps of 1e-7. `optax.adamw` has its defaults and the same decay, which there
too is times the learning rate (`normopt.adamw`'s is not); but NovoGrad's passes through
the momentum, so a sum decays 20 times as much at the same rate. SGD has momentum 0.9
and no decay. A curve's robustness is the number of decades about its best rate in which
the mean error is at most 1 point above the best. Judged is the paper's own mode, `sum,
decay`; on par is what is worse by less than that point. Only length of training and
middles of the ranges were chosen after a coarse look, at other seeds. Seen:

                              best error   rates to 1 point above      decades
    NovoGrad, sum            5.00% +- 0.44%   0.002   - 0.038    1.28 (1.24, 1.34)
    NovoGrad, sum, decay     4.86% +- 0.44%   0.0023  - 0.043    1.27 (1.23, 1.31)
    NovoGrad, average        5.59% +- 0.55%   0.03    - 0.58     1.29 (1.23, 1.33)
    NovoGrad, average, decay 5.56% +- 0.62%   0.03    - 0.71     1.38 (1.31, 1.44)
    AdamW                    4.63% +- 0.55%   0.00095 - 0.038    1.60 (1.58, 1.61)
    SGD                      4.85% +- 0.66%   0.0028  - 0.072    1.41 (1.38, 1.46)

In brackets, one seed left out. The claim does not show here: AdamW has the widest
valley and the lowest error, and SGD's is a little wider than any mode's. Within 0.5, 2
or 3 points, too, AdamW's is the widest; at 3 the sums' are wider than SGD's. With
`--epochs 8` it is the same: 0.9 decades for the sums, 0.55 for the averages, 1.07 for
AdamW, 1.04 for SGD. A small network says nothing of deep ones on several tasks.

A sum steps 1 / (1 - b1) = 20 times as far, so its valley lies over a decade to the
left; but for the first step, the sum at a rate is the average at 20 times that rate.
The average gives the first gradient the weight of 20, and so ends higher, after 8
epochs by nearly 3 points. The decay lowers the error at high rates alone.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.novograd_2019.modes_training import (
    B1,
    B2,
    BATCH,
    DECAY,
    METHODS,
    SGD_MOMENTUM,
    TRAIN_IMAGES,
    all_errors,
    load_task,
    start,
)
from experiments.papers.novograd_2019.valleys import (
    MARGIN,
    Valley,
    cut_in_words,
    in_words,
    leaving_out,
    near_best,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic, by_others
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "novograd_2019.modes"
# The paper's mode, and what it is compared with.
PAPERS, BASELINES = "NovoGrad, sum, decay", ("AdamW", "SGD")
# Of a smoke run: what the figure points at, and a baseline.
SMOKE = ("NovoGrad, sum", "NovoGrad, average", "AdamW")
TICKS = (0.05, 0.1, 0.2, 0.5, 0.9)  # marks of a logarithmic axis


@dataclasses.dataclass(frozen=True)
class ModesOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 10
    """Runs at each learning rate, at least 2."""
    epochs: int = 30
    """Passes over the training images."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "epochs": 1}, {"seeds": 2, "epochs": 2}
    run(args, NAME, ModesOptions, measure, draw, table, least=least, small=small)


def measure(config: ModesOptions, console: Console) -> dict[str, Any]:
    """Train every optimizer at all its learning rates, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer.

    Returns:
        The settings, and for each optimizer the exponents of 10 of its learning rates
        and the errors, seeds x learning rates.
    """
    task = load_task()
    starts = [start(seed, config.epochs) for seed in range(config.seeds)]
    stride = 3 if config.smoke else 1

    def curve_of(name: str) -> dict[str, Any]:
        exponents = METHODS[name].exponents[::stride]
        errors = all_errors(METHODS[name].make, 10.0**exponents, starts, task)
        return {"exponents": exponents.tolist(), "errors": errors.tolist()}

    settings = {"epochs": config.epochs, "seeds": config.seeds, "stride": stride}
    methods = SMOKE if config.smoke else METHODS
    curves = measure_parts(config, "modes", settings, methods, curve_of, console)
    return {
        "device": devices.describe(),
        "epochs": config.epochs,
        "training_images": TRAIN_IMAGES,
        "batch": BATCH,
        "b1": B1,
        "b2": B2,
        "decay": DECAY,
        "sgd_momentum": SGD_MOMENTUM,
        "curves": curves,
    }


def valleys_of(curve: Stored) -> list[Valley]:
    """Return the valley about the best rate: of all seeds, then without each.

    Args:
        curve: one of `modes.json`.
    """
    errors = np.asarray(curve["errors"])
    return leaving_out(
        lambda seeds: near_best(errors[seeds].mean(axis=0), curve["exponents"]),
        len(errors),
    )


def draw(path: Path, stored: Stored) -> None:
    """Draw the curves as they lie, and shifted to where their valleys begin.

    Args:
        path: the PNG to write.
        stored: what `modes.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(11, 5.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 0.9))
        for rank, (name, curve) in enumerate(stored["curves"].items()):
            # Bars of several curves at one rate would hide one another.
            _draw_curve((left, right), name, curve, shift=0.012 * rank - 0.03)
        left.set(xlabel="learning rate", ylabel="test error, log scale", yscale="log")
        left.set_title("mean and deviation over the seeds, drawn a little apart")
        left.set_yticks([], minor=True)
        left.set_yticks(TICKS, [f"{error:.0%}" for error in TICKS])
        _draw_shift(left, stored)
        right.axhline(100 * MARGIN, color="#888888", linewidth=1, zorder=1)
        right.set(
            xlabel="learning rate / the lowest within 1 point of the best",
            ylabel="test error above the best (points, up to 6)",
            xlim=(10**-0.75, 10**2.25),
            ylim=(0, 6),
            title="shifted: how far each stays within 1 point",
        )
        for axes in (left, right):
            axes.set_xscale("log")
        images, epochs = stored["training_images"], stored["epochs"]
        seeds = len(curve["errors"])
        figure.suptitle(f"{images} digits for {epochs} epochs, {seeds} seeds")
        lines = left.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
        figures.save(figure, path)


def _draw_curve(axes: Any, name: str, curve: Stored, shift: float) -> None:
    left, right = axes
    exponents, errors = np.array(curve["exponents"]), np.array(curve["errors"])
    mean, deviation = errors.mean(axis=0), errors.std(axis=0, ddof=1)
    line = figures.LINES[name] | {"linewidth": 2}
    found = near_best(mean, curve["exponents"])
    label = f"{name}: {found.in_words()} decades"
    # Less than the smallest error might be less than 0.
    ends = np.minimum(deviation, mean - errors.min(axis=0)), deviation
    rates = 10 ** (exponents + shift)
    left.errorbar(rates, mean, ends, label=label, elinewidth=1, **line)
    right.plot(10 ** (exponents - found.low), 100 * (mean - mean.min()), **line)


def _draw_shift(axes: Any, stored: Stored) -> None:
    """Point from the valley of the average to that of the sum."""
    ends, height = [], 0.029
    for name in ("NovoGrad, average", "NovoGrad, sum"):
        curve = stored["curves"][name]
        mean, exponents = np.mean(curve["errors"], axis=0), curve["exponents"]
        found = near_best(mean, exponents)
        middle = (found.low + found.high) / 2
        rate, error = 10**middle, np.interp(middle, exponents, mean)
        line = {"color": figures.LINES[name]["color"], "marker": "o", "markevery": [1]}
        axes.plot([rate, rate], [height, error], linestyle=":", **line)
        ends.append((rate, height))
    tail, head = ends
    axes.annotate("", xy=head, xytext=tail, arrowprops={"arrowstyle": "->"})
    factor, apart = 1 / (1 - stored["b1"]), tail[0] / head[0]
    text = (
        f"a sum steps 1 / (1 - b1) = {factor:.0f} times as far as an average;\n"
        f"the middles of their valleys lie {apart:.0f} times apart"
    )
    axes.text(np.sqrt(tail[0] * head[0]), 0.027, text, ha="center", va="top")
    axes.set_ylim(bottom=0.018)


def table(stored: Stored) -> Table:
    """Return the best error and the width of the valley of each optimizer."""

    def row_of(name: str, curve: Stored) -> tuple[str, ...]:
        errors, exponents = np.array(curve["errors"]), curve["exponents"]
        mean = errors.mean(axis=0)
        best, found = mean.argmin(), near_best(mean, exponents)
        return (
            name,
            f"{mean[best]:.2%} ± {errors[:, best].std(ddof=1):.2%}",
            f"{10 ** exponents[best]:.2g}",
            f"{10**found.low:.2g} - {10**found.high:.2g}",
            in_words(valleys_of(curve)),
        )

    return Table(
        f"test error and the rates up to {100 * MARGIN:g} point above the best",
        ("optimizer", "best error", "at", "from - to", "decades"),
        (row_of(*curve) for curve in stored["curves"].items()),
        f"{_seeds(stored)} seeds; in brackets, one seed left out",
    )


def _seeds(stored: Stored) -> int:
    return len(next(iter(stored["curves"].values()))["errors"])


def _errors(stored: Stored, name: str) -> np.ndarray:
    return by_others(np.asarray(stored["curves"][name]["errors"]))


def _width(stored: Stored, name: str) -> Statistic:
    curve = stored["curves"][name]
    errors = np.asarray(curve["errors"])

    def of(seeds: np.ndarray) -> float:
        return near_best(errors[seeds].mean(axis=0), curve["exponents"]).width

    return Statistic(len(errors), of)


def _is_cut(stored: Stored) -> str:
    names = (PAPERS, *BASELINES)
    return cut_in_words({name: valleys_of(stored["curves"][name])[0] for name in names})


# A rate that other seeds have chosen may be a bad one for a seed: spreads are skewed.
ERROR = Metric("test error", _errors, skewed=True)
WIDTH = Metric(
    f"decades of learning rate within {100 * MARGIN:g} point of the best",
    _width,
    "more",
    "decades",
    less_is_better=False,
    scale=1.0,
    form="{:.2f}",
)


def _extent(stored: Stored) -> str:
    rates = len(next(iter(stored["curves"].values()))["exponents"])
    return (
        f"n = {_seeds(stored)} seeds at each of {rates} learning rates, "
        f"{stored['epochs']} epochs of {stored['training_images']} digits"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "NovoGrad is robust to the choice of learning rate.",
            tuple(Check(WIDTH, PAPERS, name) for name in BASELINES),
            _is_cut,
        ),
        Claim(
            "NovoGrad is on par with well-tuned SGD and AdamW, or better.",
            tuple(Check(ERROR, PAPERS, name, -100 * MARGIN) for name in BASELINES),
        ),
    ),
    extent=_extent,
    note=f"Judged is the paper's own mode, {PAPERS.partition(', ')[2]}: Algorithm 1 "
    "sums its momentum and decays. The other three are ablations.",
    tables=(table,),
    pictures=(
        Picture(
            "modes",
            "Test error over the learning rate for NovoGrad's four modes, "
            "AdamW and SGD; beside it the same, shifted to where the valleys begin.",
            draw,
        ),
    ),
)
