"""Map the test error over learning rate and decay, in the gradient and decoupled.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101,
Figure 2: SGD with momentum and Adam, with L2 in the gradient and with decoupled decay,
all on one cosine to zero. Here on 200 of the handwritten digits of scikit-learn, with a
network of two hidden layers of 64 units, batch-normalised as the paper's ResNet is, for
60 epochs of batches of 20; the maps are of the error on the 1,597 other images.

    python -m experiments decoupled_decay_2019.decay_grid

takes two to three minutes on two CPU cores. It writes `decay_grid.json` and `.png` and
what is finished, from where the same command goes on; `--redraw` draws the stored
records again.

The paper gives no number; its map shows the ten best cells along a diagonal with L2,
and less so with decoupled decay, where rate and decay can be tuned one after the other.
The numbers here, `Alignment`, were settled before the forms were compared; then the
ranges were moved, by runs of the first eight seeds, until each optimum lay inside. What
is stored is of 12 other seeds. Which form has the lower error is judged for each seed
at the cell that is best for the other seeds on 400 of the held-out images, by the error
on the other 1,197. Seen, slopes in octaves of decay per octave of rate, in brackets
the range when one seed is left out:

              best               rho                  slope
    SGD, L2   5.95%  -0.84 (-0.90, -0.68)  -1.40 (-1.50, -1.30)
    SGDW      5.99%  -0.37 (-0.38, -0.30)   0.00 (-0.20, 0.00)
    Adam, L2  6.01%  -0.85 (-0.87, -0.79)  -2.00 (-2.00, -1.40)
    AdamW     6.53%  -0.08 (-0.16, 0.00)   -0.20 (-0.60, 0.00)

So the decoupled forms lie closer to the axes, clearly for Adam; for SGD by the slope
more than by rho. But AdamW's best error is 0.5 points above that of Adam with L2: here
it does not generalise better, as it does in the paper.

This holds for weights whose length the loss does not see. With `--no-batch-norm`, where
the length matters, nothing is gained: the valleys of the decoupled forms lean as much,
the other way.

              best               rho                  slope
    SGD, L2   6.92%  -0.61 (-0.69, -0.52)  -0.60 (-0.80, -0.50)
    SGDW      6.79%   0.60 (0.60, 0.70)     0.40 (0.30, 0.50)
    Adam, L2  6.97%  -0.40 (-0.58, -0.33)  -0.60 (-0.69, -0.31)
    AdamW     7.25%   0.64 (0.39, 0.67)     0.57 (0.34, 0.74)
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.decoupled_decay_2019.grid_training import (
    METHODS,
    TUNING_IMAGES,
    as_text,
    from_text,
    grid_wrong,
    load_task,
    start,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic, by_others
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "decoupled_decay_2019.decay_grid"
# What is near the best: half of what decay gained in a first look at SGD with L2.
MARGIN = 0.005
# Marks of the colours, points above the best of all maps.
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50)
# The ranges were moved by eyes on the first eight seeds.
FIRST_SEED = 100


@dataclasses.dataclass(frozen=True)
class DecayGridOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 12
    """Runs a cell, whose errors are averaged."""
    epochs: int = 60
    """Passes over the training images."""
    hidden: int = 64
    """Units in each of the two hidden layers."""
    batch_norm: bool = True
    """Whether these are normalised."""


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How a grid lies to its axes.

    Attributes:
        rho: the correlation between the exponents of learning rate and decay over the
            cells within `MARGIN` of the best; 0 for a region along an axis, -1 for one
            along a falling diagonal. None where these cells are in one row or column.
        slope: by how many powers of 2 the best decay moves when the learning rate
            doubles, a line through the best decays of the rates that have such a cell.
            None for a single rate.
        cells: how many such cells there are.
    """

    rho: float | None
    slope: float | None
    cells: int


def main(args: Sequence[str]) -> None:
    """Train the grids, print the summary, and write records and figure."""
    least = {"seeds": 2, "epochs": 1, "hidden": 1}
    small = {"seeds": 2, "epochs": 3, "hidden": 16}
    run(args, NAME, DecayGridOptions, measure, draw, table, least=least, small=small)


def measure(config: DecayGridOptions, console: Console) -> dict[str, Any]:
    """Train every cell of every method, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each method.

    Returns:
        The settings, and for each method the exponents of 2, and how many answers are
        wrong on the images that tune and on those that judge: seeds x learning rates,
        a text of the decays each.
    """
    task = load_task(config.epochs, config.hidden, config.batch_norm)
    starts = [start(FIRST_SEED + seed, task) for seed in range(config.seeds)]
    stride = 5 if config.smoke else 1

    def grid_of(name: str) -> dict[str, Any]:
        method = METHODS[name]
        rates, decays = method.learning_rates[::stride], method.decays[::stride]
        wrong = grid_wrong(method.make, rates, decays, starts, task)
        return {
            "learning_rates": list(rates),
            "decays": list(decays),
            "wrong_tuning": as_text(wrong[..., 0]),
            "wrong_judging": as_text(wrong[..., 1]),
        }

    told = {
        "epochs": config.epochs,
        "hidden": config.hidden,
        "batch_norm": config.batch_norm,
        "tuning_images": TUNING_IMAGES,
        "judging_images": task.held_out - TUNING_IMAGES,
    }
    settings = {**told, "seeds": config.seeds, "stride": stride}
    grids = measure_parts(config, "decay_grid", settings, METHODS, grid_of, console)
    return {"device": devices.describe(), **told, "grids": grids}


class Errors(NamedTuple):
    """Shares of wrong answers, seeds x learning rates x decays.

    Attributes:
        tuning: on the images that choose a cell.
        judging: on those that judge it.
        all: on both, as a map shows them.
    """

    tuning: np.ndarray
    judging: np.ndarray
    all: np.ndarray


def errors_of(stored: Stored, name: str) -> Errors:
    """Return the errors of a method.

    Args:
        stored: what `decay_grid.json` holds.
        name: of the method.
    """
    grid = stored["grids"][name]
    wrong = [from_text(grid[f"wrong_{of}"]) for of in ("tuning", "judging")]
    images = [stored[f"{of}_images"] for of in ("tuning", "judging")]
    shares = (each / many for each, many in zip(wrong, images, strict=True))
    return Errors(*shares, sum(wrong) / sum(images))


def alignment(
    errors: np.ndarray, learning_rates: Sequence[int], decays: Sequence[int]
) -> Alignment:
    """Measure how a grid lies to its axes.

    Args:
        errors: learning rates x decays.
        learning_rates: exponents of 2.
        decays: exponents of 2.
    """
    near = near_best(errors)
    rate, decay = np.meshgrid(learning_rates, decays, indexing="ij")
    rho = slope = None
    if np.ptp(rate[near]) > 0 and np.ptp(decay[near]) > 0:
        rho = float(np.corrcoef(rate[near], decay[near])[0, 1])
    rows = near.any(axis=1)
    if rows.sum() > 1:
        ridge = np.asarray(decays)[errors.argmin(axis=1)]
        slope = float(np.polyfit(np.asarray(learning_rates)[rows], ridge[rows], 1)[0])
    return Alignment(rho, slope, int(near.sum()))


def near_best(errors: np.ndarray) -> np.ndarray:
    """Return which cells are within `MARGIN` of the best: an alignment is theirs."""
    return errors <= errors.min() + MARGIN


def draw(path: Path, stored: Stored) -> None:
    """Draw the maps on one colour scale, with the cells marked that are near the best.

    The colours go as the logarithm of what an error is above the best of all maps, so
    that they tell the valleys apart and saturate nowhere.

    Args:
        path: the PNG to write.
        stored: what `decay_grid.json` holds.
    """
    every = {name: errors_of(stored, name).all for name in stored["grids"]}
    maps = {name: errors.mean(axis=0) for name, errors in every.items()}
    best = min(errors.min() for errors in maps.values())
    worst = max(errors.max() for errors in maps.values())
    scale = LogNorm(100 * MARGIN / 2, 100 * (worst - best))
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, 9), layout="constrained")
        panels = figure.subplots(2, 2)
        for axes, (name, grid) in zip(
            panels.flat, stored["grids"].items(), strict=True
        ):
            mesh = _draw_map(axes, grid, 100 * (maps[name] - best), scale)
            axes.set_title(f"{name}\n{_in_words(grid, maps[name])}")
        for row in panels:
            _share(row)
        normalised = "with" if stored["batch_norm"] else "without"
        seeds = len(every[name])
        figure.suptitle(f"digits, {normalised} batch norm, mean of {seeds} seeds")
        for axes in panels.flat:
            axes.set(xlabel="weight decay", ylabel="learning rate")
        bar = figure.colorbar(mesh, ax=panels, extend="min", shrink=0.6, aspect=30)
        bar.set_label(f"test error above the best of all, {best:.1%} (points)")
        bar.set_ticks([t for t in TICKS if scale.vmin <= t <= scale.vmax])
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_locator(NullLocator())
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
        figures.save(figure, path)


def _share(row: Any) -> None:
    """Give the maps of a kind of optimizer the same axes, which have both grids."""
    for along in ("x", "y"):
        ends = [getattr(axes, f"get_{along}lim")() for axes in row]
        span = min(low for low, _ in ends), max(high for _, high in ends)
        ticks = range(int(np.ceil(span[0])), int(np.floor(span[1])) + 1)
        labels = [f"$2^{{{e}}}$" for e in ticks]
        for axes in row:
            axes.set(**{f"{along}lim": span})
            getattr(axes, f"set_{along}ticks")(ticks, labels, size=8)


def _draw_map(axes: Any, grid: Stored, above: np.ndarray, scale: Any) -> Any:
    rates, decays = grid["learning_rates"], grid["decays"]
    mesh = axes.imshow(
        np.maximum(above, scale.vmin / 2),
        origin="lower",
        cmap="viridis",
        norm=scale,
        aspect="auto",
        extent=(decays[0] - 0.5, decays[-1] + 0.5, rates[0] - 0.5, rates[-1] + 0.5),
    )
    rows, columns = np.nonzero(near_best(above / 100))
    dots = {"color": "white", "edgecolors": "black", "s": 45}
    label = f"within {100 * MARGIN:g} points of the best: used for rho and slope"
    places = np.array(decays)[columns], np.array(rates)[rows]
    axes.scatter(*places, label=label, **dots)
    row, column = np.unravel_index(above.argmin(), above.shape)
    star = dots | {"color": "red", "s": 190, "marker": "*"}
    axes.scatter(decays[column], rates[row], label="the best", **star)
    return mesh


def _in_words(grid: Stored, errors: np.ndarray) -> str:
    found = alignment(errors, grid["learning_rates"], grid["decays"])
    return (
        f"best {errors.min():.1%}, {found.cells} cells: rho {_shown(found.rho)}, "
        f"slope {_shown(found.slope)}"
    )


def table(stored: Stored) -> Table:
    """Return the best cell and the alignment of each method."""

    def row_of(name: str, grid: Stored) -> tuple[str, ...]:
        rates, decays = grid["learning_rates"], grid["decays"]
        seeds = errors_of(stored, name).all
        errors = seeds.mean(axis=0)
        row, column = np.unravel_index(errors.argmin(), errors.shape)
        found = alignment(errors, rates, decays)
        without = [
            alignment(np.delete(seeds, seed, axis=0).mean(axis=0), rates, decays)
            for seed in range(len(seeds))
        ]
        return (
            name,
            f"{errors.min():.2%}",
            str(rates[row]),
            str(decays[column]),
            str(found.cells),
            f"{_shown(found.rho)} ({_span(one.rho for one in without)})",
            f"{_shown(found.slope)} ({_span(one.slope for one in without)})",
        )

    return Table(
        "learning rate and weight decay in powers of 2",
        ("method", "best", "rate", "decay", "cells", "rho", "slope"),
        (row_of(*grid) for grid in stored["grids"].items()),
        f"cells up to {100 * MARGIN:g} points above the best; "
        "in brackets, the range with one seed left out, which changes the cells",
    )


def _span(values: Any) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):z.2f}, {max(known):z.2f}" if known else "-"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _lean(stored: Stored, name: str, measure: str) -> Statistic:
    """Return how much the best cells of a map lean, whichever way."""
    grid = stored["grids"][name]
    errors, axes = (
        errors_of(stored, name).all,
        (grid["learning_rates"], grid["decays"]),
    )

    def of(seeds: np.ndarray) -> float:
        # None: the best cells lie along an axis, or are one.
        found = getattr(alignment(errors[seeds].mean(axis=0), *axes), measure)
        return abs(found or 0.0)

    return Statistic(len(errors), of)


def _errors(stored: Stored, name: str) -> np.ndarray:
    errors = errors_of(stored, name)
    return by_others(errors.tuning, errors.judging)


# A cell that other seeds have chosen may be a bad one for a seed: spreads are skewed.
ERROR = Metric("test error", _errors, skewed=True)
LEANS = tuple(
    Metric(
        f"|{measure}| of the best cells",
        functools.partial(_lean, measure=measure),
        "less",
        "",
        scale=1.0,
        form="{:.2f}",
    )
    for measure in ("rho", "slope")
)


def _needs_batch_norm(stored: Stored) -> str:
    return "" if stored["batch_norm"] else "the paper's network has batch norm"


def _extent(stored: Stored) -> str:
    seeds, rates, decays = errors_of(stored, next(iter(stored["grids"]))).all.shape
    return (
        f"n = {seeds} seeds for each of {rates} x {decays} cells, "
        f"{stored['epochs']} epochs of 200 digits"
    )


EXHIBIT = Exhibit(
    claims=tuple(
        claim
        for coupled, decoupled in (("SGD, L2", "SGDW"), ("Adam, L2", "AdamW"))
        for kind in (coupled.partition(",")[0],)
        for claim in (
            Claim(
                f"L2 in the gradient couples decay and rate of {kind}; decoupled decay "
                "does less so.",
                tuple(Check(lean, decoupled, coupled) for lean in LEANS),
                _needs_batch_norm,
            ),
            Claim(
                f"{decoupled} generalizes better than {kind} with L2 in the gradient.",
                (Check(ERROR, decoupled, coupled),),
            ),
        )
    ),
    extent=_extent,
    note="All of this is with batch norm, where the loss does not see how long "
    "the weights are. Without it, as `--no-batch-norm` trains, nothing is "
    "gained: the valleys of the decoupled forms lean as much, the other way. "
    "The head of the experiment's file has those numbers.",
    tables=(table,),
    pictures=(
        Picture(
            "decay_grid",
            "Maps of the test error over learning rate and decay, with the cells "
            f"marked that are within {100 * MARGIN:g} points of the best, for SGD and "
            "Adam with L2, SGDW and AdamW.",
            draw,
        ),
    ),
)
