"""Time Muon's step, and its compiling, beside optax.contrib.muon.

Both orthogonalize the same hundred matrices of ten shapes, with five steps of Keller
Jordan's coefficients, by turns. A step is `update` and `apply_updates` in one jitted
call with donated buffers, as in `step_time`.

    python -m experiments muon_time --json experiments/results/muon_time.json

takes about six minutes on two CPU cores. The same command again goes on with the rounds
that are left; `--fresh` times anew. The bars: a step of muon at most 1.05 times, and of
normuon at most 1.15 times optax's; compiling muon at most as long as optax's.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import two_times
from experiments.benchmarks.compile_time import trace_and_compile
from experiments.benchmarks.step_time import Stepper
from experiments.training import devices, provenance
from experiments.training.measuring import check_least, measure_rounds, one_line_errors
from experiments.training.runs import write_json

RATE = 1e-2
SIZES = [(64, 64), (64, 128), (128, 64), (128, 128), (64, 256)]
SIZES += [(256, 64), (128, 256), (256, 128), (192, 192), (256, 256)]
BASELINE = "optax.contrib.muon"


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, and the largest ratios to the baseline that are good enough."""

    make: Callable[[], optax.GradientTransformation]
    step: float | None = None
    compile: float | None = None


CASES = {
    # These are Keller Jordan's coefficients, and no others are Muon's there.
    BASELINE: Case(lambda: optax.contrib.muon(RATE)),
    "muon": Case(lambda: normopt.muon(RATE, coefficients="simple"), 1.05, 1.0),
    "normuon": Case(lambda: normopt.normuon(RATE, coefficients="simple"), 1.15),
}


@dataclasses.dataclass(frozen=True)
class MuonTimeConfig:
    """How many matrices, and how often."""

    each: int = 10
    """Matrices of each shape."""
    rounds: int = 5
    """How often each optimizer has its turn."""
    repeats: int = 5
    """Steps in a turn, after one that is not counted."""
    smoke: bool = False
    """One matrix of each shape, and one round of one step."""
    json: Path | None = None
    """A file for the records."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Measure again what is finished."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    config = tyro.cli(MuonTimeConfig, args=args, prog="python -m experiments muon_time")
    check_least(config, each=1, rounds=1, repeats=1)
    if config.smoke:
        config = dataclasses.replace(config, each=1, rounds=1, repeats=1)
    console = Console()
    console.print(devices.describe(), markup=False, highlight=False, soft_wrap=True)
    with one_line_errors():
        stored = {
            "device": devices.describe(),
            "provenance": provenance.describe(),
            "matrices": config.each * len(SIZES),
            "rounds": config.rounds,
            "rows": measure(config, console),
        }
        if config.json is not None:
            write_json(config.json, stored)
    console.print(table(stored))


def measure(config: MuonTimeConfig, console: Console) -> list[two_times.Row]:
    """Time the optimizers by turns, in rounds of which those that are finished stay.

    Args:
        config: how many matrices and rounds.
        console: gets a bar, and a line for each round.

    Returns:
        Two rows an optimizer, of its step and of its compiling: seconds, and the ratio
        to the baseline's, medians over the rounds, and the quartiles of the ratio.
    """
    params = parameters(config.each)

    @functools.cache
    def begin() -> tuple[Any, dict[str, Stepper]]:
        gradients = optax.tree.random_like(jax.random.key(1), params)
        return gradients, {name: Stepper(case, params) for name, case in CASES.items()}

    def turns(_: str) -> dict[str, tuple[float, float]]:
        gradients, steppers = begin()
        seconds = {}
        for name, case in CASES.items():
            step = steppers[name].turn(gradients, config.repeats)
            jax.clear_caches()
            seconds[name] = step, sum(trace_and_compile(case.make(), params))
        return seconds

    settings = {"each": config.each, "repeats": config.repeats}
    rounds = measure_rounds(config, "muon_time", settings, turns, console)
    seconds = {
        (name, of): [times[name][place] for times in rounds]
        for name in CASES
        for place, of in enumerate(two_times.OF)
    }
    return [
        two_times.row(
            name,
            of,
            seconds[name, of],
            None if name == BASELINE else seconds[BASELINE, of],
            baseline=BASELINE,
            bar=getattr(case, of),
        )
        for name, case in CASES.items()
        for of in two_times.OF
    ]


def parameters(each: int) -> dict[str, jax.Array]:
    """Return that many matrices of each shape."""
    keys = jax.random.split(jax.random.key(0), each * len(SIZES))
    return {
        f"layer_{index}": jax.random.normal(key, SIZES[index % len(SIZES)]) / 16
        for index, key in enumerate(keys)
    }


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer and what was timed."""
    title = f"a step of {stored['matrices']} matrices"
    return two_times.table(stored["rows"], title)
