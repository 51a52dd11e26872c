"""Map the test error over learning rate and decay, in the gradient and decoupled.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101,
Figure 2: SGD with momentum and Adam, with L2 in the gradient and with decoupled decay,
all on one cosine to zero. Here on 200 of the handwritten digits of scikit-learn, with a
network of two hidden layers of 64 units, batch-normalised as the paper's ResNet is, for
60 epochs of batches of 20; the error is that on the 1,597 other images, over 8 seeds.

    python -m experiments decoupled_decay_2019.decay_grid

takes two to three minutes on two CPU cores. It writes `decay_grid.json` and `.png` and
what is finished, from where the same command goes on; `--redraw` draws the stored
records again.

The paper gives no number; its map shows the ten best cells along a diagonal with L2,
and less so with decoupled decay, where rate and decay can be tuned one after the other.
The numbers here, `Alignment`, were settled before the forms were compared; then the
ranges were moved until each optimum lay inside, and 4 seeds, with the same outcome but
much noise, became 8. Seen, slopes in octaves of decay per octave of rate, in brackets
the range when one seed is left out:

              best               rho                  slope
    SGD, L2   5.87%  -0.82 (-0.85, -0.73)  -1.00 (-1.30, -1.00)
    SGDW      5.92%  -0.40 (-0.40, -0.13)  -0.20 (-0.40,  0.00)
    Adam, L2  5.84%  -0.52 (-0.87, -0.52)  -1.00 (-2.00, -1.00)
    AdamW     6.43%   0.22 (-0.12, 0.19)    0.30 (-0.57, 0.60)

So the decoupled forms lie closer to the axes, clearly for Adam; for SGD by the slope
more than by rho. But AdamW's best error is 0.6 points above that of Adam with L2: here
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.papers.decoupled_decay_2019.grid_training import (
    METHODS,
    grid_errors,
    load_task,
    start,
)
from experiments.report import figures
from experiments.report.claims import NO_VALUE
from experiments.training import devices
from experiments.training.measuring import check_least, measure_and_show, measure_parts

# What is near the best: half of what decay gained in a first look at SGD with L2.
MARGIN = 0.005
# Errors above the best that the colours tell apart.
COLOUR_SPAN = 0.03


@dataclasses.dataclass(frozen=True)
class DecayGridConfig:
    """Where to write, and how much to compute."""

    out: Path = Path("runs/decoupled_decay_2019")
    """The folder for `decay_grid.json`, `decay_grid.png` and what is finished."""
    seeds: int = 8
    """Runs a cell, whose errors are averaged."""
    epochs: int = 60
    """Passes over the training images."""
    hidden: int = 64
    """Units in each of the two hidden layers."""
    batch_norm: bool = True
    """Whether these are normalised."""
    smoke: bool = False
    """Only every fifth row and column, 2 seeds, 3 epochs and 16 units."""
    redraw: bool = False
    """Print and draw the stored records, without training."""
    fresh: bool = False
    """Train again what is finished."""


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
    prog = "python -m experiments decoupled_decay_2019.decay_grid"
    config = tyro.cli(DecayGridConfig, args=args, prog=prog)
    check_least(config, seeds=2, epochs=1, hidden=1)
    if config.smoke:
        config = dataclasses.replace(config, seeds=2, epochs=3, hidden=16)
    measured = functools.partial(measure, config)
    measure_and_show(config, "decay_grid", measured, draw, table)


def measure(config: DecayGridConfig, console: Console) -> dict[str, Any]:
    """Train every cell of every method, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each method.

    Returns:
        The settings, and for each method the exponents of 2 and the errors, seeds x
        learning rates x decays.
    """
    task = load_task(config.epochs, config.hidden, config.batch_norm)
    starts = [start(seed, task) for seed in range(config.seeds)]
    stride = 5 if config.smoke else 1

    def grid_of(name: str) -> dict[str, Any]:
        method = METHODS[name]
        rates, decays = method.learning_rates[::stride], method.decays[::stride]
        errors = grid_errors(method.make, rates, decays, starts, task)
        return {
            "learning_rates": list(rates),
            "decays": list(decays),
            "errors": errors.tolist(),
        }

    told = {
        "epochs": config.epochs,
        "hidden": config.hidden,
        "batch_norm": config.batch_norm,
    }
    settings = {**told, "seeds": config.seeds, "stride": stride}
    grids = measure_parts(config, "decay_grid", settings, METHODS, grid_of, console)
    return {"device": devices.describe(), **told, "grids": grids}


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


def draw(path: Path, stored: Mapping[str, Any]) -> None:
    """Draw the maps on one colour scale, with the cells marked that are near the best.

    Args:
        path: the PNG to write.
        stored: what `decay_grid.json` holds.
    """
    best = min(np.mean(g["errors"], axis=0).min() for g in stored["grids"].values())
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, 9), layout="constrained")
        panels = figure.subplots(2, 2)
        for axes, (name, grid) in zip(
            panels.flat, stored["grids"].items(), strict=True
        ):
            mesh = _draw_map(axes, grid, best)
            axes.set_title(f"{name}\n{_in_words(grid)}")
        normalised = "with" if stored["batch_norm"] else "without"
        seeds = len(grid["errors"])
        figure.suptitle(
            f"digits, {normalised} batch norm, mean of {seeds} seeds; each map has "
            "learning rates and decays of its own"
        )
        for axes in panels[:, 0]:
            axes.set_ylabel("learning rate")
        for axes in panels.flat:
            axes.set_xlabel("weight decay")
        bar = figure.colorbar(mesh, ax=panels, extend="max", shrink=0.6, aspect=30)
        bar.set_label("test error")
        bar.ax.yaxis.set_major_locator(MultipleLocator(0.01))
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
        figures.save(figure, path, NO_VALUE)


def _draw_map(axes: Any, grid: Mapping[str, Any], best: float) -> Any:
    errors = np.mean(grid["errors"], axis=0)
    rates, decays = grid["learning_rates"], grid["decays"]
    mesh = axes.imshow(
        errors,
        origin="lower",
        cmap="viridis",
        vmin=best,
        vmax=best + COLOUR_SPAN,
        aspect="auto",
    )
    rows, columns = np.nonzero(near_best(errors))
    dots = {"color": "white", "edgecolors": "black", "s": 45}
    label = f"within {100 * MARGIN:g} points of the best: used for rho and slope"
    axes.scatter(columns, rows, label=label, **dots)
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    star = dots | {"color": "red", "s": 190, "marker": "*"}
    axes.scatter(column, row, label="the best", **star)
    axes.set_xticks(range(len(decays)), [f"$2^{{{e}}}$" for e in decays])
    axes.set_yticks(range(len(rates)), [f"$2^{{{e}}}$" for e in rates])
    return mesh


def _in_words(grid: Mapping[str, Any]) -> str:
    errors = np.mean(grid["errors"], axis=0)
    found = alignment(errors, grid["learning_rates"], grid["decays"])
    return (
        f"best {errors.min():.1%}, {found.cells} cells: rho {_shown(found.rho)}, "
        f"slope {_shown(found.slope)}"
    )


def table(stored: Mapping[str, Any]) -> Table:
    """Return the best cell and the alignment of each method."""
    # Without rules between columns it fits a terminal of 80.
    shown = Table(
        "method",
        title="learning rate and weight decay in powers of 2",
        caption=f"cells up to {100 * MARGIN:g} points above the best; "
        "in brackets, the range with one seed left out, which changes the cells",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for name in ("best", "rate", "decay", "cells", "rho", "slope"):
        shown.add_column(name, justify="right")
    for name, grid in stored["grids"].items():
        rates, decays = grid["learning_rates"], grid["decays"]
        seeds = np.asarray(grid["errors"])
        errors = seeds.mean(axis=0)
        row, column = np.unravel_index(errors.argmin(), errors.shape)
        found = alignment(errors, rates, decays)
        without = [
            alignment(np.delete(seeds, seed, axis=0).mean(axis=0), rates, decays)
            for seed in range(len(seeds))
        ]
        shown.add_row(
            name,
            f"{errors.min():.2%}",
            str(rates[row]),
            str(decays[column]),
            str(found.cells),
            f"{_shown(found.rho)} ({_span(one.rho for one in without)})",
            f"{_shown(found.slope)} ({_span(one.slope for one in without)})",
        )
    return shown


def _span(values: Any) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):z.2f}, {max(known):z.2f}" if known else "-"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"
