"""What a report shows of a network that four optimizers trained, over some seeds."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.config import Stored
from experiments.papers.block_normalized_2017.methods import METHODS
from experiments.report import figures
from experiments.report.claims import NO_VALUE, Exhibit, Picture, is_whole
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table

# Of the records, what each figure shows.
SPLITS = {"train": "training", "test": "test"}

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
        note = ""
        if split == "test":
            published = Published(**stored["published"])
            _mark_published(accuracy, published.test_accuracy)
            note = f"at the right edge: {published.source}"
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
    """Draw the mean of the seeds, and from the lowest of several to the highest."""
    line, epochs = figures.LINES[method], range(1, values.shape[1] + 1)
    if len(values) > 1:
        ends = values.min(axis=0), values.max(axis=0)
        band = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(epochs, *ends, **band)
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
    # A mark far from ours, as beside a part of the images, must not stretch the axis:
    # it stands at the top, and its name has the number.
    low, high = axes.get_ylim()
    place = high
    for method, value in accuracies.items():
        mark = {"marker": "_" if value <= high else "^", "ms": 8, "mew": 1.2}
        colour = figures.LINES[method]["color"]
        inside = min(value, high)
        axes.plot([1], [inside], transform=at_edge, clip_on=False, color=colour, **mark)
    axes.set_ylim(low, high)
    for method, value in sorted(accuracies.items(), key=lambda one: -one[1]):
        place = min(value, place - _LINE * (high - low))
        colour = figures.LINES[method]["color"]
        axes.annotate(
            f"{method} {value:.2%}",
            (1, min(value, high)),
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
    runs = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
    return f"{_trained_on(stored)}; {shown[split]}; {runs}"


def table(stored: Stored) -> Table:
    """Return a row for each optimizer: the mean over the seeds after the last epoch."""
    seeds = len(stored["seeds"])
    deviation = "mean ± standard deviation, " if seeds > 1 else ""
    images = stored["config"]["test_images"]
    published = Published(**stored["published"])

    def row_of(method: str) -> tuple[str, ...]:
        cells = (
            _in_words(_by_seed(stored, method, split, quantity)[:, -1], scale, digits)
            for split in SPLITS
            for quantity, scale, digits in (("loss", 1, 3), ("accuracy", 100, 2))
        )
        return (method, *cells)

    return Table(
        f"{_trained_on(stored)}; after the last epoch, {deviation}n = {seeds}",
        ("optimizer", "train loss", "train acc.", "test loss", "test acc."),
        map(row_of, _methods(stored)),
        f"accuracies in percent, the test's over {images:,} images\n"
        f"{published.in_words()}",
    )


def _in_words(values: np.ndarray, scale: float, digits: int) -> str:
    """Return the mean, and the standard deviation of several."""
    words = f"{scale * values.mean():.{digits}f}"
    if len(values) > 1:
        words += f" ± {scale * statistics.stdev(values.tolist()):.{digits}f}"
    return words


def _trained_on(stored: Stored) -> str:
    return f"{stored['config']['data']}, {stored['config']['images']:,} to train on"


# What the example trains on: the official training images, and epochs at each rate.
WHOLE = {"mnist": (60_000, 10), "cifar10": (50_000, 50)}
# Fewer runs do not tell how far runs differ.
FEWEST_SEEDS = 3


def _ends(stored: Stored, method: str, quantity: str) -> np.ndarray:
    return _by_seed(stored, method, *quantity.split("_"))[:, -1]


def _losses(stored: Stored, method: str) -> np.ndarray:
    return np.log10(_ends(stored, method, "train_loss"))


LOSS = Metric(
    "log10 of the training loss", _losses, unit="decades", scale=1.0, form="{:.2f}"
)
ACCURACY = Metric(
    "test accuracy",
    functools.partial(_ends, quantity="test_accuracy"),
    "higher",
    less_is_better=False,
)


def claims_of(network: str, published: Published) -> tuple[Claim, ...]:
    """Return what the abstract says, of one network.

    Args:
        network: what it is.
        published: what the notebook printed.
    """
    return tuple(
        Claim(text, (Check(metric, f"normalized {kind}", kind),), lacking, words)
        for kind in ("SGD", "Adam")
        for text, metric, words in (
            (
                f"Normalizing accelerates the training of {network} by {kind}.",
                LOSS,
                NO_VALUE,
            ),
            (
                f"Normalized {kind} generalizes better on {network}.",
                ACCURACY,
                published.in_words(),
            ),
        )
    )


def exhibit(
    name: str,
    network: str,
    claims: tuple[Claim, ...] = (),
    *,
    marks: str = "",
    note: str = "",
) -> Exhibit:
    """Return what a report shows of a network.

    Args:
        name: of its records.
        network: what it is.
        claims: that its records decide.
        marks: what its figures show besides.
        note: what a reader must know.
    """
    at_edge = {"train": "", "test": "; at the right edge what the notebook printed"}
    return Exhibit(
        claims=claims,
        extent=_extent,
        tables=(table,),
        pictures=tuple(
            Picture(
                f"{name}_{split}",
                f"Loss, on a log scale, and accuracy on {images} images over the "
                f"epochs for {network}, by SGD and Adam, each plain and "
                f"normalized; bands from the lowest to the highest of several seeds"
                f"{marks}{at_edge[split]}.",
                functools.partial(draw, split=split),
            )
            for split, images in SPLITS.items()
        ),
        note=note,
        stored_by=_commands,
    )


def lacking(stored: Stored) -> str:
    """Say what keeps a claim from being judged: it takes the example's whole run."""
    config, seeds = stored["config"], len(stored["seeds"])
    images, epochs = WHOLE[config["data"]]
    ran = config["epochs_per_rate"]
    if ran != epochs or not is_whole(config["images"], images):
        return (
            f"{ran} epochs of {config['images']:,} images, where the example has "
            f"{epochs} of {images:,}"
        )
    return (
        ""
        if seeds >= FEWEST_SEEDS
        else f"n = {seeds}, judged from {FEWEST_SEEDS} seeds on"
    )


def _extent(stored: Stored) -> str:
    config, seeds = stored["config"], stored["seeds"]
    epochs = config["epochs_per_rate"] * len(config["learning_rates"]["SGD"])
    return (
        f"n = {len(seeds)} ({'seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(seeds)}), {epochs} epochs of {config['images']:,} images of "
        f"{config['data']} in batches of {config['batch_size']}; test accuracies over "
        f"{config['test_images']:,} images"
    )


def _commands(stored: Stored) -> tuple[str, ...]:
    config, seeds = stored["config"], len(stored["seeds"])
    images, epochs = WHOLE[config["data"]]
    options = []
    if not is_whole(config["images"], images):
        options.append(f"--images {config['images']}")
    if config["epochs_per_rate"] != epochs:
        options.append(f"--epochs {config['epochs_per_rate']}")
    if seeds != FEWEST_SEEDS:
        options.append(f"--seeds {seeds}")
    return (" ".join(options),)
