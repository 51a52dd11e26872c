"""Time Muon's step, and its compiling, beside optax.contrib.muon.

Both orthogonalize the same hundred matrices of ten shapes, with five steps of Keller
Jordan's coefficients, by turns. A step is `update` and `apply_updates` in one jitted
call with donated buffers, as in `step_time`.

    python -m experiments muon_time --json experiments/results/muon_time.json

takes about eight minutes on two CPU cores. The same command again goes on with the
rounds that are left; `--fresh` times anew. The bars: a step of muon at most 1.05 times,
and of normuon at most 1.15 times optax's; compiling muon at most as long as optax's.

"One by one" is Muon that steps each matrix by itself, where `muon` multiplies those of
one shape as one batch. With `--smaller 4`, matrices of a quarter of the size, its step
took 0.86 times optax's, that of `muon` 0.41 times, in a run that is not stored. Large
ones were multiplied as fast alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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


def one_by_one(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer that steps each leaf of a dictionary by itself."""

    def init_fn(params: Any) -> Any:
        return {name: inner.init({name: leaf}) for name, leaf in params.items()}

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        steps, states = {}, {}
        for name, leaf in updates.items():
            params_of = None if params is None else {name: params[name]}
            step, states[name] = inner.update({name: leaf}, state[name], params_of)
            steps |= step
        return steps, states

    return optax.GradientTransformation(init_fn, update_fn)


CASES = {
    # These are Keller Jordan's coefficients, and no others are Muon's there.
    BASELINE: Case(lambda: optax.contrib.muon(RATE)),
    "muon": Case(lambda: normopt.muon(RATE, coefficients="simple"), 1.05, 1.0),
    "muon, one by one": Case(
        lambda: one_by_one(normopt.muon(RATE, coefficients="simple"))
    ),
    "normuon": Case(lambda: normopt.normuon(RATE, coefficients="simple"), 1.15),
}


@dataclasses.dataclass(frozen=True)
class MuonTimeConfig(timing.TimingOptions):
    """How many matrices, and how often."""

    each: int = 10
    """Matrices of each shape."""
    smaller: Literal[1, 2, 4, 8, 16] = 1
    """Divides the sizes of all matrices."""
    repeats: int = 5
    """Steps in a turn, after one that is not counted."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    small = {"each": 1, "rounds": 1, "repeats": 1}
    config = timing.ask(MuonTimeConfig, "muon_time", args, least=small, small=small)

    def measured(console: Console) -> dict[str, Any]:
        settings = {
            "each": config.each,
            "smaller": config.smaller,
            "repeats": config.repeats,
        }
        params = parameters(config.each, config.smaller)
        rows = two_times.measure(
            config, "muon_time", settings, CASES, params, config.repeats, console
        )
        return {"matrices": len(params), "rows": rows}

    timing.time_and_show(config, measured, table)


def parameters(each: int, smaller: int = 1) -> dict[str, jax.Array]:
    """Return that many matrices of each shape, whose sizes are divided by a number."""
    sizes = [(rows // smaller, columns // smaller) for rows, columns in SIZES]
    keys = jax.random.split(jax.random.key(0), each * len(SIZES))
    return {
        f"layer_{index}": jax.random.normal(key, sizes[index % len(sizes)]) / 16
        for index, key in enumerate(keys)
    }


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer and what was timed."""
    title = f"a step of {stored['matrices']} matrices"
    return two_times.table(stored["rows"], title)
