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
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import timing, two_times
from experiments.benchmarks.two_times import Case

RATE = 1e-2
SIZES = [(64, 64), (64, 128), (128, 64), (128, 128), (64, 256)]
SIZES += [(256, 64), (128, 256), (256, 128), (192, 192), (256, 256)]
BASELINE = "optax.contrib.muon"

CASES = {
    # These are Keller Jordan's coefficients, and no others are Muon's there.
    BASELINE: Case(lambda: optax.contrib.muon(RATE)),
    "muon": Case(lambda: normopt.muon(RATE, coefficients="simple"), 1.05, 1.0),
    "normuon": Case(lambda: normopt.normuon(RATE, coefficients="simple"), 1.15),
}


@dataclasses.dataclass(frozen=True)
class MuonTimeConfig(timing.TimingOptions):
    """How many matrices, and how often."""

    each: int = 10
    """Matrices of each shape."""
    repeats: int = 5
    """Steps in a turn, after one that is not counted."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    small = {"each": 1, "rounds": 1, "repeats": 1}
    config = timing.ask(MuonTimeConfig, "muon_time", args, least=small, small=small)

    def measured(console: Console) -> dict[str, Any]:
        settings = {"each": config.each, "repeats": config.repeats}
        params = parameters(config.each)
        rows = two_times.measure(
            config, "muon_time", settings, CASES, params, config.repeats, console
        )
        return {"matrices": len(params), "rows": rows}

    timing.time_and_show(config, measured, table)


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
