"""Rows and a table of two times of each optimizer: of a step, and of its compiling."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.benchmarks.ratios import Ratio

OF = ("step", "compile")
Row = dict[str, Any]


def row(
    name: str,
    of: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
    *,
    baseline: str,
    bar: float | None,
) -> Row:
    """Return what was timed of an optimizer.

    Args:
        name: of the optimizer.
        of: which of the two times.
        ours: seconds, one a round.
        theirs: those of the baseline in the same rounds; None: it is the baseline.
        baseline: its name.
        bar: the largest ratio that is good enough, if one is set.
    """
    found = {
        "optimizer": f"{name}, {of}",
        "seconds": statistics.median(ours),
        "baseline": None,
        "ratio": None,
        "quartiles": None,
        "bar": None,
        "holds": None,
    }
    if theirs is not None:
        ratio, quartiles = Ratio.of(ours, theirs)
        found |= {"baseline": f"{baseline}, {of}", "bar": bar}
        found |= {"ratio": ratio, "quartiles": list(quartiles)}
        found["holds"] = None if bar is None else ratio <= bar
    return found


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return a row for each optimizer and time, with its ratio and its bar."""
    shown = Table(
        "optimizer",
        title=title,
        caption="ratio: the median of the rounds' own ratios, not that of the times",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("seconds", "ratio", "quartiles", "bar"):
        shown.add_column(name, justify="right")
    for row in rows:
        ratio = quartiles = bar = "-"
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.2f}"
            quartiles = "{:.2f}-{:.2f}".format(*row["quartiles"])
        if row["bar"] is not None:
            bar = f"{row['bar']:g} {'holds' if row['holds'] else 'missed'}"
        shown.add_row(row["optimizer"], f"{row['seconds']:.3f}", ratio, quartiles, bar)
    return shown
