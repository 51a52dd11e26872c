"""Draw the cells of Table 1: every seed, their mean, and the paper's in words."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.papers.spherical_2020 import protocol
from experiments.papers.spherical_2020.cell_settings import effort
from experiments.report import figures
from experiments.report.claims import Stored

# The kinds of methods, as in all figures; Adam and AdamW are orange.
COLOURS = {
    "sgd": figures.BLUE,
    "sgdmrt": figures.BLUE,
    "adams": figures.GREEN,
    "adamsrt": figures.PURPLE,
    "adamg": figures.GREY,
}


def draw(path: Path, stored: Stored) -> None:
    """Draw a panel a column of the table, with a row an optimizer.

    The paper's means stand as numbers: as marks they would stretch the axis of a run
    that is shorter than the paper's.

    Args:
        path: the PNG to write.
        stored: what `table1.json` holds; cells that diverged have no accuracy.
    """
    cells = stored["cells"]
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    rows = len(protocol.OPTIMIZERS)
    with matplotlib.rc_context(figures.STYLE):
        size = (7.5, (0.9 + 0.34 * rows) * max(1, len(columns)))
        figure = Figure(figsize=size, layout="constrained")
        if not columns:
            figure.text(0.5, 0.5, "every cell diverged", ha="center")
        panels = [
            figure.add_subplot(len(columns), 1, n + 1) for n in range(len(columns))
        ]
        for axes, column in zip(panels, columns, strict=True):
            own = [cell for cell in cells if cell["column"] == column]
            _draw_column(axes, own)
            axes.set(title=f"{column}, {effort(cells, column)}", xlabel="test accuracy")
        figures.save(figure, path)


def _draw_column(axes: Any, cells: list[Any]) -> None:
    published = protocol.PAPER["test_accuracy_percent_mean_std"]
    labels = []
    for row, cell in enumerate(reversed(cells)):
        name, seeds = cell["optimizer"], cell["test_accuracy"]
        colour = COLOURS.get(name, figures.ORANGE)
        axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.35, ms=5)
        axes.plot(statistics.mean(seeds), row, "|", color=colour, ms=16, mew=2.5)
        labels.append(f"{name} (paper: {published[name][cell['column']][0]:.1f} %)")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
