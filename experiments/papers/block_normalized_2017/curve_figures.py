"""The figures and the table of curves that four optimizers left, over some seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.table import Table

from experiments.papers.block_normalized_2017.methods import METHODS, kind_of
from experiments.report import figures
from experiments.report.claims import NO_VALUE, Stored

# Of the records, what each figure shows.
SPLITS = {"train": "training", "test": "test"}

_COLOURS = {"SGD": "#1f6fb2", "Adam": "#d9601a"}
# How a method is drawn: plain ones are dashed.
LINES = {
    method: {
        "color": _COLOURS[kind_of(method)],
        "linestyle": "--" if kind_of(method) == method else "-",
    }
    for method in METHODS
}
# Between the names of two marks, as a share of the axis.
_LINE = 0.055


class Published(NamedTuple):
    """What the notebook of the example printed, of one run.

    Attributes:
        source: what the numbers are.
        test_accuracy: by method, as far as there are some.
    """

    source: str
    test_accuracy: Mapping[str, float]

    def in_words(self) -> str:
        """Return the source and the numbers."""
        numbers = self.test_accuracy.items()
        words = ", ".join(f"{name} {100 * value:.2f} %" for name, value in numbers)
        return f"{self.source}: {words}"


def draw(path: Path, stored: Stored, split: str) -> None:
    """Draw loss and accuracy of one split over the epochs, a line an optimizer.

    Args:
        path: the PNG to write.
        stored: the records.
        split: of `SPLITS`.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.4))
        # Names of marks end where the figure does, but for this.
        figure.set_layout_engine("constrained", w_pad=0.12)
        loss, accuracy = figure.subplots(1, 2)
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            for method in _methods(stored):
                _draw_curves(axes, method, _by_seed(stored, method, split, quantity))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _mark_rates((loss, accuracy), stored["config"])
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        figures.log_scale(loss)
        accuracy.set(xlabel="epoch", ylabel="accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        note = NO_VALUE
        if split == "test":
            published = Published(**stored["published"])
            _mark_published(accuracy, published.test_accuracy)
            note = f"at the right edge: {published.source}; {NO_VALUE} of the others"
        figure.legend(
            *loss.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(METHODS) + 1,
            frameon=False,
        )
        figure.suptitle(_title(stored, split))
        figures.save(figure, path, note)


def _methods(stored: Stored) -> list[str]:
    """Return those that were run, which in a smoke run are not all."""
    one, *_ = stored["seeds"].values()
    return [method for method in METHODS if method in one["curves"]]


def _by_seed(stored: Stored, method: str, split: str, quantity: str) -> np.ndarray:
    """Return one quantity of a method, seeds x epochs."""
    seeds = stored["seeds"].values()
    return np.array([one["curves"][method][f"{split}_{quantity}"] for one in seeds])


def _draw_curves(axes: Any, method: str, values: np.ndarray) -> None:
    """Draw the mean of the seeds, and each of several as a thin line."""
    line, epochs = LINES[method], range(1, values.shape[1] + 1)
    if len(values) > 1:
        axes.plot(epochs, values.T, lw=0.7, alpha=0.45, **line)
    axes.plot(epochs, values.mean(axis=0), lw=1.8, label=method, **line)


def _mark_rates(panels: Sequence[Any], config: Mapping[str, Any]) -> None:
    """Draw a line between the epochs where the learning rate changes."""
    changes = max(len(rates) for rates in config["learning_rates"].values()) - 1
    line = {"color": "#888888", "lw": 1, "linestyle": ":", "zorder": 1}
    for rank in range(1, changes + 1):
        # One of them is in the legend, which is that of the first panel.
        named = {"label": "a new learning rate"} if rank == 1 else {}
        for axes in panels:
            axes.axvline(rank * config["epochs_per_rate"] + 0.5, **line, **named)


def _mark_published(axes: Any, accuracies: Mapping[str, float]) -> None:
    """Mark values at the right edge, with names that do not hide each other."""
    at_edge = axes.get_yaxis_transform()
    # Before the limits are read, which they are part of.
    for method, value in accuracies.items():
        mark = {"marker": "_", "ms": 10, "mew": 1.2, "color": _COLOURS[kind_of(method)]}
        axes.plot([1], [value], transform=at_edge, clip_on=False, **mark)
    low, high = axes.get_ylim()
    place = high
    for method, value in sorted(accuracies.items(), key=lambda one: -one[1]):
        place = min(value, place - _LINE * (high - low))
        colour = _COLOURS[kind_of(method)]
        axes.annotate(
            f"{method} {value:.2%}",
            (1, value),
            (1.06, place),
            xycoords=at_edge,
            textcoords=at_edge,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.8,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            va="center",
            size=8,
            color=colour,
        )


def _title(stored: Stored, split: str) -> str:
    config, seeds = stored["config"], len(stored["seeds"])
    shown = {
        "train": "training images, under dropout",
        "test": f"{config['test_images']:,} test images",
    }
    runs = f"mean of {seeds} seeds, each a thin line" if seeds > 1 else "one seed"
    return f"{_trained_on(stored)}; {shown[split]}; {runs}"


def table(stored: Stored) -> Table:
    """Return a row for each optimizer: the mean over the seeds after the last epoch."""
    seeds = len(stored["seeds"])
    deviation = "mean +- standard deviation, " if seeds > 1 else ""
    images = stored["config"]["test_images"]
    published = Published(**stored["published"])
    shown = Table(
        title=f"{_trained_on(stored)}; after the last epoch, {deviation}n = {seeds}",
        caption=f"accuracies in percent, the test's over {images:,} images\n"
        f"{published.in_words()}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    shown.add_column("optimizer", no_wrap=True)
    for name in ("train loss", "train acc.", "test loss", "test acc."):
        shown.add_column(name, justify="right", no_wrap=True)
    for method in _methods(stored):
        cells = (
            _in_words(_by_seed(stored, method, split, quantity)[:, -1], scale, digits)
            for split in SPLITS
            for quantity, scale, digits in (("loss", 1, 3), ("accuracy", 100, 2))
        )
        shown.add_row(method, *cells)
    return shown


def _in_words(values: np.ndarray, scale: float, digits: int) -> str:
    """Return the mean, and the standard deviation of several."""
    words = f"{scale * values.mean():.{digits}f}"
    if len(values) > 1:
        words += f" +- {scale * statistics.stdev(values.tolist()):.{digits}f}"
    return words


def _trained_on(stored: Stored) -> str:
    return f"{stored['config']['data']}, {stored['config']['images']:,} to train on"
