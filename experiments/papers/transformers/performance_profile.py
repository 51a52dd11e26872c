"""Race optimizers over 30 problems of CUTEst, on which nothing is scale-invariant.

Performance profiles (Dolan and Moré, 2002, Mathematical Programming 91): the share of
problems that an optimizer solves within a factor of the steps of the fastest. The
problems are the first 30 by name of the unconstrained ones of `sif2jax` with at most 50
variables, without a choice. The library was not made for them: they are smooth and
without noise, their variables are one vector, and the lengths that some optimizers
keep or ignore matter. Muon is left out, for there is no matrix.

    python -m experiments transformers.performance_profile

takes about five minutes on two CPU cores. It needs `pip install '.[sif]'`. It writes
`performance_profile.json` and `performance_profile.png`, and what is finished, from
where the same command goes on; `--redraw` draws the records again.

Fixed before any run: 21 rates from 1e-9 to 10 for each optimizer, all other numbers its
defaults, constant rates, 5,000 steps, double precision. A problem counts as solved
within 1e-5 of the way from the value at the start to the least that any run or BFGS
finds (Moré and Wild, 2009); 0.1 and 0.001 are stored as well. Once each problem has its
own best rate; once an optimizer has one, which is chosen, for each problem, by the
others. Optimizers that tie are all the fastest. After the runs the stored file was
converted, each list of steps into a line, without a change of numbers.

Seen, of sif2jax 0.0.8: hyperballs solve 37 % and rotational Adam 27 %, Adam 87 %. What
lies at another length than the start they cannot reach. NovoGrad solves 67 %, 20 points
less than Adam (95 %: 5 to 35), AdamSRT as many (-1 to 41), AdamS 73 %. AdamP does what
Adam does. Normalized Adam solves as many as Adam and is the fastest most often, on 12
of 30, on 8 of them alone; before the runs that was not claimed. Ties are many: at their
best rates all 12 optimizers solve CLIFF in one step, and 8, 5 and 4 of them COOLHANSLS,
DENSCHNA and DENSCHNF. At one rate for all, 60 % are solved by Adam and 70 % by
normalized Adam, 10 points more (-5 to 25). BFGS solves 26 of 30, half of them within 17
evaluations, that at the start among them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.transformers import racing
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import CONFIDENCE, Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "transformers.performance_profile"
EXPONENTS = np.linspace(-9, 1, 21)  # of 10, of the rates
SOLVED_AT = racing.TOLERANCES.index(1e-5)
SMOKE = 2  # problems
WAYS = ("the best rate of each problem", "one rate for all problems")


@dataclasses.dataclass(frozen=True)
class PerformanceProfileOptions(Options):
    """Where to write, and how much to compute."""

    steps: int = 5000
    """Of each run."""


def main(args: Sequence[str]) -> None:
    """Race over all problems, print the summary, and write records and figure."""
    least, small = {"steps": 10}, {"steps": 10}
    options = PerformanceProfileOptions
    run(args, NAME, options, measure, draw, table, least=least, small=small)


def measure(config: PerformanceProfileOptions, console: Console) -> dict[str, Any]:
    """Race over all problems, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each problem.

    Returns:
        The settings, and of each problem what `race` finds.

    Raises:
        ValueError: `sif2jax` is not installed.
    """
    exponents = EXPONENTS[::4] if config.smoke else EXPONENTS
    problems = {one.name: one for one in racing.load()}
    if config.smoke:
        problems = dict(list(problems.items())[:SMOKE])

    def race(name: str) -> dict[str, Any]:
        makes, rates = racing.OPTIMIZERS, 10.0**exponents
        return racing.race(problems[name], makes, rates, config.steps)

    told = {
        "steps": config.steps,
        "exponents": exponents.tolist(),
        "tolerances": list(racing.TOLERANCES),
    }
    found = measure_parts(config, "performance_profile", told, problems, race, console)
    return {"device": devices.describe(), **told, "problems": found}


def steps_of(stored: Stored, name: str, tolerance: int = SOLVED_AT) -> np.ndarray:
    """Return the steps of an optimizer, problems x rates, infinity where unsolved.

    Args:
        stored: what `performance_profile.json` holds.
        name: of the optimizer.
        tolerance: which of them.
    """
    lines = [one["steps"][name][tolerance] for one in stored["problems"].values()]
    return np.array([racing.read_line(line) for line in lines])


def times(stored: Stored, tolerance: int = SOLVED_AT) -> dict[str, np.ndarray]:
    """Return the steps by the way in which rates are chosen, optimizers x problems.

    Args:
        stored: what `performance_profile.json` holds.
        tolerance: which of them.
    """
    every = [steps_of(stored, name, tolerance) for name in names(stored)]
    budget = stored["steps"]
    return {
        WAYS[0]: np.array([racing.best_of_rates(one) for one in every]),
        WAYS[1]: np.array([racing.at_one_rate(one, budget)[0] for one in every]),
    }


def draw(path: Path, stored: Stored) -> None:
    """Draw the profiles, a panel for each way to choose rates.

    Args:
        path: the PNG to write.
        stored: what `performance_profile.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(11, 5), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (way, found) in zip(panels, times(stored).items(), strict=True):
            solved = np.where(np.isfinite(found), found, 0)
            most = (solved / found.min(axis=0)).max()
            factors = np.geomspace(1, max(10.0, most), 400)
            shares = racing.profile(found, factors)
            for name, share in zip(names(stored), shares, strict=True):
                axes.plot(factors, share, **LINES[name], label=name, lw=1.6)
            axes.set(title=way, xscale="log", xlim=(1, factors[-1]), ylim=(0, 1))
            axes.set(xlabel="steps over those of the fastest, at most")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[0].set(ylabel="problems solved")
        legend = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        figure.legend(*panels[0].get_legend_handles_labels(), **legend)
        figure.suptitle(
            f"{len(stored['problems'])} problems of CUTEst, solved to "
            f"{stored['tolerances'][SOLVED_AT]:g} of the way, {stored['steps']:,} steps"
        )
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return how many problems each optimizer solves, and of how many it is fastest."""
    by_tolerance = [times(stored, k) for k in range(len(stored["tolerances"]))]
    at = by_tolerance[SOLVED_AT]

    def row_of(row: int, name: str) -> tuple[str, ...]:
        cells = [name]
        for way in WAYS:
            found = at[way]
            solved = np.isfinite(found[row])
            first = found == found.min(axis=0)
            fastest = solved & first[row]
            alone = fastest & (first.sum(axis=0) == 1)
            span = scipy.stats.binomtest(int(solved.sum()), len(solved))
            low, high = span.proportion_ci(CONFIDENCE)
            words = f"{solved.mean():.0%} ({low:.0%}-{high:.0%})"
            cells += [words, f"{fastest.sum()} ({alone.sum()})"]
        easier = [np.isfinite(one[WAYS[0]][row]).mean() for one in by_tolerance]
        return (*cells, f"{easier[1]:.0%}")

    return Table(
        f"problems of {len(stored['problems'])} that are solved",
        ("optimizer", "best rate", "fastest", "one rate", "fastest", "to 0.001"),
        (row_of(*one) for one in enumerate(names(stored))),
        f"to {stored['tolerances'][SOLVED_AT]:g} of the way to the least value, with "
        "95 % intervals\n(Clopper, Pearson), and on how many it is the fastest, in "
        "parentheses\nwithout ties; at the best of "
        f"{len(stored['exponents'])} rates of each problem, and at one\nrate, "
        "which the others choose; the last column is at the best of each.\n"
        f"BFGS, with a line search, solves {_of_bfgs(stored)}",
    )


def names(stored: Stored) -> tuple[str, ...]:
    """Return those of the optimizers."""
    return tuple(next(iter(stored["problems"].values()))["steps"])


def _of_bfgs(stored: Stored) -> str:
    """Say how many BFGS solves, and within how many evaluations half of these."""
    # Of steps and of evaluations those are stored that follow the one at the start.
    after_start = [one["bfgs"][SOLVED_AT] for one in stored["problems"].values()]
    known = [1 + count for count in after_start if count is not None]
    if not known:
        return "none of them"
    middle = f"half of them within {np.median(known):.0f} evaluations"
    return f"{len(known)} of {len(after_start)},\n{middle}"


_KINDS = (
    ("sgd", figures.GREY, "-"),
    ("momentum", figures.GREY, "--"),
    ("normalized momentum", figures.GREY, ":"),
    ("adam", figures.ORANGE, "-"),
    ("adamw", figures.ORANGE, ":"),
    ("normalized adam", figures.ORANGE, "--"),
    ("novograd", figures.BLUE, "-"),
    ("adamp", figures.BLUE, "--"),
    ("adams", figures.PURPLE, "--"),
    ("adamsrt", figures.PURPLE, "-"),
    ("hyperball", figures.GREEN, "-"),
    ("rotational", figures.GREEN, "--"),
)
LINES = {name: {"color": c, "linestyle": dashes} for name, c, dashes in _KINDS}


def _solved(stored: Stored, name: str, way: str) -> np.ndarray:
    return np.isfinite(times(stored)[way][names(stored).index(name)]).astype(float)


SOLVED = Metric(
    "problems solved at their best rates",
    functools.partial(_solved, way=WAYS[0]),
    "more",
    less_is_better=False,
    form="{:.0%}",
    over="problems",
)
EXHIBIT = Exhibit(
    claims=(
        Claim(
            "Adam solves more problems of CUTEst than its steps on hyperballs do.",
            (Check(SOLVED, "adam", "hyperball"),),
        ),
    ),
    extent=lambda stored: (
        f"n = {len(stored['problems'])} problems, {len(stored['exponents'])} rates of "
        f"{len(names(stored))} optimizers, {stored['steps']:,} steps, in float64"
    ),
    note="These problems are not what the library is for. They show what its "
    "optimizers cost where nothing is scale-invariant and nothing is noisy, and what "
    "BFGS, which has a line search, does to them all.",
    tables=(table,),
    pictures=(
        Picture(
            "performance_profile",
            "The share of problems that each optimizer solves, over the factor within "
            "which it is of the fastest; on the left at the best rate of each problem, "
            "on the right at one rate for all.",
            draw,
        ),
    ),
)
