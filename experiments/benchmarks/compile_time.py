"""Time tracing and compiling of a step on a thousand parameters, beside optax.adamw.

A step is `update` and `apply_updates` in one jitted call, parameters and optimizer
state donated, for 1,002 float32 leaves, two thirds of them kernels that have blocks.
Tracing is what JAX does until XLA has the program, compiling what XLA does then. The
optimizers take turns in each round, and a ratio is that of two times of the same round.

    python -m experiments compile_time --json experiments/results/compile_time.json

takes some twenty minutes on two CPU cores; stored are three rounds, in six of these.
The same command again goes on with the rounds that are left; `--fresh` times anew.
There NovoGrad took 1.06 times optax.adamw's trace and compile, AdamW 0.97, with ten
rules 1.04, AdamS 1.03, normalized Adam 2.25 and clipped 2.20 times; AdamSRT took 2.54
and AdamP 4.63 times, with rules as long as without. The bars stand beside each in the
table: AdamSRT's is 1.8, and AdamP's 2.5.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import timing
from experiments.benchmarks.ratios import Ratio
from experiments.training.measuring import measure_rounds

RATE = 1e-3
# One layer: a leaf in three has no blocks.
LAYER = {
    "conv": {"kernel": (3, 3, 4, 8)},
    "dense": {"kernel": (16, 8)},
    "norm": {"scale": (8,)},
}
# Each finds some layers, and the last what is left: a path tries several.
PATTERNS = [rf"^layer_{digit}\d*/.*kernel$" for digit in range(1, 10)] + ["kernel$"]

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer and what its compile time is held against.

    Attributes:
        make: builds it.
        baseline: the optimizer that its ratio refers to; None: it is one itself.
        bar: the largest ratio that is good enough.
    """

    make: Callable[[], optax.GradientTransformation]
    baseline: str | None = None
    bar: float | None = None


def _adamw() -> optax.GradientTransformation:
    decays = {pattern: 1e-4 * rank for rank, pattern in enumerate(PATTERNS)}
    multipliers = dict.fromkeys(PATTERNS, 0.5)
    return normopt.adamw(RATE, weight_decay=decays, lr_multipliers=multipliers)


def _adamsrt(channel_axes: Any) -> Callable[[], optax.GradientTransformation]:
    return lambda: normopt.adamsrt(RATE, channel_axes=channel_axes)


def _blocks(name: str) -> Callable[[], optax.GradientTransformation]:
    return lambda: normopt.make(name=name, learning_rate=RATE, channel_axes=(-1,))


def _around(
    wrap: Callable[..., optax.GradientTransformation], **options: Any
) -> Callable[[], optax.GradientTransformation]:
    return lambda: wrap(optax.adam(RATE), channel_axes=(-1,), **options)


CASES = {
    "optax.adamw": Case(lambda: optax.adamw(RATE)),
    "novograd": Case(lambda: normopt.novograd(RATE), "optax.adamw", 1.1),
    "adamw": Case(lambda: normopt.adamw(RATE), "optax.adamw", 1.1),
    "adamw+rules": Case(_adamw, "optax.adamw", 1.3),
    "adams": Case(_blocks("adams"), "optax.adamw", 1.1),
    "adamsrt": Case(_blocks("adamsrt"), "optax.adamw", 1.8),
    "adamsrt+rules": Case(_adamsrt(dict.fromkeys(PATTERNS, (-1,))), "adamsrt", 1.3),
    "adamp": Case(_blocks("adamp"), "optax.adamw", 2.5),
    "normalized": Case(_around(normopt.normalized), "optax.adamw", 2.5),
    "clipped": Case(_around(normopt.clipped, max_norm=1.0), "optax.adamw", 2.5),
}


@dataclasses.dataclass(frozen=True)
class CompileTimeConfig(timing.TimingOptions):
    """How large, and how often."""

    layers: int = 334
    """Layers of three leaves."""
    rounds: int = 11
    """How often each optimizer has its turn."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    config = timing.ask(
        CompileTimeConfig,
        "compile_time",
        args,
        # Ten rules want ten layers: a pattern that finds nothing is an error.
        least={"layers": 10, "rounds": 1},
        small={"layers": 12, "rounds": 1},
    )
    if (cache := jax.config.values["jax_compilation_cache_dir"]) is not None:
        sys.exit(
            f"error: JAX_COMPILATION_CACHE_DIR is {cache}: programs would be read, "
            "not compiled; unset it"
        )

    def measured(console: Console) -> dict[str, Any]:
        return {"layers": config.layers, "rows": measure(config, console)}

    timing.time_and_show(config, measured, table)


def measure(config: CompileTimeConfig, console: Console) -> list[Row]:
    """Time the optimizers by turns, in rounds of which those that are finished stay.

    Args:
        config: how many layers and rounds.
        console: gets a bar, and a line for each round.

    Returns:
        One row an optimizer: seconds of tracing and of compiling, and the ratio of
        their sum to that of its baseline, all medians over the rounds, and the
        quartiles of the ratio.
    """
    params = parameters(config.layers)

    @functools.cache
    def begin() -> None:
        # The first one in a process takes longer, whichever it is.
        trace_and_compile(optax.adamw(RATE), parameters(1))

    def turns(_: str) -> dict[str, tuple[float, float]]:
        begin()
        seconds = {}
        for name, case in CASES.items():
            # Nothing that an earlier turn traced is found again.
            jax.clear_caches()
            seconds[name] = trace_and_compile(case.make(), params)
        return seconds

    settings = {"layers": config.layers}
    rounds = measure_rounds(config, "compile_time", settings, turns, console)
    seconds = {name: [times[name] for times in rounds] for name in CASES}
    return [_row(name, seconds) for name in CASES]


def parameters(layers: int) -> Any:
    """Return shapes and dtypes of that many layers."""
    return {
        f"layer_{index}": jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            LAYER,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for index in range(layers)
    }


def trace_and_compile(
    optimizer: optax.GradientTransformation, params: Any
) -> tuple[float, float]:
    """Return the seconds that both take for a step, whose arguments are donated."""
    state = jax.eval_shape(optimizer.init, params)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    traced = time.perf_counter()
    lowered.compile()
    return traced - began, time.perf_counter() - traced


def _row(name: str, seconds: dict[str, list[tuple[float, float]]]) -> Row:
    case, (traces, compiles) = CASES[name], zip(*seconds[name], strict=True)
    row = {
        "optimizer": name,
        "trace_seconds": statistics.median(traces),
        "compile_seconds": statistics.median(compiles),
        "baseline": case.baseline,
        "ratio": None,
        "quartiles": None,
        "bar": case.bar,
        "holds": None,
    }
    if case.baseline is not None and case.bar is not None:
        ratio, quartiles = Ratio.of(
            map(sum, seconds[name]), map(sum, seconds[case.baseline])
        )
        row |= {"ratio": ratio, "quartiles": list(quartiles)}
        row["holds"] = ratio <= case.bar
    return row


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer, with its ratio and its bar."""
    shown = Table(
        "optimizer",
        title=f"a step of {3 * stored['layers']:,} leaves",
        caption="ratio: the median of the rounds' own ratios, not that of the times",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("trace s", "compile s", "ratio", "quartiles", "of", "bar"):
        shown.add_column(name, justify="right")
    for row in stored["rows"]:
        cells = ["-", "-", "-", "-"]
        if row["ratio"] is not None:
            verdict = "holds" if row["holds"] else "missed"
            cells = [
                f"{row['ratio']:.2f}",
                "{:.2f}-{:.2f}".format(*row["quartiles"]),
                row["baseline"],
                f"{row['bar']:g} {verdict}",
            ]
        times = (f"{row[f'{part}_seconds']:.2f}" for part in ("trace", "compile"))
        shown.add_row(row["optimizer"], *times, *cells)
    return shown
