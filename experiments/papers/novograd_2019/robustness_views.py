"""What the records of `robustness` show: valleys, a figure and a table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.config import Stored
from experiments.papers.novograd_2019 import modes
from experiments.papers.novograd_2019.valleys import (
    MARGIN,
    Valley,
    in_words,
    leaving_out,
    valley,
)
from experiments.report import figures
from experiments.report.tables import Table

# From some seeds to where the curve of their mean is low.
ValleyOf = Callable[[Sequence[int]], Valley]


def best(found: Stored) -> np.ndarray:
    """Return the errors, a seed each, at the rate with the lowest mean.

    Args:
        found: what `study` did.
    """
    errors = np.asarray(found["errors"])
    return errors[:, errors.mean(axis=0).argmin()]


def seeds_of(stored: Stored) -> int:
    """Return how many seeds every optimizer was trained with.

    Args:
        stored: what `robustness.json` holds.
    """
    first, *_ = stored["optimizers"].values()
    return len(first["float16"])


def weights_valley(name: str, stored: Stored) -> ValleyOf:
    """Return where the error is near that of the initial weights as they are.

    Args:
        name: of the optimizer.
        stored: what `robustness.json` holds.

    Returns:
        The valley over exponents of 10, of some seeds.
    """
    errors = np.asarray(stored["optimizers"][name]["weights"])
    middle = stored["scales"].index(0)

    def of(seeds: Sequence[int]) -> Valley:
        mean = errors[seeds].mean(axis=0)
        return valley(mean, stored["scales"], middle, mean[middle] + MARGIN)

    return of


def units_valley(name: str, stored: Stored) -> ValleyOf:
    """Return where the error in float16 is near that in float32.

    Args:
        name: of the optimizer.
        stored: what `robustness.json` holds.

    Returns:
        The valley about the lowest error, over exponents of 2, of some seeds.
    """
    found = stored["optimizers"][name]
    errors, whole = np.asarray(found["float16"]), best(found)

    def of(seeds: Sequence[int]) -> Valley:
        mean, bound = errors[seeds].mean(axis=0), whole[seeds].mean() + MARGIN
        return valley(mean, stored["units"], int(mean.argmin()), bound)

    return of


def draw(path: Path, stored: Stored) -> None:
    """Draw the errors over a factor on the initial weights, and on the loss.

    Args:
        path: the PNG to write.
        stored: what `robustness.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        weights, units = panels = figure.subplots(1, 2, sharey=True)
        for name in stored["optimizers"]:
            _draw_optimizer(panels, name, stored)
        weights.set(
            xlabel="factor on the initial weights",
            ylabel="test error, log scale",
            title="other weights",
            xscale="log",
            yscale="log",
        )
        weights.set_xticks([], minor=True)
        weights.set_yticks([], minor=True)
        weights.set_yticks(modes.TICKS, [f"{error:.0%}" for error in modes.TICKS])
        units.set(xlabel="factor on the loss", title="in float16, SGD left out")
        units.set_xscale("log", base=2)
        units.set_xticks([2.0**unit for unit in stored["units"] if unit % 8 == 0])
        figure.suptitle(
            f"{stored['training_images']} digits for {stored['epochs']} epochs, mean "
            f"of {seeds_of(stored)} seeds; thick, the stretch counted:\nabout a factor "
            "of 1 at most a point above the error there, or in float16 about the best "
            "one at most a point above float32"
        )
        shown = [axes.get_legend_handles_labels() for axes in panels]
        lines = {name: line for pair in shown for line, name in zip(*pair, strict=True)}
        place = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        figure.legend(lines.values(), lines, **place)
        figures.save(figure, path)


def _draw_optimizer(panels: Any, name: str, stored: Stored) -> None:
    weights, units = panels
    line, found = figures.LINES[name] | {"label": name}, stored["optimizers"][name]
    everyone = range(seeds_of(stored))
    if "weights" in found:
        curve = stored["scales"], found["weights"]
        inside = weights_valley(name, stored)(everyone)
        _draw_valley(weights, *curve, 10.0, inside, line)
    if "float16" in found:
        curve = stored["units"], found["float16"]
        _draw_valley(units, *curve, 2.0, units_valley(name, stored)(everyone), line)


def _draw_valley(
    axes: Any,
    exponents: Sequence[float],
    errors: Sequence[Sequence[float]],
    base: float,
    found: Valley,
    line: Mapping[str, Any],
) -> None:
    places = np.unique([*exponents, found.low, found.high])
    curve = np.interp(places, exponents, np.mean(errors, axis=0))
    spread = np.std(errors, axis=0, ddof=1) / np.sqrt(len(errors))
    bars = {"fmt": "none", "elinewidth": 0.8, "color": line["color"]}
    mean = np.mean(errors, axis=0)
    axes.errorbar(base ** np.array(exponents), mean, spread, **bars)
    inside = (found.low <= places) & (places <= found.high)
    axes.plot(base**places, curve, linewidth=1, **line)
    if found.width > 0:
        thick = line | {"linewidth": 3, "label": None}
        axes.plot(base ** places[inside], curve[inside], **thick)


def table(stored: Stored) -> Table:
    """Return the best error, and the widths of the valleys."""
    seeds = seeds_of(stored)

    def row_of(name: str, found: Stored) -> tuple[str, ...]:
        decades = octaves = "-"
        if "weights" in found:
            decades = in_words(leaving_out(weights_valley(name, stored), seeds))
        if "float16" in found:
            octaves = in_words(leaving_out(units_valley(name, stored), seeds), 1)
        return (name, f"{100 * best(found).mean():.1f}", decades, octaves)

    return Table(
        "test error (%); how far factors on the initial weights, and in float16 on "
        f"the loss, leave it within {100 * MARGIN:g} point",
        ("optimizer", "error", "decades", "octaves"),
        (row_of(*one) for one in stored["optimizers"].items()),
        f"{seeds} seeds; in brackets, one seed left out",
    )
