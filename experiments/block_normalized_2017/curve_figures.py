"""The figures and the table of curves that four optimizers left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.table import Table

from experiments import figures

# Of the records, what each figure shows.
SPLITS = {"train": "training", "test": "test"}

_COLOURS = {"SGD": "#1f6fb2", "Adam": "#d9601a"}


def draw(path: Path, stored: Mapping[str, Any], split: str) -> None:
    """Draw loss and accuracy of one split over the epochs, a line an optimizer.

    Args:
        path: the PNG to write.
        stored: the records.
        split: of `SPLITS`.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for method, curves in stored["curves"].items():
            kind = method.removeprefix("normalized ")
            line = {"color": _COLOURS[kind], "lw": 1.6, "label": method}
            if kind == method:
                line["linestyle"] = "--"
            for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
                values = curves[f"{split}_{quantity}"]
                axes.plot(range(1, len(values) + 1), values, **line)
        _mark_rates((loss, accuracy), stored["config"])
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        figures.log_scale(loss)
        accuracy.set(xlabel="epoch", ylabel="accuracy")
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        figure.legend(
            *loss.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(stored["curves"]) + 1,
            frameon=False,
        )
        under = ", under dropout" if split == "train" else ""
        figure.suptitle(f"{_trained_on(stored)}; {SPLITS[split]} images{under}")
        figures.save(figure, path, stored["published"])


def _mark_rates(panels: Sequence[Any], config: Mapping[str, Any]) -> None:
    """Draw a line between the epochs where the learning rate changes."""
    changes = max(len(rates) for rates in config["learning_rates"].values()) - 1
    line = {"color": "#888888", "lw": 1, "linestyle": ":", "zorder": 1}
    for rank in range(1, changes + 1):
        # One of them is in the legend, which is that of the first panel.
        named = {"label": "a new learning rate"} if rank == 1 else {}
        for axes in panels:
            axes.axvline(rank * config["epochs_per_rate"] + 0.5, **line, **named)


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer, after the last epoch and at its best."""
    shown = Table(
        title=f"{_trained_on(stored)}; after the last epoch",
        caption=stored["published"],
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    shown.add_column("optimizer", no_wrap=True)
    for name in ("train loss", "train acc.", "test loss", "test acc.", "best test"):
        shown.add_column(name, justify="right")
    for method, curves in stored["curves"].items():
        shown.add_row(
            method,
            f"{curves['train_loss'][-1]:.4f}",
            f"{curves['train_accuracy'][-1]:.2%}",
            f"{curves['test_loss'][-1]:.4f}",
            f"{curves['test_accuracy'][-1]:.2%}",
            f"{max(curves['test_accuracy']):.2%}",
        )
    return shown


def _trained_on(stored: Mapping[str, Any]) -> str:
    return f"{stored['config']['data']}, {stored['config']['images']:,} to train on"
