"""The figure and the table of `equilibrium`."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.config import Stored
from experiments.papers.rotational_2024.readings import (
    by_layer,
    course,
    ratios,
    spread,
    worst,
)
from experiments.report import figures
from experiments.report.tables import Table

# A colour a family, a mark a kind.
MARKS = {
    "AdamW": (figures.ORANGE, "o"),
    "Adam, L2": (figures.ORANGE, "s"),
    "AdamS": (figures.PURPLE, "s"),
    "AdamSRT": (figures.PURPLE, "o"),
    "SGD, L2": (figures.BLUE, "s"),
    "SGDW": (figures.BLUE, "o"),
    "SGD-MRT": (figures.BLUE, "^"),
    "NovoGrad": (figures.GREEN, "o"),
    "Lion": (figures.GREY, "D"),
}
_COLOURS = (figures.GREY, figures.ORANGE, figures.BLUE)
_UNITS = {"angle": "angle per step (rad)", "length": "length"}


def draw(path: Path, stored: Stored) -> None:
    """Draw measured against predicted, and both over the steps.

    Args:
        path: the PNG to write.
        stored: what `equilibrium.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(11.5, 7.4), layout="constrained")
        above, below = figure.subplots(2, 3)
        for column, quantity in enumerate(_UNITS):
            for name, arm in stored["noise"].items():
                measured = np.array(arm[quantity])
                predicted = np.array(arm[f"predicted_{quantity}"])[:, None]
                _dots(above[column], name, predicted, measured)
            for name, network in stored["networks"].items():
                _dots(below[column], name, *by_layer(network, quantity))
            for axes, what in ((above[column], "noise"), (below[column], "network")):
                _line_of_equals(axes, f"{what}: {_UNITS[quantity]}")
        _draw_schedules(above[2], stored["schedules"])
        _draw_courses(below[2], stored)
        handles, labels = above[0].get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": 9, "frameon": False}
        figure.legend(handles, labels, **place)
        figure.suptitle(
            f"above, blocks that noise drives; below, the convolutions of "
            f"{stored['model']} on the digits, a dot a layer and a seed"
        )
        figures.save(figure, path)


def _dots(axes: Any, name: str, predicted: np.ndarray, measured: np.ndarray) -> None:
    colour, mark = MARKS[name]
    predicted = np.broadcast_to(predicted, measured.shape)
    how = {"s": 22, "marker": mark, "facecolors": "none", "edgecolors": colour}
    axes.scatter(predicted.ravel(), measured.ravel(), label=name, **how)


def _line_of_equals(axes: Any, title: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="predicted", ylabel="measured")
    axes.set_title(title)
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    span = [min(ends), max(ends)]
    axes.plot(span, span, color=figures.GREY, lw=1, ls=":", zorder=0)
    axes.set(xlim=span, ylim=span)
    subs = (1.0,) if span[1] / span[0] > 100 else (1.0, 3.0)
    if span[1] / span[0] < 10:
        subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter("{x:g}")


def _draw_schedules(axes: Any, schedules: Stored) -> None:
    for (form, found), colour in zip(schedules["forms"].items(), _COLOURS, strict=True):
        measured = np.mean(found["length"], axis=1)
        axes.plot(schedules["steps"], measured, color=colour, lw=2, label=form)
        predicted = found["predicted_length"]
        axes.plot(schedules["steps"], predicted, color=colour, lw=1, ls="--")
    axes.set_title("noise: length while Adam's rate falls")
    axes.set(xlabel="step, the dashes are predicted", ylabel="length", ylim=(0, None))
    axes.legend(frameon=False, title="the decay is")


def _draw_courses(axes: Any, stored: Stored) -> None:
    for name, network in stored["networks"].items():
        ratio = course(network)
        steps = (np.arange(len(ratio)) + 0.5) * stored["steps"] / len(ratio)
        colour, mark = MARKS[name]
        dashes = {"s": "--", "o": "-", "D": "-."}[mark]
        axes.plot(steps, ratio, dashes, color=colour, lw=1.6)
    axes.axhline(1, color=figures.GREY, lw=1, ls=":", zorder=0)
    axes.set_title("network: angle over the predicted one")
    axes.set(xlabel="step", ylabel="ratio")
    figures.log_scale(axes)


def table(stored: Stored) -> Table:
    """Return how far measured and predicted are apart."""

    def row_of(name: str, arm: Stored) -> tuple[str, ...]:
        noise = (f"{100 * worst(arm, q).mean():.1f} %" for q in _UNITS)
        network = stored["networks"].get(name)
        if network is None:
            return (name, *noise, "", "", "")
        of_layers = (f"{ratios(network, q).mean():.3f}" for q in _UNITS)
        return (name, *noise, *of_layers, f"{spread(network).mean():.3f}")

    return Table(
        "noise: largest distance from what is predicted; network: measured over "
        "predicted, and the deviation of the logarithm of angles over the layers",
        ("optimizer", "angle", "length", "network's", "length", "spread"),
        (row_of(*arm) for arm in stored["noise"].items()),
        "means over the seeds",
    )
