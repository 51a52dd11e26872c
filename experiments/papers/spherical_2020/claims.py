"""What the paper's table claims, cell by cell and column by column."""

import functools
import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.table import Table

from experiments.papers.spherical_2020 import (
    cell_settings,
    effective_learning_rate,
    protocol,
    table1,
    turning,
)
from experiments.report.claims import (
    ERRORS,
    FEWEST_SEEDS,
    Chapter,
    Claim,
    Exhibit,
    Finding,
    Picture,
    Stored,
    standard_error,
)

PUBLISHED = protocol.PAPER["test_accuracy_percent_mean_std"]
ORDER = ("adam", "adams", "adamsrt")
# The published script did the opposite of what the paper means by it.
NOT_JUDGED = "adamg"
JUDGED = tuple(name for name in PUBLISHED if name != NOT_JUDGED)
# Runs of two kinds are alike if their means are within so many standard deviations of
# the difference of a run of one and a run of the other.
DEVIATIONS = 2
# Of the paper's epochs, set before any such run.
FEWEST_EPOCHS = 60
# Of the logarithms of angle and predicted rate, fixed before a full run.
CORRELATION = 0.9
# Of the slope of one against the other, which is 1 where they are proportional.
SLOPES = (0.8, 1.2)
# Through two layers there is always a line.
FEWEST_LAYERS = 3

Cells = Mapping[str, Sequence[float]]


def _order(column: str, stored: Stored) -> Finding:
    cells = _column(column, stored)
    run = [name for name in ORDER if name in cells]
    in_words = (f"{name} {table1.in_words(cells[name])}" for name in run)
    words = ", ".join(in_words).replace("+-", "±")
    if run:
        words += f", after {cell_settings.effort(_compared(stored), column)}"
    if missing := [name for name in ORDER if name not in run]:
        return Finding(
            None, "; ".join(filter(None, (_missing(missing, column, stored), words)))
        )
    if not _alike(column, stored):
        return Finding(None, f"not trained alike: {words}")
    # A part of the images is another, easier or harder, problem than the paper's.
    if not cell_settings.have_all_images(_compared(stored), column):
        return Finding(None, f"{words}, where the paper has all")
    if min(cell_settings.found(_compared(stored), "epochs", column)) < FEWEST_EPOCHS:
        return Finding(None, f"{words}, judged from {FEWEST_EPOCHS} epochs on")
    if min(len(cells[name]) for name in ORDER) < FEWEST_SEEDS:
        return Finding(None, f"{words}, judged from {FEWEST_SEEDS} seeds on")
    published = (PUBLISHED[name][column][0] for name in ORDER)
    theirs = [b - a for a, b in itertools.pairwise(published)]
    steps = [_step(cells[a], cells[b]) for a, b in itertools.pairwise(ORDER)]
    if any(more < -noise for more, noise in steps):
        return Finding(False, words)
    # Of those within the noise: whether that would hide a step as large as the paper's.
    within = [
        noise > paper
        for (more, noise), paper in zip(steps, theirs, strict=True)
        if more <= noise
    ]
    if any(within):
        return Finding(None, f"too few seeds for the paper's steps: {words}")
    return Finding(not within, f"within the noise: {words}" if within else words)


def _alike(column: str, stored: Stored) -> bool:
    """Say whether cells that are compared differ in their optimizer alone.

    They may not, where commands of different settings have written into one table.
    """
    cells, keys = _compared(stored), ("epochs", "images", *cell_settings.OPTIONS)
    return all(len(cell_settings.found(cells, key, column)) == 1 for key in keys)


def _compared(stored: Stored) -> list[table1.Cell]:
    """Return the cells whose order is claimed."""
    return [cell for cell in stored["cells"] if cell["optimizer"] in ORDER]


def _step(lower: Sequence[float], upper: Sequence[float]) -> tuple[float, float]:
    """Return how much higher a mean is, and how much of that may be noise."""
    more = statistics.mean(upper) - statistics.mean(lower)
    return more, ERRORS * math.hypot(*map(standard_error, (lower, upper)))


def _missing(names: Collection[str], column: str, stored: Stored) -> str:
    """Say which of the optimizers have no accuracy in a column, and why."""
    diverged = {
        cell["optimizer"]
        for cell in stored.get("diverged", [])
        if cell["column"] == column
    }
    why = {"diverged": diverged.intersection(names), "not run": {*names} - diverged}
    return "; ".join(
        f"{', '.join(name for name in names if name in missing)}: {word}"
        for word, missing in why.items()
        if missing
    )


def _values(column: str, stored: Stored) -> Finding:
    cells = _column(column, stored)
    if not cells:
        return Finding(None, _missing(JUDGED, column, stored))
    differences = {
        name: statistics.mean(percents) - PUBLISHED[name][column][0]
        for name, percents in cells.items()
    }
    words = ", ".join(
        f"{name} {more:+.2f}" + " (not judged)" * (name == NOT_JUDGED)
        for name, more in differences.items()
    )
    words += f", after {cell_settings.effort(stored['cells'], column)}"
    if not cell_settings.are_whole(stored["cells"], column):
        words += f", where the paper has {protocol.EPOCHS} epochs of all"
        return Finding(None, words)
    if any(
        cell_settings.found(stored["cells"], key, column) != {usual}
        for key, usual in cell_settings.OPTIONS.items()
    ):
        words += ", where the paper has float32 and its own rule of channel axes"
        return Finding(None, words)
    if missing := [name for name in JUDGED if name not in cells]:
        return Finding(None, f"{_missing(missing, column, stored)}; {words}")
    if (seeds := min(len(cells[name]) for name in JUDGED)) < FEWEST_SEEDS:
        words += f"; n = {seeds}, judged from {FEWEST_SEEDS} seeds on"
        return Finding(None, words)
    deviations = {
        name: math.hypot(PUBLISHED[name][column][1], statistics.stdev(cells[name]))
        for name in JUDGED
    }
    agree = (abs(differences[name]) <= DEVIATIONS * d for name, d in deviations.items())
    return Finding(all(agree), words)


def _column(column: str, stored: Stored) -> Cells:
    """Return the percents of each seed, by optimizer."""
    return {
        cell["optimizer"]: [100 * accuracy for accuracy in cell["test_accuracy"]]
        for cell in stored["cells"]
        if cell["column"] == column
    }


def grid(stored: Stored) -> Table:
    """Return the paper's table with ours below each row."""
    shown = Table(
        "optimizer",
        "",
        title="Table 1: test accuracy in percent, mean +- standard deviation (seeds)",
        caption=protocol.ADAMG_NOTE,
        box=box.SIMPLE_HEAD,
    )
    for column in protocol.COLUMNS:
        shown.add_column(column, justify="right")
    columns = {column: _column(column, stored) for column in protocol.COLUMNS}
    for name, row in PUBLISHED.items():
        published = (row[column] for column in protocol.COLUMNS)
        cells = (columns[column].get(name) for column in protocol.COLUMNS)
        shown.add_row(name, "paper", *(f"{m:.2f} +- {d:.2f}" for m, d in published))
        ours = ("not run" if c is None else table1.in_words(c) for c in cells)
        shown.add_row("", "ours", *ours)
    return shown


def _table_extent(stored: Stored) -> str:
    cells = stored["cells"]
    if not cells:
        return "no cell was trained to its end"
    seeds = cell_settings.span([len(cell["test_accuracy"]) for cell in cells])
    devices = "; ".join(table1.devices_of(cells))
    return (
        f"n = {seeds} {'seed' if seeds == '1' else 'seeds'} a cell, {len(cells)} of "
        f"{len(PUBLISHED) * len(protocol.COLUMNS)} cells, "
        f"{cell_settings.effort(cells)}, where the paper has {protocol.EPOCHS} epochs; "
        f"{cell_settings.tested(cells)}; {devices}"
    )


def _follows(optimizer: str, stored: Stored) -> Finding:
    records = stored["runs"].get(optimizer)
    if records is None:
        return Finding(None, f"{optimizer}: not run")
    epochs, layers = len(records), len(records[0]["angle"])
    if layers < FEWEST_LAYERS:
        return Finding(None, f"n = {layers} layers, which are too few")
    found, slope = turning.fit_rates(records)
    return Finding(
        found >= CORRELATION and SLOPES[0] <= slope <= SLOPES[1],
        f"correlation {found:.3f}, slope {slope:.2f}; n = {layers} layers, whose "
        f"{epochs} epochs are not independent",
    )


def _rate_extent(stored: Stored) -> str:
    factors = stored["factors"].values()
    configs = [trained["config"] for trained in stored["optimizers"].values()]
    decays = " and ".join(sorted({f"{one['weight_decay']:g}" for one in configs}))
    return (
        f"n = 1 (seed {stored['seed']}), {stored['epochs']} epochs of "
        f"{stored['model']} on {stored['dataset']}, weight decay {decays}, initial "
        f"kernels times random factors from {min(factors):.2f} to {max(factors):.2f}"
    )


def _ordered(column: str) -> str:
    return " < ".join(f"{PUBLISHED[name][column][0]:.2f}" for name in ORDER)


def _published(column: str) -> str:
    return ", ".join(f"{name} {row[column][0]:.2f}" for name, row in PUBLISHED.items())


CHAPTER = Chapter(
    title="Spherical Perspective on Learning with Normalization Layers",
    source="Roburin et al., 2020, arXiv 2006.13382: the table of the published code, "
    "whose seven optimizers and seven settings are 49 cells.",
    exhibits={
        "spherical_2020.table1": Exhibit(
            claims=tuple(
                claim
                for column in protocol.COLUMNS
                for claim in (
                    Claim(
                        f"{column}: Adam-S is more accurate than Adam, and Adam-SRT "
                        "than Adam-S.",
                        functools.partial(_order, column),
                        f"after at least {FEWEST_EPOCHS} epochs of all images, over "
                        f"at least {FEWEST_SEEDS} seeds, each is so by more than "
                        f"{ERRORS} standard errors of the difference; not judged "
                        "where these hide a step as large as the paper's",
                        published=_ordered(column),
                    ),
                    Claim(
                        f"{column}: the accuracies of the optimizers, AdamG's apart.",
                        functools.partial(_values, column),
                        f"after {protocol.EPOCHS} epochs of all images, in float32 and "
                        "with the paper's rule of channel axes, over at least "
                        f"{FEWEST_SEEDS} seeds, each is the paper's within "
                        f"{DEVIATIONS} standard deviations of the difference of two "
                        "runs, one of each; AdamG's, for which the published script "
                        "did the opposite of the text, is not judged",
                        published=_published(column),
                    ),
                )
            ),
            extent=_table_extent,
            tables=(grid, table1.table),
            stored_by=cell_settings.commands,
            without_results={"cells": []},
        ),
        "spherical_2020.effective_learning_rate": Exhibit(
            claims=tuple(
                Claim(
                    f"With {name}, the effective learning rate goes from layer to "
                    "layer as √d / |w|: the size of a block and the length of its "
                    "weights.",
                    functools.partial(_follows, name),
                    "over the layers, epoch by epoch, less the mean of an epoch, the "
                    "logarithms of that and of the angle of a step correlate by "
                    f"{CORRELATION} and more, with a slope from {SLOPES[0]} to "
                    f"{SLOPES[1]}",
                )
                for name in effective_learning_rate.OPTIMIZERS
            ),
            extent=_rate_extent,
            tables=(effective_learning_rate.table,),
            pictures=(
                Picture(
                    "effective_learning_rate",
                    "Length of the weights, its growth, angle of a step and learning "
                    "rate over length by epoch, a line a layer and a column an "
                    "optimizer.",
                    effective_learning_rate.draw,
                ),
            ),
        ),
    },
)
