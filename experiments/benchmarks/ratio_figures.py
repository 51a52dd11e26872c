"""Ratios of times to those of what they are compared with, and their bars, drawn."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments.config import Stored
from experiments.report import figures


def draw(path: Path, stored: Stored) -> None:
    """Draw the ratio of each row that has one, from quartile to quartile.

    Args:
        path: the PNG to write.
        stored: records with `rows`, each of an optimizer.
    """
    rows = [row for row in reversed(stored["rows"]) if row["ratio"] is not None]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            low, high = row["quartiles"]
            axes.plot([low, high], [place, place], color=figures.BLUE, lw=2)
            axes.plot(row["ratio"], place, "o", color=figures.BLUE)
            if row["bar"] is not None:
                mark = {"marker": "|", "ms": 16, "mew": 2, "color": figures.ORANGE}
                axes.plot(row["bar"], place, linestyle="", **mark)
        axes.axvline(1, color=figures.GREY, lw=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [row["optimizer"] for row in rows])
        axes.set(
            xlabel="ratio of the times: median and quartiles of the rounds; | the bar",
            xscale="log",
            ylim=(-0.6, len(rows) - 0.4),
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        figures.save(figure, path)
