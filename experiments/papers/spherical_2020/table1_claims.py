"""What the paper's table claims, judged in the columns that were trained for it."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.config import Stored
from experiments.papers.spherical_2020 import cell_settings, protocol
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table

PUBLISHED = protocol.PAPER["test_accuracy_percent_mean_std"]
ORDER = ("adam", "adams", "adamsrt")
# The published script did the opposite of what the paper means by it.
NOT_JUDGED = "adamg"
JUDGED = tuple(name for name in PUBLISHED if name != NOT_JUDGED)
# Means are alike if they differ by less than so many standard deviations of the
# difference of two of the paper's runs.
DEVIATIONS = 2
# Of the paper's epochs, set before any such run; and seeds.
FEWEST_EPOCHS, FEWEST_SEEDS = 60, 3

Cells = Mapping[str, Sequence[float]]


def _tells_order(column: str, cells: cell_settings.Cells) -> bool:
    """Say whether a column's cells differ in their optimizer alone, and are enough.

    A part of the images is another, easier or harder, problem than the paper's.
    """
    compared = [cell for cell in cells if cell["optimizer"] in ORDER]
    keys = ("epochs", "images", *cell_settings.OPTIONS)
    return (
        all(len(cell_settings.found(compared, key, column)) == 1 for key in keys)
        and cell_settings.have_all_images(compared, column)
        and min(cell_settings.found(compared, "epochs", column)) >= FEWEST_EPOCHS
    )


def _is_the_paper_s(column: str, cells: cell_settings.Cells) -> bool:
    """Say whether a column was trained as the paper trained it."""
    return cell_settings.are_whole(cells, column) and all(
        cell_settings.found(cells, key, column) == {usual}
        for key, usual in cell_settings.OPTIONS.items()
    )


def _percents(
    stored: Stored, arm: str, can_tell: Callable[[str, cell_settings.Cells], bool]
) -> np.ndarray | None:
    """Return the percents of each seed of a cell, None where it is no test."""
    column, name = arm.split()
    found = column_of(column, stored).get(name, ())
    if len(found) < FEWEST_SEEDS or not can_tell(column, stored["cells"]):
        return None
    return np.array(found)


def _off(stored: Stored, arm: str) -> np.ndarray | None:
    column, name = arm.split()
    found = _percents(stored, arm, _is_the_paper_s)
    return None if found is None else found - PUBLISHED[name][column][0]


def _needs(stored: Stored, read: Callable[[Stored, str], np.ndarray | None]) -> str:
    """Say that no column was trained for it, once for all of them."""
    arms = [f"{column} {name}" for column in protocol.COLUMNS for name in JUDGED]
    if any(read(stored, arm) is not None for arm in arms):
        return ""
    cells = stored["cells"]
    held = cell_settings.effort(cells) if cells else "nothing"
    return (
        f"it wants a GPU: stored are {held}, where the paper has {protocol.EPOCHS} "
        f"epochs of all; judged from {FEWEST_SEEDS} seeds and all images on, the order "
        f"after {FEWEST_EPOCHS} epochs, the accuracies after the paper's"
    )


_in_order = functools.partial(_percents, can_tell=_tells_order)
ACCURACY = Metric(
    "test accuracy", _in_order, "higher", less_is_better=False, scale=1.0, form="{:.2f}"
)
OFF = Metric("points above the paper's accuracy", _off, form="{:+.2f}")

CLAIMS = (
    Claim(
        "Adam-S is more accurate than Adam, and Adam-SRT than Adam-S, in the seven "
        "columns of the table.",
        tuple(
            Check(ACCURACY, f"{column} {better}", f"{column} {lower}")
            for column in protocol.COLUMNS
            for lower, better in itertools.pairwise(ORDER)
        ),
        functools.partial(_needs, read=_in_order),
        "; ".join(
            f"{column} "
            + " < ".join(f"{PUBLISHED[name][column][0]:.2f}" for name in ORDER)
            for column in protocol.COLUMNS
        ),
    ),
    Claim(
        "The accuracies of the optimizers are those of the table, AdamG's apart.",
        tuple(
            Check(OFF, f"{column} {name}", low=-reach, high=reach)
            for column in protocol.COLUMNS
            for name in JUDGED
            for reach in (DEVIATIONS * math.sqrt(2) * PUBLISHED[name][column][1],)
        ),
        functools.partial(_needs, read=_off),
        "the table",
    ),
)


def column_of(column: str, stored: Stored) -> Cells:
    """Return the percents of each seed, by optimizer."""
    return {
        cell["optimizer"]: [100 * accuracy for accuracy in cell["test_accuracy"]]
        for cell in stored["cells"]
        if cell["column"] == column
    }


def grid(stored: Stored) -> Table:
    """Return the paper's table with ours below each row."""
    columns = {column: column_of(column, stored) for column in protocol.COLUMNS}
    rows = []
    for name, row in PUBLISHED.items():
        published = (row[column] for column in protocol.COLUMNS)
        rows.append((name, "paper", *(f"{m:.2f} ± {d:.2f}" for m, d in published)))
        cells = (columns[column].get(name) for column in protocol.COLUMNS)
        words = cell_settings.in_words
        ours = ("not run" if cell is None else words(cell) for cell in cells)
        rows.append(("", "ours", *ours))
    return Table(
        "Table 1: test accuracy in percent, mean ± standard deviation (seeds)",
        ("optimizer", "", *protocol.COLUMNS),
        rows,
        protocol.ADAMG_NOTE,
        left=2,
    )


def extent(stored: Stored) -> str:
    """Say how much of the table was trained, and how."""
    cells = stored["cells"]
    if not cells:
        return "no cell was trained to its end"
    seeds = cell_settings.span([len(cell["test_accuracy"]) for cell in cells])
    devices = "; ".join(cell_settings.devices_of(cells))
    return (
        f"n = {seeds} {'seed' if seeds == '1' else 'seeds'} a cell, {len(cells)} of "
        f"{len(PUBLISHED) * len(protocol.COLUMNS)} cells, "
        f"{cell_settings.effort(cells)}, where the paper has {protocol.EPOCHS} epochs; "
        f"{cell_settings.tested(cells)}; {devices}"
    )
