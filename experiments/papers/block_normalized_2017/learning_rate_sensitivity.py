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
normalized Adam gets by the rate it is given. That is compared with Adam over 20
problems, each method at its best of six rates, which the other problems choose, and by
the decades of rates that take it to one percent of the gap at the start. Seen: it is
there in two thirds of Adam's steps, 57 for 83, and over 1.2 decades of rates for 0.8.
What it pays is the floor: at 0.04 and 0.1 Adam ends near 1e-10, and it near 1e-3.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.block_normalized_2017 import convex
from experiments.papers.block_normalized_2017.convex import ARRIVED
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, by_others
from experiments.report.tables import Table
from experiments.training.measuring import folder_of

NAME = "block_normalized_2017.learning_rate_sensitivity"

_MARKERS = ("o", "s", "^", "D")


def main(args: Sequence[str]) -> None:
    """Read or compute the runs, print the summary, and write records and figure."""
    run(args, NAME, Options, measure, draw, table, least={})


def measure(config: Options, console: Console) -> dict[str, Any]:
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
    return {
        "config": runs["config"],
        "runs": {"provenance": runs["provenance"]},
        "learning_rates": runs["learning_rates"],
        "methods": {
            name: {
                "gap_at_end": [gaps[-1] for gaps in rates],
                "arrived_after": runs["arrived_after"][name],
            }
            for name, rates in runs["gaps"].items()
        },
    }


def _of_first(method: Stored) -> list[float]:
    """Return the steps to arrive in the problem that is drawn, NaN for never."""
    return [np.nan if n is None else n for n in method["arrived_after"][0]]


def draw(path: Path, stored: Stored) -> None:
    """Draw the gap at the end, and the steps it takes to arrive, over the rate.

    Args:
        path: the PNG to write.
        stored: what `learning_rate_sensitivity.json` holds.
    """
    rates = stored["learning_rates"]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        end, speed = figure.subplots(1, 2, sharex=True)
        for (name, method), marker in zip(
            stored["methods"].items(), _MARKERS, strict=True
        ):
            line = figures.LINES[name] | {"marker": marker, "lw": 1.6, "label": name}
            end.plot(rates, method["gap_at_end"], **line)
            # NaN is not drawn, and a line ends before it.
            speed.plot(rates, _of_first(method), **line)
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
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the steps that each method takes to arrive, a row a learning rate."""
    methods = stored["methods"].values()
    return Table(
        f"steps to {ARRIVED:.0%} of the gap at the start, of "
        f"{stored['config']['steps']}",
        ("rate", *stored["methods"]),
        (
            (
                f"{rate:.2g}",
                *(str(m["arrived_after"][0][rank] or "-") for m in methods),
            )
            for rank, rate in enumerate(stored["learning_rates"])
        ),
        "the problem that is drawn; -: not within these",
    )


def _steps(stored: Stored, method: str) -> np.ndarray:
    """Return logarithms of the steps to arrive, at the rate best for other problems."""
    arrived = stored["methods"][method]["arrived_after"]
    never = 2 * stored["config"]["steps"]  # more than any
    return by_others(np.log10([[n or never for n in rates] for rates in arrived]))


def _decades(stored: Stored, method: str) -> np.ndarray:
    """Return over how many decades of rates a method arrives, a number a problem."""
    rates = np.log10(stored["learning_rates"])
    arrived = stored["methods"][method]["arrived_after"]
    inside = [[r for r, n in zip(rates, one, strict=True) if n] for one in arrived]
    return np.array([max(some) - min(some) if some else 0.0 for some in inside])


_PROBLEMS = {"unit": "decades", "scale": 1.0, "over": "paired problems"}
SPEED = Metric(
    f"log10 of the steps to {ARRIVED:.0%} of the gap",
    _steps,
    form="{:.2f}",
    **_PROBLEMS,
)
RANGE = Metric(
    f"decades of rates that reach {ARRIVED:.0%} of the gap",
    _decades,
    "more",
    less_is_better=False,
    form="{:.2f}",
    skewed=True,
    **_PROBLEMS,
)

EXHIBIT = Exhibit(
    claims=(
        Claim(
            "Normalized Adam descends a convex quadratic faster than Adam.",
            (Check(SPEED, "normalized Adam", "Adam"),),
        ),
        Claim(
            "Normalized Adam does so at learning rates further apart than Adam.",
            (Check(RANGE, "normalized Adam", "Adam"),),
        ),
    ),
    extent=convex.extent,
    tables=(table,),
    pictures=(
        Picture(
            "learning_rate_sensitivity",
            "The gap at the end, and the steps to one percent of the first "
            "gap, over the learning rate, a line for each of four methods.",
            draw,
        ),
    ),
)
