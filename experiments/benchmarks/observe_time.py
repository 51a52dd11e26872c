"""Time a step of AdamW that is observed, and its compiling, beside one that is not.

On the shapes of a model, with the output channels of convolutions as blocks and all
other leaves whole; a step is `update` and `apply_updates` in one jitted call with
donated buffers, as in `step_time`. A turn has fifty steps, so that it has what one
observation in fifty costs.

    python -m experiments observe_time --json experiments/results/observe_time.json

takes some minutes on two CPU cores. The same command again goes on with the rounds
that are left; `--fresh` times anew. The bars: with `every=1` a step at most 1.25 times
AdamW's and 1.03 times with `every=50`, compiling at most 1.5 times.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import tyro
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import two_times
from experiments.benchmarks.compile_time import trace_and_compile
from experiments.benchmarks.step_time import CONVOLUTIONS, DECAY, Case, Stepper
from experiments.models import MODELS
from experiments.models.parameters import random_parameters
from experiments.training import devices, provenance
from experiments.training.measuring import check_least, measure_rounds, one_line_errors
from experiments.training.runs import write_json

STEPS = 50
COMPILE_BAR = 1.5
BASELINE = "adamw"


def _adamw() -> optax.GradientTransformation:
    return normopt.adamw(1e-3, weight_decay=DECAY)


def _observed(every: int, bar: float) -> Case:
    axes = {**CONVOLUTIONS, "": ()}
    return Case(lambda: normopt.observe(_adamw(), axes, every=every), 28, BASELINE, bar)


CASES = {
    BASELINE: Case(_adamw, 28),
    "every=1": _observed(1, 1.25),
    "every=50": _observed(STEPS, 1.03),
}


@dataclasses.dataclass(frozen=True)
class ObserveTimeConfig:
    """Whose step to time, and how often."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """Whose shapes."""
    rounds: int = 5
    """How often each has its turn."""
    smoke: bool = False
    """The smallest network, and one round."""
    json: Path | None = None
    """A file for the records."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Measure again what is finished."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    prog = "python -m experiments observe_time"
    config = tyro.cli(ObserveTimeConfig, args=args, prog=prog)
    check_least(config, rounds=1)
    if config.smoke:
        config = dataclasses.replace(config, model="resnet8", rounds=1)
    console = Console()
    console.print(devices.describe(), markup=False, highlight=False, soft_wrap=True)
    params = random_parameters(config.model)
    with one_line_errors():
        stored = {
            "device": devices.describe(),
            "provenance": provenance.describe(),
            "model": config.model,
            "parameters": optax.tree.size(params),
            "rounds": config.rounds,
            "rows": measure(config, params, console),
        }
        if config.json is not None:
            write_json(config.json, stored)
    console.print(table(stored))


def measure(
    config: ObserveTimeConfig, params: Any, console: Console
) -> list[two_times.Row]:
    """Time both by turns, in rounds of which those that are finished stay.

    Args:
        config: whose step, and how often.
        params: the parameters, whose values do not matter.
        console: gets a bar, and a line for each round.

    Returns:
        Two rows a case, of its step and of its compiling: seconds, and the ratio to the
        baseline's, medians over the rounds, and the quartiles of the ratio.
    """

    @functools.cache
    def begin() -> tuple[Any, dict[str, Stepper]]:
        gradients = optax.tree.random_like(jax.random.key(1), params)
        return gradients, {name: Stepper(case, params) for name, case in CASES.items()}

    def turns(_: str) -> dict[str, tuple[float, float]]:
        gradients, steppers = begin()
        seconds = {}
        for name, case in CASES.items():
            step = steppers[name].turn(gradients, STEPS)
            jax.clear_caches()
            seconds[name] = step, sum(trace_and_compile(case.make(), params))
        return seconds

    settings = {"model": config.model}
    rounds = measure_rounds(config, "observe_time", settings, turns, console)
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
            bar=case.bar if of == "step" else COMPILE_BAR,
        )
        for name, case in CASES.items()
        for of in two_times.OF
    ]


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each case and what was timed."""
    title = f"a step of {stored['model']}, {stored['parameters']:,} parameters"
    return two_times.table(stored["rows"], title)
