"""A figure of what the blocks of each layer did in a run, and what they should do."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from experiments.report.figures import GREY, STYLE, Records, log_scale, save
from normopt import Equilibrium

# By the name of a number: the label of its axis, and which prediction is of it.
_PANELS = {
    "weight": ("length of a block", "length"),
    "relative_step": ("length of the step / length", None),
    "angle": ("angle of the step (radians)", "angle"),
}


def draw(
    path: Path,
    records: Records,
    leaves: Sequence[str],
    predicted: Mapping[str, Sequence[Equilibrium | None]],
    title: str,
) -> None:
    """Draw medians over the blocks of each layer, coloured in the order of the paths.

    Args:
        path: the PNG to write.
        records: of `metrics.jsonl`, with what was observed.
        leaves: their paths, at least one.
        predicted: of leaves for which it is known, an equilibrium for each record, and
            None where that has none.
        title: the line above.
    """
    steps = [record["step"] for record in records]
    # A run of a single record has dots and dashes, not lines of no length.
    dot, dash = (".", "_") if len(steps) == 1 else ("", "")
    norm = Normalize(0, max(len(leaves) - 1, 1))
    with matplotlib.rc_context(STYLE):
        colours = matplotlib.colormaps["viridis"]
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (quantity, (label, field)) in zip(
            panels, _PANELS.items(), strict=True
        ):
            seen = [[r[f"{leaf}/{quantity}"] for r in records] for leaf in leaves]
            for rank, (leaf, numbers) in enumerate(zip(leaves, seen, strict=True)):
                colour = colours(norm(rank))
                axes.plot(steps, numbers, dot + "-", color=colour, linewidth=1.2)
                if field is not None and leaf in predicted:
                    wanted = [getattr(o, field, math.nan) for o in predicted[leaf]]
                    axes.plot(steps, wanted, dash + ":", color=colour, linewidth=1)
            axes.set(xlabel="step", ylabel=label)
            if positive := [x for numbers in seen for x in numbers if x > 0]:
                # A prediction may leave the panel: of a rate that goes to 0, it does.
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter(NullFormatter())
                if max(positive) < 100 * min(positive):
                    log_scale(axes)
                axes.set_ylim(min(positive) / 2, 2 * max(positive))
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, aspect=30)
        bar.set_ticks([0, norm.vmax], labels=[leaves[0], leaves[-1]])
        handles = [Line2D([], [], color=GREY, label="median over blocks")]
        if predicted:
            told = "predicted for blocks that are scale-invariant"
            handles.append(Line2D([], [], color=GREY, linestyle=":", label=told))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False
        )
        figure.suptitle(title)
        save(figure, path)
