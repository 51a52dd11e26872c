"""Time the step and the compiling of optimizers by turns, beside the first of them."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.compile_time import trace_and_compile
from experiments.benchmarks.ratios import Ratio, cells
from experiments.benchmarks.step_time import Stepper
from experiments.benchmarks.timing import TimingOptions
from experiments.training.measuring import measure_rounds

OF = ("step", "compile")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, and the largest ratios to the baseline that are good enough."""

    make: Callable[[], optax.GradientTransformation]
    step: float | None = None
    compile: float | None = None


def measure(
    config: TimingOptions,
    name: str,
    settings: dict[str, Any],
    cases: Mapping[str, Case],
    params: Any,
    steps: int,
    console: Console,
    *,
    before: int = 0,
) -> list[Row]:
    """Time the cases by turns, in rounds of which those that are finished stay.

    Args:
        config: how often.
        name: of the command.
        settings: all else that the times depend on.
        cases: by name; the first is the baseline.
        params: the parameters, whose values do not matter.
        steps: in a turn, after one that is not counted.
        console: gets a bar, and a line for each round.
        before: steps of a turn that are not counted, either: as many as it takes until
            everything has run once since it was compiled.

    Returns:
        Two rows a case, of its step and of its compiling: seconds, and the ratio to the
        baseline's, medians over the rounds, and the quartiles of the ratio.
    """

    @functools.cache
    def begin() -> tuple[Any, dict[str, Stepper]]:
        gradients = optax.tree.random_like(jax.random.key(1), params)
        steppers = {name: Stepper(case.make(), params) for name, case in cases.items()}
        return gradients, steppers

    def turns(_: str) -> dict[str, tuple[float, float]]:
        gradients, steppers = begin()
        seconds = {}
        for name, case in cases.items():
            if before:
                steppers[name].turn(gradients, before)
            step = steppers[name].turn(gradients, steps)
            # Nothing that an earlier turn traced is found again.
            jax.clear_caches()
            seconds[name] = step, sum(trace_and_compile(case.make(), params))
        return seconds

    rounds = measure_rounds(config, name, settings, turns, console)
    seconds = {
        (name, of): [times[name][place] for times in rounds]
        for name in cases
        for place, of in enumerate(OF)
    }
    baseline, *others = cases
    rows = [_row(baseline, of, seconds[baseline, of]) for of in OF]
    for name in others:
        for of in OF:
            ratio, quartiles = Ratio.of(seconds[name, of], seconds[baseline, of])
            bar = getattr(cases[name], of)
            rows.append(
                _row(name, of, seconds[name, of])
                | {"baseline": f"{baseline}, {of}", "bar": bar}
                | {"ratio": ratio, "quartiles": list(quartiles)}
                | {"holds": None if bar is None else ratio <= bar}
            )
    return rows


def _row(name: str, of: str, seconds: list[float]) -> Row:
    return {
        "optimizer": f"{name}, {of}",
        "seconds": statistics.median(seconds),
        "baseline": None,
        "ratio": None,
        "quartiles": None,
        "bar": None,
        "holds": None,
    }


def table(rows: list[Row], title: str) -> Table:
    """Return a row for each optimizer and time, with its ratio and its bar."""
    shown = Table(
        "optimizer",
        title=title,
        caption="ratio: the median of the rounds' own ratios, not that of the times",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("seconds", "ratio", "quartiles", "bar"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(row["optimizer"], f"{row['seconds']:.3f}", *cells(row))
    return shown
