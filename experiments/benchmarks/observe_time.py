"""Time a step of AdamW that is observed, and its compiling, beside one that is not.

On the shapes of a model, with the output channels of convolutions as blocks and all
other leaves whole; a step is `update` and `apply_updates` in one jitted call with
donated buffers, as in `step_time`. A turn has fifty steps, so that it has what one
observation in fifty costs.

    python -m experiments observe_time --json experiments/results/observe_time.json

takes two minutes on two CPU cores. The same command again goes on with the rounds that
are left; `--fresh` times anew. There a step took 3.1 times AdamW's with `every=1` and
1.05 times with `every=50`, and compiling 3.5 and 3.3 times. The bars are 1.25, 1.03
and, for compiling, 1.5: XLA's CPU takes each of five sums in a pass of its own. The
first observation of a program takes 190 ms instead of 50; with it in each turn, as it
was once, the ratio of `every=50` was 1.32.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optax
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import timing, two_times
from experiments.benchmarks.step_time import CONVOLUTIONS, DECAY
from experiments.benchmarks.two_times import Case
from experiments.models import MODELS
from experiments.models.parameters import random_parameters

STEPS = 50


def _adamw() -> optax.GradientTransformation:
    return normopt.adamw(1e-3, weight_decay=DECAY)


def _observed(every: int, bar: float) -> Case:
    axes = {**CONVOLUTIONS, "": ()}
    return Case(lambda: normopt.observe(_adamw(), axes, every=every), bar, 1.5)


CASES = {
    "adamw": Case(_adamw),
    "every=1": _observed(1, 1.25),
    "every=50": _observed(STEPS, 1.03),
}


@dataclasses.dataclass(frozen=True)
class ObserveTimeConfig(timing.TimingOptions):
    """Whose step to time, and how often."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """Whose shapes."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    small = {"model": "resnet8", "rounds": 1}
    config = timing.ask(
        ObserveTimeConfig, "observe_time", args, least={"rounds": 1}, small=small
    )
    params = random_parameters(config.model)

    def measured(console: Console) -> dict[str, Any]:
        settings = {"model": config.model}
        return {
            "model": config.model,
            "parameters": optax.tree.size(params),
            "rows": two_times.measure(
                *(config, "observe_time", settings, CASES, params, STEPS, console),
                # What an observation runs takes four times as long when it first runs.
                before=STEPS,
            ),
        }

    timing.time_and_show(config, measured, table)


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each case and what was timed."""
    title = f"a step of {stored['model']}, {stored['parameters']:,} parameters"
    return two_times.table(stored["rows"], title)
