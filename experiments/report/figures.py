"""Figures drawn from stored records, so that none needs a second run."""

import contextlib
import contextvars
import io
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullLocator, PercentFormatter

from experiments.training.runs import write_bytes

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "font.size": 10,
}
# The name under which a PNG holds, as text, what its figure is made of.
CONTENTS = "Contents"
# One colour a kind of method everywhere, of Okabe and Ito's, which the colour-blind can
# tell apart; within a kind, lines differ by their dashes.
BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#aa4499",
    "#777777",
)
LINES: dict[str, dict[str, Any]] = {
    name: {"color": colour, "linestyle": dashes}
    for name, colour, dashes in (
        ("SGD", BLUE, "--"),
        ("normalized SGD", BLUE, "-"),
        ("SGDW", BLUE, "--"),
        ("SGDWR", BLUE, "-"),
        ("Adam", ORANGE, "--"),
        ("normalized Adam", ORANGE, "-"),
        ("AdamW", ORANGE, "--"),
        ("AdamWR", ORANGE, "-"),
        ("AdamW, eps 1e-4", ORANGE, ":"),
        ("AdamW, float32 inside", ORANGE, "-."),
        ("RMSprop", GREY, "-."),
        ("NovoGrad, sum", GREEN, "--"),
        ("NovoGrad, sum, decay", GREEN, "-"),
        ("NovoGrad, average", PURPLE, "--"),
        ("NovoGrad, average, decay", PURPLE, "-"),
        ("adam", ORANGE, "--"),
        ("adams", GREEN, "-."),
        ("adamsrt", PURPLE, "-"),
    )
}
_TRAIN, _VALIDATION = BLUE, ORANGE
_DPI = 140
# Of the strip for a note, and of a figure for phones, in inches.
_STRIP, _PHONE = 0.25, 4.8
_NARROW = "-narrow"
_FOR_PHONES = contextvars.ContextVar("for_phones", default=False)

Records = list[dict[str, Any]]


def learning_curve(path: Path, records: Records, title: str) -> None:
    """Draw the loss, and what it is judged by, for training and validation.

    Args:
        path: the PNG to write.
        records: those of `metrics.jsonl`.
        title: the line above.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4), layout="constrained")
        loss, score = figure.subplots(1, 2)
        _draw(loss, records, "loss")
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
        loss.yaxis.set_major_formatter(LogFormatter())
        loss.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        if "train_accuracy" in records[0]:
            _draw(score, records, "accuracy")
            score.set(xlabel="epoch", ylabel="accuracy")
            score.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        else:
            _draw(score, records, "bits_per_byte")
            score.set(xlabel="epoch", ylabel="bits per byte")
        for axes in (loss, score):
            axes.legend(frameon=False)
        figure.suptitle(title)
        save(figure, path)


def bars(
    path: Path, names: list[str], groups: dict[str, list[float]], label: str
) -> None:
    """Draw horizontal bars, a name a row and a colour a group, with their numbers.

    Args:
        path: the PNG to write.
        names: of the rows, from the lowest up.
        groups: what each is called, and a number for each row.
        label: of the numbers.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.8 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        rows, height = np.arange(len(names)), 0.8 / len(groups)
        for rank, (name, numbers) in enumerate(groups.items()):
            # The first group is the upper one, as in the legend.
            at = rows + (len(groups) - 1 - 2 * rank) * height / 2
            colour = (BLUE, ORANGE)[rank]
            drawn = axes.barh(at, numbers, 0.9 * height, color=colour, label=name)
            axes.bar_label(drawn, fmt="{:.3g}", padding=2, size=8)
        axes.set_yticks(rows, names)
        axes.set(xlabel=label, xmargin=0.08, axisbelow=True)
        axes.grid(visible=False, axis="y")
        if len(groups) > 1:
            axes.legend(frameon=False)
        save(figure, path)


def log_scale(axes: Any) -> None:
    """Make the y axis logarithmic, with numbers such as 0.5 at the ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


@contextlib.contextmanager
def for_phones_too() -> Iterator[None]:
    """Have `save` write each figure a second time, its panels one below the other."""
    token = _FOR_PHONES.set(True)
    try:
        yield
    finally:
        _FOR_PHONES.reset(token)


def narrow(path: Path) -> Path:
    """Return where the figure for phones lies beside the wide one."""
    return path.with_stem(path.stem + _NARROW)


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Write a figure and its contents as a PNG, whole or not at all.

    Args:
        figure: what to draw; inside the `rc_context` that it was made in.
        path: the PNG to write.
        note: small and grey at the bottom right, in a strip that is added below all
            else; needs a constrained layout.
    """
    if note:
        _add_strip(figure, note)
    _write(figure, path)
    if _FOR_PHONES.get():
        _stack(figure)
        _write(figure, narrow(path))


def _write(figure: Figure, path: Path) -> None:
    image, about = io.BytesIO(), {CONTENTS: json.dumps(contents(figure))}
    figure.savefig(image, format="png", dpi=_DPI, metadata=about)
    write_bytes(path, image.getvalue())


def _stack(figure: Figure) -> None:
    """Lay a figure's panels out again, one below the other, with labels of their own.

    Notes go: the text beside a figure says the same.
    """
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    bars = [axes for axes in figure.axes if axes not in panels]
    for text in [*figure.texts]:
        if text is not figure._suptitle:
            text.remove()
    figure.set_layout_engine("constrained")
    figure.set_size_inches(_PHONE, 0.8 + 3.2 * len(panels))
    grid = figure.add_gridspec(len(panels), 1)
    labels = [[axes.get_xlabel(), axes.get_ylabel()] for axes in panels]
    for rank, axes in enumerate(panels):
        old = axes.get_subplotspec()
        # Shared labels stand below the last row, or beside the first column.
        for side, shared in enumerate((old.colspan, old.rowspan)):
            along = [
                labels[k][side]
                for k, other in enumerate(panels)
                if shared == (_span(other, side)) and labels[k][side]
            ]
            if not labels[rank][side] and along:
                axes.set(**{("xlabel", "ylabel")[side]: along[-1]})
    for rank, axes in enumerate(panels):
        axes.set_subplotspec(grid[rank])
        axes.tick_params(labelbottom=True, labelleft=True)
        lines = (textwrap.fill(line, 40) for line in axes.get_title().split("\n"))
        axes.set_title("\n".join(lines), fontsize=10)
    for bar in bars:
        bar.set_visible(bool(panels))
    if figure._suptitle is not None:
        figure.suptitle(textwrap.fill(figure.get_suptitle(), 46), fontsize=10)
    for legend in [*figure.legends]:
        texts = [text.get_text() for text in legend.get_texts()]
        title = textwrap.fill(legend.get_title().get_text(), 46)
        handles = legend.legend_handles
        legend.remove()
        columns = 1 if max(map(len, texts)) > 24 else 2
        where = {"loc": "outside lower center", "frameon": False}
        figure.legend(handles, texts, title=title or None, ncols=columns, **where)


def _span(axes: Any, side: int) -> range:
    place = axes.get_subplotspec()
    return place.colspan if side == 0 else place.rowspan


def contents(figure: Figure) -> dict[str, list[Any]]:
    """Return what a figure is made of, as JSON holds it.

    On another machine it is the same but for rounding; the pixels are not.

    Returns:
        `words`: titles, labels and notes; `numbers`: for each line, map and set of dots
        or bars its coordinates or values one after another, with four digits.
    """
    texts = [*figure.texts, *_in_legends(figure.legends)]
    drawn = []
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += _in_legends([legend] if legend else [])
        drawn += [line.get_xydata() for line in axes.lines]
        drawn += [image.get_array() for image in axes.images]
        for collection in axes.collections:
            drawn += _of_collection(collection)
    return {
        "words": [text.get_text() for text in texts],
        "numbers": [
            [float(f"{number:.4g}") for number in np.ravel(array)] for array in drawn
        ],
    }


def _in_legends(legends: list[Any]) -> Iterator[Any]:
    for legend in legends:
        yield from (legend.get_title(), *legend.get_texts())


def _of_collection(collection: Any) -> Iterator[np.ndarray]:
    if isinstance(collection, PathCollection):
        yield np.asarray(collection.get_offsets())
    elif isinstance(collection, LineCollection | PolyCollection):
        yield from (path.vertices for path in collection.get_paths())


def _add_strip(figure: Figure, note: str) -> None:
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _STRIP)
    strip = _STRIP / (height + _STRIP)
    above = (0, strip, 1, 1 - strip)
    figure.get_layout_engine().set(rect=above)
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    # The layout keeps room for a legend that is outside, unless that has an anchor, but
    # the legend lies at the very edge of the figure, unless it has one.
    for legend in figure.legends:
        legend.set_bbox_to_anchor(above, figure.transSubfigure)
    place = {"ha": "right", "va": "center", "size": 8, "color": "#777777"}
    figure.text(1 - 0.1 / width, strip / 2, note, **place)


def _draw(axes: Any, records: Records, quantity: str) -> None:
    for split, colour in (("train", _TRAIN), ("validation", _VALIDATION)):
        name = f"{split}_{quantity}"
        points = [(r["epoch"], r[name]) for r in records if r[name] is not None]
        # A run of a single record is a dot, not a line of no length.
        marker = "o" if len(points) == 1 else ""
        # A text is cut into stretches at random, but not augmented.
        training = (
            "training (augmented)" if "train_accuracy" in records[0] else "training"
        )
        label = training if split == "train" else split
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            linewidth=1.6,
            label=label,
        )
