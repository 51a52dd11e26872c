"""Figures drawn from stored records, so that none needs a second run."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.runs import write_bytes

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "font.size": 10,
}
_TRAIN, _VALIDATION = "#1f6fb2", "#d9601a"

Records = list[dict[str, Any]]


def learning_curve(path: Path, records: Records, title: str) -> None:
    """Draw loss and accuracy over the epochs, for training and validation.

    Args:
        path: the PNG to write.
        records: those of `metrics.jsonl`.
        title: the line above.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        _draw(loss, records, "loss")
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
        _draw(accuracy, records, "accuracy")
        accuracy.set(xlabel="epoch", ylabel="accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        for axes in (loss, accuracy):
            axes.legend(frameon=False)
        figure.suptitle(title)
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all.

    Args:
        figure: what to draw; inside the `rc_context` that it was made in.
        path: the PNG to write.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_bytes(path, image.getvalue())


def _draw(axes: Any, records: Records, quantity: str) -> None:
    for split, colour in (("train", _TRAIN), ("validation", _VALIDATION)):
        name = f"{split}_{quantity}"
        points = [(r["epoch"], r[name]) for r in records if r[name] is not None]
        # A run of a single record is a dot, not a line of no length.
        marker = "o" if len(points) == 1 else ""
        label = "training (augmented)" if split == "train" else split
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            linewidth=1.6,
            label=label,
        )
