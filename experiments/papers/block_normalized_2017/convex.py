"""Descend a convex quadratic with normalized gradients, at six learning rates.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, as in the
convex example of the Keras implementation: L(x) = x'Qx / 2 + b'x with a random
positive-definite Q and a random b. Here Q = AA' / 200 with A (100, 200), and A, b and
the start are standard normal; x has one block, whose gradient is divided by its l2
norm. Normalized SGD and normalized Adam stand beside Adam and RMSprop, 1,000 steps at
each of six learning rates. Drawn is L(x) - L(x*), which is e'Qe / 2 for e = x - x*.

    python -m experiments block_normalized_2017.convex

takes ten seconds on two CPU cores. It writes `convex.json`, `convex.png` and what is
finished, from where the same command goes on; `--redraw` draws the stored records.

No value is published that could be met: the example's notebook draws another Q without
a seed (by scikit-learn's `make_spd_matrix`, -b'x in the place of b'x), and its SGD, at
a rate of 0.1, has Nesterov's momentum, which ours has not. What is compared, over 20
problems, is in `learning_rate_sensitivity`; drawn is the first of them. Seen there,
from 104 at the start: normalized Adam arrives at four rates, before any of the others
does, and ends at a gap that grows with the rate, from 2e-5 to 2e-3, until the way that
is left is as short as a step. Normalized SGD goes exactly the rate at each step: at the
four small rates 1,000 steps are less than the 22.2 to x*, and at the two large ones it
ends in a cycle of two steps, across x*. Adam, whose steps shrink with the gradient,
goes far below. Gaps so small hang on rounding, and differ by some times between CPUs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console

import normopt
from experiments.config import Options, Stored, run
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.tables import Table
from experiments.training.many_runs import stacked
from experiments.training.measuring import measure_parts

NAME = "block_normalized_2017.convex"
# Two and a half times one another, from 0.001 to 0.1.
LEARNING_RATES = tuple(round(10 ** (-3 + 0.4 * k), 6) for k in range(6))
# Recorded is the largest L(x) - L(x*) of so many steps: what one step of them has, in a
# run that has ended in a cycle of two, depends on which.
EVERY = 10
# A run has arrived when its gap is this part of the gap at the start.
ARRIVED = 0.01

METHODS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "normalized SGD": lambda rate: normopt.normalized(optax.sgd(rate)),
    "normalized Adam": lambda rate: normopt.normalized(optax.adam(rate)),
    "Adam": optax.adam,
    "RMSprop": optax.rmsprop,
}


@dataclasses.dataclass(frozen=True)
class ConvexOptions(Options):
    """Where to write, and how much to compute."""

    size: int = 100
    """The number of unknowns."""
    steps: int = 1000
    """Steps of each run, a multiple of ten."""
    seed: int = 0
    """For Q, b and the start of the first problem, which is the one drawn."""
    problems: int = 20
    """How many, of seeds that follow one another."""


class Problem(NamedTuple):
    """A quadratic, where it is least, and where runs start.

    Attributes:
        q: (n, n), symmetric and positive definite.
        b: (n,).
        least: (n,), where the gradient q x + b is zero.
        start: (n,).
    """

    q: jax.Array
    b: jax.Array
    least: jax.Array
    start: jax.Array


class Trace(NamedTuple):
    """What a run leaves.

    Attributes:
        gaps: (steps + 1,), L(x) - L(x*) from the start on.
        lengths: (steps,), how far each step goes.
    """

    gaps: jax.Array
    lengths: jax.Array


def main(args: Sequence[str]) -> None:
    """Compute all runs, print the summary, and write records and figure."""
    least = {"size": 1, "steps": EVERY, "seed": 0, "problems": 1}
    small = {"size": 10, "steps": 100, "problems": 2}
    run(args, NAME, ConvexOptions, measure, draw, table, least=least, small=small)


def measure(config: ConvexOptions, console: Console) -> dict[str, Any]:
    """Run every method at every learning rate, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each method.

    Returns:
        The settings, and for each method the gaps in the first problem, learning rates
        x records, and of all problems after which step each rate arrives, or None:
        problems x learning rates.
    """
    if config.steps % EVERY:
        raise ValueError(f"`steps` must be a multiple of {EVERY}, got {config.steps}")
    seeds = range(config.seed, config.seed + config.problems)
    problems = stacked([draw_problem(config.size, seed) for seed in seeds])

    def gaps_of(name: str) -> dict[str, Any]:
        trace = descend_at_all_rates(METHODS[name], problems, config.steps)
        gaps = [largest(one) for one in trace.gaps]
        return {
            "gaps": [[_short(gap) for gap in row] for row in gaps[0]],
            "arrived_after": [[arrival(row) for row in one] for one in gaps],
        }

    settings = {
        "size": config.size,
        "steps": config.steps,
        "seed": config.seed,
        "problems": config.problems,
        "record_every": EVERY,
    }
    runs = measure_parts(config, "convex", settings, METHODS, gaps_of, console)
    return {
        "config": settings,
        "learning_rates": list(LEARNING_RATES),
        **{
            key: {name: run[key] for name, run in runs.items()}
            for key in ("gaps", "arrived_after")
        },
    }


def draw_problem(size: int, seed: int) -> Problem:
    """Return a random quadratic in `size` unknowns; see the head of this file."""
    random = np.random.default_rng(seed)
    factor = random.normal(size=(size, 2 * size))
    q = factor @ factor.T / (2 * size)
    b, start = random.normal(size=(2, size))
    least = np.linalg.solve(q, -b)
    return Problem(*(jnp.asarray(part, jnp.float32) for part in (q, b, least, start)))


def descend_at_all_rates(
    make: Callable[[Any], optax.GradientTransformation], problems: Problem, steps: int
) -> Trace:
    """Run a method at each of `LEARNING_RATES`, all in one computation.

    Args:
        make: from a learning rate to the optimizer.
        problems: what to descend, along a first axis.
        steps: of each run.

    Returns:
        The traces, problems x learning rates.
    """

    def run(problem: Problem, rate: jax.Array) -> Trace:
        return descend(make(rate), problem, steps)

    everywhere = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    return jax.device_get(jax.jit(everywhere)(problems, jnp.asarray(LEARNING_RATES)))


def descend(
    optimizer: optax.GradientTransformation, problem: Problem, steps: int
) -> Trace:
    """Run one optimizer from the start of a problem; it may be under `jax.vmap`."""

    def gap(x: jax.Array) -> jax.Array:
        # L(x) - L(x*) without the difference of two large numbers.
        off = x - problem.least
        return off @ problem.q @ off / 2

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x, state = carry
        updates, state = optimizer.update(problem.q @ x + problem.b, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), (gap(x), jnp.linalg.norm(updates))

    first = (problem.start, optimizer.init(problem.start))
    _, (gaps, lengths) = jax.lax.scan(step, first, length=steps)
    return Trace(jnp.concatenate([gap(problem.start)[None], gaps]), lengths)


def largest(gaps: np.ndarray) -> np.ndarray:
    """Return the gap at the start, then the largest of every `EVERY` steps.

    Args:
        gaps: (runs, steps + 1).

    Returns:
        (runs, steps / `EVERY` + 1).
    """
    stretches = gaps[:, 1:].reshape(len(gaps), -1, EVERY)
    return np.concatenate([gaps[:, :1], stretches.max(axis=-1)], axis=1)


def arrival(gaps: Sequence[float], every: int = EVERY) -> int | None:
    """Return the step after which no gap is above `ARRIVED` of the first one.

    Args:
        gaps: the first one, then the largest of every `every` steps.
        every: steps to a record.
    """
    above = np.flatnonzero(np.asarray(gaps) > ARRIVED * gaps[0])
    last = int(above[-1])
    return None if last == len(gaps) - 1 else last * every


def draw(path: Path, stored: Stored) -> None:
    """Draw a panel for each method and a curve for each rate.

    Args:
        path: the PNG to write.
        stored: what `convex.json` holds.
    """
    rates, colours = stored["learning_rates"], matplotlib.colormaps["viridis_r"]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, (name, runs) in zip(panels.flat, stored["gaps"].items(), strict=True):
            for rank, (rate, gaps) in enumerate(zip(rates, runs, strict=True)):
                # The lightest yellow is too light for a line.
                colour = colours(0.08 + 0.92 * rank / (len(rates) - 1))
                steps = stored["config"]["record_every"] * np.arange(len(gaps))
                axes.plot(steps, gaps, color=colour, lw=1.6, label=f"{rate:.2g}")
            axes.set(title=name, yscale="log")
        for axes in panels[:, 0]:
            axes.set_ylabel("L(x) \u2212 L(x*)")
        for axes in panels[1]:
            axes.set_xlabel("step")
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            title="learning rate",
            loc="outside right center",
            frameon=False,
        )
        size = stored["config"]["size"]
        figure.suptitle(f"a convex quadratic in {size} unknowns")
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the gaps that each method ends with, a row a learning rate."""
    every, steps = stored["config"]["record_every"], stored["config"]["steps"]
    start = next(iter(stored["gaps"].values()))[0][0]
    return Table(
        f"the largest L(x) - L(x*) of the last {every} of {steps} steps",
        ("rate", *stored["gaps"]),
        (
            (
                f"{rate:.2g}",
                *(f"{runs[rank][-1]:.2g}" for runs in stored["gaps"].values()),
            )
            for rank, rate in enumerate(stored["learning_rates"])
        ),
        f"{start:.3g} at the start",
    )


def _short(gap: Any) -> float:
    """Round to the digits that a figure shows, which keeps the file small."""
    return float(f"{float(gap):.4g}")


def extent(stored: Stored) -> str:
    """Say how much was run."""
    config = stored["config"]
    return (
        f"n = {config['problems']} problems of {config['size']} unknowns, "
        f"{config['steps']:,} steps at each of {len(stored['learning_rates'])} rates"
    )


EXHIBIT = Exhibit(
    extent=extent,
    tables=(table,),
    pictures=(
        Picture(
            "convex",
            "L(x) - L(x*) over 1,000 steps at six learning rates, a panel for "
            "each of normalized SGD, normalized Adam, Adam and RMSprop.",
            draw,
        ),
    ),
)
