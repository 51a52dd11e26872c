"""Show how the descent of a convex quadratic depends on the learning rate.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, as in the
convex example of the Keras implementation, whose figure asks how the initial rate
affects normalized Adam. The runs are those of `block_normalized_2017.convex`, read from
its records; where there are none, they are computed first.

    python -m experiments block_normalized_2017.learning_rate_sensitivity

takes fifteen seconds on two CPU cores. It writes `learning_rate_sensitivity.json` and
`learning_rate_sensitivity.png`; `--redraw` draws the stored records again.

No value is published, and the text makes no claim; what its figure shows is how far
normalized Adam gets by the rate it is given. Seen: the gap that it ends with falls to
2.6e-05 at the smallest rate that arrives, 0.0063, and grows with the rate from there,
to 0.0032 at 0.1; the steps to one percent of the gap at the start are about inversely
proportional to the rate, 640 at 0.0063 and 50 at 0.1. It gets there at four of the six
rates, as RMSprop does in about a quarter more steps, Adam at three and normalized SGD
at two. What it pays is the floor: at 0.04 and 0.1 Adam ends near 1e-10. Such ends hang
on rounding, and differ by some times between CPUs.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.papers.block_normalized_2017 import convex
from experiments.report import figures
from experiments.training.measuring import folder_of, measure_and_show

# A run has arrived when its gap is this part of the gap at the start.
ARRIVED = 0.01

_COLOURS = ("#d9601a", "#1f6fb2", "#5f8f3e", "#8a5ba8")
_MARKERS = ("o", "s", "^", "D")


@dataclasses.dataclass(frozen=True)
class SensitivityConfig:
    """Where the runs lie, and where to write."""

    out: Path = Path("runs/block_normalized_2017")
    """The folder of `convex.json` and for the records and the figure."""
    smoke: bool = False
    """Take the smoke runs of `convex`."""
    redraw: bool = False
    """Print and draw the stored records, without computing."""


def main(args: Sequence[str]) -> None:
    """Read or compute the runs, print the summary, and write records and figure."""
    prog = "python -m experiments block_normalized_2017.learning_rate_sensitivity"
    config = tyro.cli(SensitivityConfig, args=args, prog=prog)
    measure_and_show(
        config,
        "learning_rate_sensitivity",
        functools.partial(measure, config),
        draw,
        table,
    )


def measure(config: SensitivityConfig, console: Console) -> dict[str, Any]:
    """Sum up the runs of `convex` by learning rate.

    Args:
        config: where they lie.
        console: told whether they are computed first.

    Returns:
        Their settings and provenance, and for each method and rate the gap at the end,
        and the step from which on the gap has been `ARRIVED` of the first one, or None.
    """
    source = folder_of(config) / "convex.json"
    if not source.exists():
        console.print("no runs are stored, computing them", highlight=False)
        smoke = ["--smoke"] if config.smoke else []
        convex.main(["--out", str(config.out), *smoke])
    runs = json.loads(source.read_text())
    every = runs["config"]["record_every"]
    return {
        "config": runs["config"],
        "runs": {"provenance": runs["provenance"]},
        "published": "no value published",
        "learning_rates": runs["learning_rates"],
        "methods": {
            name: {
                "gap_at_end": [gaps[-1] for gaps in rates],
                "arrived_after": [arrival(gaps, every) for gaps in rates],
            }
            for name, rates in runs["gaps"].items()
        },
    }


def arrival(gaps: Sequence[float], every: int) -> int | None:
    """Return the step after which no gap is above `ARRIVED` of the first one.

    Args:
        gaps: the first one, then the largest of every `every` steps.
        every: steps to a record.
    """
    above = np.flatnonzero(np.asarray(gaps) > ARRIVED * gaps[0])
    last = int(above[-1])
    return None if last == len(gaps) - 1 else last * every


def draw(path: Path, stored: Mapping[str, Any]) -> None:
    """Draw the gap at the end, and the steps it takes to arrive, over the rate.

    Args:
        path: the PNG to write.
        stored: what `learning_rate_sensitivity.json` holds.
    """
    rates = stored["learning_rates"]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        end, speed = figure.subplots(1, 2, sharex=True)
        for (name, method), colour, marker in zip(
            stored["methods"].items(), _COLOURS, _MARKERS, strict=True
        ):
            line = {"color": colour, "marker": marker, "lw": 1.6, "label": name}
            end.plot(rates, method["gap_at_end"], **line)
            # None is not drawn, and a line ends before it.
            steps = [np.nan if n is None else n for n in method["arrived_after"]]
            speed.plot(rates, steps, **line)
        end.set(ylabel="L(x) \u2212 L(x*) at the end", yscale="log")
        speed.set(
            ylabel=f"steps to {ARRIVED:.0%} of the gap at the start", ylim=(0, None)
        )
        for axes in (end, speed):
            axes.set(xlabel="learning rate", xscale="log")
        figure.legend(
            *end.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(stored["methods"]),
            frameon=False,
        )
        settings = stored["config"]
        figure.suptitle(
            f"a convex quadratic in {settings['size']} unknowns, "
            f"{settings['steps']:,} steps; on the right no point where these are "
            "too few"
        )
        figures.save(figure, path, stored["published"])


def table(stored: Mapping[str, Any]) -> Table:
    """Return the steps that each method takes to arrive, a row a learning rate."""
    shown = Table(
        "rate",
        title=f"steps to {ARRIVED:.0%} of the gap at the start, of "
        f"{stored['config']['steps']}",
        caption=f"-: not within these; {stored['published']}",
        box=box.SIMPLE_HEAD,
    )
    for name in stored["methods"]:
        shown.add_column(name, justify="right")
    for rank, rate in enumerate(stored["learning_rates"]):
        steps = (m["arrived_after"][rank] for m in stored["methods"].values())
        shown.add_row(f"{rate:.2g}", *("-" if n is None else str(n) for n in steps))
    return shown
