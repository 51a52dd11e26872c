"""Draws the pictures of the concepts: `python docs/building/pictures.py`.

They are stored, since the site is built without matplotlib. The last one is computed:
the length of a block under three forms of decay, step by step.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Arc, FancyArrowPatch, Rectangle

FOLDER = Path(__file__).parents[1] / "concepts" / "pictures"
COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"]
GREY, INK = "#bbbbbb", "#222222"
STYLE = {
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "normopt",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for draw in (blocks, channel_axes, rules, length_and_angle, decay):
            figure = draw()
            path = FOLDER / f"{draw.__name__}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)


def blocks() -> plt.Figure:
    """A kernel of six inputs and four outputs: a block a column, a number a block."""
    figure, axes = _canvas(6.0, 3.4)
    _matrix(axes, 0, 0, 6, 4, lambda row, column: COLOURS[column])
    axes.text(2, 6.35, "a kernel (6, 4)", ha="center")
    for column in range(4):
        axes.add_patch(_arrow((column + 0.5, -0.1), (column + 0.5, -0.9)))
        box = Rectangle((column + 0.15, -1.7), 0.7, 0.7, color=COLOURS[column])
        axes.add_patch(box)
    words = [
        (5.0, 4.2, "a block: the weights of one output channel"),
        (5.0, 2.6, "4 blocks of 6 elements"),
        (
            5.0,
            -1.35,
            "one number for each block: its norm,\nits second moment, its radius",
        ),
    ]
    for x, y, text in words:
        axes.text(x, y, text, va="center")
    axes.set(xlim=(-0.3, 13), ylim=(-2, 7))
    return figure


def channel_axes() -> plt.Figure:
    """One kernel four times, and a stack: what the channel axes make one block."""
    figure, axes = _canvas(9.6, 2.5)
    whole = [
        ("None", "no blocks:\nby element", lambda r, c: GREY),
        ("()", "1 block:\nthe whole leaf", lambda r, c: COLOURS[0]),
        ("(-1,)", "4 blocks:\nthe outputs", lambda r, c: COLOURS[c]),
        ("(0,)", "5 blocks:\nthe inputs", lambda r, c: COLOURS[r]),
    ]
    for place, (name, meaning, colour) in enumerate(whole):
        left = 7.5 * place
        _matrix(axes, left, 0, 5, 4, colour)
        axes.text(left + 2, 5.5, name, ha="center", family="monospace", weight="bold")
        axes.text(left + 2, -0.5, meaning, ha="center", va="top", fontsize=9.5)
    for layer in (1, 0):
        at = 30 + 1.1 * layer, 0.9 * layer - 0.4
        shade = [COLOURS[:4], COLOURS[::-1][:4]][layer]
        _matrix(axes, *at, 5, 4, lambda r, c, shade=shade: shade[c])
    axes.text(32.5, 6.2, "(0, -1)", ha="center", family="monospace", weight="bold")
    meaning = "8 blocks: outputs\nof 2 stacked layers"
    axes.text(32.5, -0.8, meaning, ha="center", va="top", fontsize=9.5)
    axes.set(xlim=(-2, 36), ylim=(-2.6, 6.9))
    return figure


def rules() -> plt.Figure:
    """Paths on the left, patterns on the right, and a line to the one that wins."""
    figure, axes = _canvas(8.4, 2.9)
    patterns = [
        ('"bias$|norm"', "None"),
        ('"^conv_1/"', "(-1,)"),
        ('"kernel$"', "()"),
        ("no pattern", "None: the neutral value"),
    ]
    paths = [
        ("conv_1/kernel", 1),
        ("conv_1/bias", 0),
        ("conv_10/kernel", 2),
        ("norm/scale", 0),
        ("embed/table", 3),
    ]
    colours = [COLOURS[1], COLOURS[0], COLOURS[2], GREY]
    for row, (path, wins) in enumerate(paths):
        y = 4 - row
        axes.text(0, y, path, family="monospace", va="center")
        end = (6.4, 3.8 - 1.2 * wins)
        axes.add_patch(_arrow((3.5, y), end, colours[wins], shrink=2))
    for row, (pattern, value) in enumerate(patterns):
        y = 3.8 - 1.2 * row
        mono = "monospace" if row < 3 else None
        axes.text(6.6, y, pattern, family=mono, va="center", color=INK)
        axes.text(
            9.6, y, f"→  {value}", va="center", color=colours[row] if row < 3 else INK
        )
    axes.text(0, 4.9, "leaves, by path", style="italic")
    axes.text(6.6, 4.9, "rules, in order: the first that is found wins", style="italic")
    axes.set(xlim=(-0.2, 13), ylim=(-0.6, 5.3))
    return figure


def length_and_angle() -> plt.Figure:
    """A step along the tangent: it turns the weights, and makes them longer."""
    figure, axes = _canvas(6.4, 3.7)
    radius, step = 3.0, 1.5
    axes.add_patch(
        Arc((0, 0), 2 * radius, 2 * radius, theta1=-8, theta2=75, color=GREY)
    )
    end = (radius, step)
    angle = math.degrees(math.atan2(step, radius))
    on_circle = (
        radius * math.cos(math.radians(angle)),
        radius * math.sin(math.radians(angle)),
    )
    axes.add_patch(_arrow((0, 0), (radius, 0), INK, width=2))
    axes.add_patch(_arrow((radius, 0), end, COLOURS[1], width=2))
    axes.add_patch(_arrow((0, 0), end, COLOURS[0], width=2))
    axes.add_patch(_arrow(end, on_circle, COLOURS[2], width=2))
    axes.add_patch(Arc((0, 0), 2.2, 2.2, theta1=0, theta2=angle, color=INK))
    notes = [
        (1.5, -0.28, "w", INK, "center"),
        (3.1, 0.6, "u: the step, at a right angle to w", COLOURS[1], "left"),
        (3.15, 1.6, "w + u: longer by |u|² / (2 |w|)", COLOURS[0], "left"),
        (1.17, 0.16, "angle ≈ |u| / |w|", INK, "left"),
        (0.05, 2.55, "the sphere of radius |w|", "#777777", "left"),
        (1.0, 1.62, "a retraction\ngoes back", COLOURS[2], "left"),
    ]
    for x, y, text, colour, align in notes:
        axes.text(x, y, text, color=colour, ha=align, va="center")
    axes.set(xlim=(-0.2, 7), ylim=(-0.5, 3.1), aspect="equal")
    return figure


def decay() -> plt.Figure:
    """The length of a scale-invariant block when the learning rate falls to a tenth."""
    figure, axes = plt.subplots(figsize=(6.6, 3.4))
    steps, drop, largest, decay_at_start = 3000, 600, 0.01, 0.01
    rates = np.where(np.arange(steps) < drop, largest, largest / 10)
    forms = {
        "tied to nothing: λ": np.full(steps, decay_at_start),
        "times the learning rate: lr λ": decay_at_start * rates / largest,
        "corrected: lr² λ / lr_max": decay_at_start * (rates / largest) ** 2,
    }
    for (name, decays), colour in zip(forms.items(), COLOURS, strict=False):
        lengths = [1.0]
        for rate, share in zip(rates, decays, strict=True):
            # A step of 10 elements' length at a right angle, and a decay.
            kept = (1 - share) * lengths[-1]
            lengths.append(math.hypot(kept, 10 * rate))
        axes.plot(lengths, color=colour, label=name, lw=2)
    axes.axvline(drop, color=GREY, ls=":")
    axes.text(drop + 30, 1.28, "the learning rate falls to a tenth", fontsize=9.5)
    axes.set(
        xlabel="step", ylabel="length of the block", ylim=(0, 1.35), xlim=(0, steps)
    )
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.92))
    return figure


def _canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.axis("off")
    return figure, axes


def _matrix(axes, left, bottom, rows, columns, colour) -> None:
    """Draw the elements of a matrix, the first row on top."""
    for row in range(rows):
        for column in range(columns):
            corner = left + column, bottom + rows - 1 - row
            cell = Rectangle(corner, 1, 1, fc=colour(row, column), ec="white", lw=1)
            axes.add_patch(cell)


def _arrow(start, end, colour=INK, width=1.2, shrink=0) -> FancyArrowPatch:
    return FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=12,
        color=colour,
        lw=width,
        shrinkA=shrink,
        shrinkB=shrink,
    )


if __name__ == "__main__":
    main()
