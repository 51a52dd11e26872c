"""Time one optimizer step on a model's shapes, beside optax.adamw and optax.sgd.

A step is `update` and `apply_updates` in one jitted call on the float32, channel-last
parameters of the model, whose buffers and whose optimizer state are donated; the
gradients are an input. Blocks are the output channels of the convolutions. The
optimizers take turns, in a new order each round, and a ratio is that of two times of
the same round: another load on the machine slows both.

    python -m experiments step_time --json experiments/results/step_time.json

takes two to four minutes on two CPU cores. The same command again goes on with the
rounds that are left; `--fresh` times anew. There AdamS took 0.68 times optax.adamw's
step, AdamSRT 1.18, with a decay in the gradient 0.85 and 1.25, AdamW 1.00, NadamW 1.08,
normalized Adam 1.35 and clipped 1.31, AdamP 2.35, AdamG 2.01, hyperballs 2.15 and
rotational Adam 2.90 times; NovoGrad took 0.97 times optax.novograd's, SGD-MRT 1.84 and
SGDW 0.94 times optax.sgd's. The bars stand beside each in the table.

Hyperballs and rotational Adam write the steps of some leaves to memory of their own,
about 20 MB on CPUs. Of a larger model that is more, and from 32 MB on the C library may
give it back after each step and fetch it page by page in the next. It keeps it with

    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
"""

import dataclasses
import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import normopt
from experiments.benchmarks import timing
from experiments.benchmarks.ratios import Ratio, cells
from experiments.models import MODELS
from experiments.models.parameters import random_parameters
from experiments.training.measuring import measure_rounds

CONVOLUTIONS = {r"conv\d?/kernel$": (-1,)}
DECAY = 1e-4
MOMENTUM = 0.9

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer and what its step is held against.

    Attributes:
        make: builds it.
        traffic: the fewest bytes a float32 parameter that a step can move. The sums
            that an update needs are taken in a pass before it. Each pass reads what it
            needs once, and new moments are written by the first that can: AdamP's by
            the one that tests and sums (24), so that the other reads no gradient (16).
        baseline: the optimizer that its ratio refers to; None: it is one itself.
        bar: the largest ratio that is good enough, if one is set.
    """

    make: Callable[[], optax.GradientTransformation]
    traffic: int
    baseline: str | None = None
    bar: float | None = None


def _plain(name: str, **options: Any) -> Callable[[], optax.GradientTransformation]:
    return lambda: normopt.make(name=name, learning_rate=1e-3, **options)


def _blocks(name: str, **options: Any) -> Callable[[], optax.GradientTransformation]:
    return _plain(name, channel_axes=CONVOLUTIONS, **options)


def _around(
    wrap: Callable[..., optax.GradientTransformation], **options: Any
) -> Callable[[], optax.GradientTransformation]:
    return lambda: wrap(optax.adam(1e-3), channel_axes=CONVOLUTIONS, **options)


# Every optimizer with its own defaults, but with the decay of optax.adamw where that is
# what it is about. Where "+L2" adds a decay to the gradient, the first pass reads the
# weights for it; "+decay" is NovoGrad's, after that pass.
CASES = {
    "optax.adamw": Case(lambda: optax.adamw(1e-3), 28),
    "optax.adam": Case(lambda: optax.adam(1e-3), 28, "optax.adamw"),
    "adams": Case(_blocks("adams"), 24, "optax.adamw", 0.95),
    "adams+L2": Case(_blocks("adams", weight_decay=DECAY), 28, "optax.adamw", 1.05),
    "adamsrt": Case(_blocks("adamsrt"), 32, "optax.adamw", 1.4),
    "adamsrt+L2": Case(_blocks("adamsrt", weight_decay=DECAY), 32, "optax.adamw", 1.45),
    "adamg": Case(_blocks("adamg"), 32, "optax.adamw", 2.5),
    "adamp": Case(_blocks("adamp"), 40, "optax.adamw", 2.3),
    "adamw": Case(_plain("adamw", weight_decay=DECAY), 28, "optax.adamw"),
    "nadamw": Case(_plain("nadamw", weight_decay=DECAY), 28, "optax.adamw"),
    "normalized": Case(_around(normopt.normalized), 32, "optax.adamw", 1.45),
    "clipped": Case(_around(normopt.clipped, max_norm=1.0), 32, "optax.adamw", 1.45),
    "hyperball": Case(
        lambda: normopt.hyperball(optax.adam(1e-3), 1e-3), 44, "optax.adamw", 1.6
    ),
    "rotational": Case(
        _around(normopt.rotational, learning_rate=1e-3), 44, "optax.adamw", 2.0
    ),
    "optax.novograd": Case(lambda: optax.novograd(1e-3), 24),
    "novograd": Case(_plain("novograd"), 24, "optax.novograd", 0.9),
    "novograd+decay": Case(
        _plain("novograd", weight_decay=DECAY), 24, "optax.novograd"
    ),
    "optax.sgd": Case(lambda: optax.sgd(1e-3, momentum=MOMENTUM), 20),
    "sgdmrt": Case(_blocks("sgdmrt", momentum=MOMENTUM), 28, "optax.sgd", 2.2),
    "sgdp": Case(_blocks("sgdp", momentum=MOMENTUM), 28, "optax.sgd"),
    "sgdw": Case(
        _plain("sgdw", momentum=MOMENTUM, weight_decay=DECAY), 20, "optax.sgd"
    ),
}


@dataclasses.dataclass(frozen=True)
class StepTimeConfig(timing.TimingOptions):
    """Whose step to time, and how often."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """Whose shapes."""
    optimizers: tuple[Literal[tuple(CASES)], ...] = ()  # type: ignore[valid-type]
    """Which to time, besides their baselines; none named: all."""
    rounds: int = 20
    """How often each optimizer has its turn."""
    repeats: int = 10
    """Steps in a turn, after one that is not counted."""
    seed: int = 0
    """For the order of the turns."""


class Stepper:
    """One optimizer with parameters of its own, stepping on from turn to turn."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Any):
        """Begin at a copy of `params`, which the first step takes."""

        def step(params, state, gradients):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.carry = jax.tree.map(jnp.copy, params), jax.jit(optimizer.init)(params)
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def turn(self, gradients: Any, steps: int) -> float:
        """Take one step and then `steps` more; return the seconds of each of these."""
        before = self.carry
        self.carry = self._step(*before, gradients)
        if not all(leaf.is_deleted() for leaf in jax.tree.leaves(before)):
            raise RuntimeError(
                "a donated buffer was not reused, so that a step allocates what it "
                f"returns, on {jax.default_backend()}; training's steps do not"
            )
        del before
        jax.block_until_ready(self.carry)
        began = time.perf_counter()
        for _ in range(steps):
            self.carry = self._step(*self.carry, gradients)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - began) / steps


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    config = timing.ask(
        StepTimeConfig,
        "step_time",
        args,
        least={"rounds": 2, "repeats": 1, "seed": 0},
        small={"model": "resnet8", "rounds": 2, "repeats": 1},
    )
    params = random_parameters(config.model)

    def measured(console: Console) -> dict[str, Any]:
        return {
            "model": config.model,
            "parameters": optax.tree.size(params),
            "rows": measure(config, params, console),
        }

    timing.time_and_show(config, measured, table)


def measure(config: StepTimeConfig, params: Any, console: Console) -> list[Row]:
    """Time the optimizers by turns, in rounds of which those that are finished stay.

    Args:
        config: which ones, and how often.
        params: the parameters, whose values do not matter.
        console: gets a bar, and a line for each round.

    Returns:
        One row an optimizer: milliseconds a step and its ratio to its baseline, both
        medians over the rounds, the quartiles of the ratio, whether it keeps its bar,
        and bytes a parameter.
    """
    chosen = set(config.optimizers or CASES)
    chosen |= {CASES[name].baseline for name in chosen} - {None}
    names = [name for name in CASES if name in chosen]

    @functools.cache
    def begin() -> tuple[Any, dict[str, Stepper]]:
        gradients = optax.tree.random_like(jax.random.key(1), params)
        return gradients, {name: Stepper(CASES[name].make(), params) for name in names}

    def turns(this_round: str) -> dict[str, float]:
        gradients, steppers = begin()
        shuffle = random.Random(f"{this_round}, seed {config.seed}").sample
        return {
            name: steppers[name].turn(gradients, config.repeats)
            for name in shuffle(names, len(names))
        }

    settings = {
        "model": config.model,
        "optimizers": names,
        "repeats": config.repeats,
        "seed": config.seed,
    }
    rounds = measure_rounds(config, "step_time", settings, turns, console)
    seconds = {name: [times[name] for times in rounds] for name in names}
    return [_row(name, seconds, params) for name in names]


def _row(name: str, seconds: dict[str, list[float]], params: Any) -> Row:
    case, median = CASES[name], statistics.median(seconds[name])
    parameters = optax.tree.size(params)
    state = jax.tree.leaves(jax.eval_shape(case.make().init, params))
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in state)
    row = {
        "optimizer": name,
        "milliseconds": 1e3 * median,
        "baseline": case.baseline,
        "ratio": None,
        "quartiles": None,
        "bar": case.bar,
        "holds": None,
        "state_bytes": state_bytes / parameters,
        "least_traffic_bytes": case.traffic,
        "gigabytes_per_second": case.traffic * parameters / median / 1e9,
    }
    if case.baseline is not None:
        ratio, quartiles = Ratio.of(seconds[name], seconds[case.baseline])
        row |= {"ratio": ratio, "quartiles": list(quartiles)}
        if case.bar is not None:
            row["holds"] = ratio <= case.bar
    return row


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer, with its ratio and its bar."""
    # Without rules between columns it fits a terminal of 80.
    shown = Table(
        "optimizer",
        title=f"a step of {stored['model']}, {stored['parameters']:,} parameters",
        caption="ratio: the median of the rounds' own ratios, not that of the times\n"
        "state and least traffic in bytes a parameter",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("ms", "ratio", "quartiles", "bar", "state", "traffic", "GB/s"):
        shown.add_column(name, justify="right")
    for row in stored["rows"]:
        numbers = (f"{row['state_bytes']:.1f}", str(row["least_traffic_bytes"]))
        speed = f"{row['gigabytes_per_second']:.1f}"
        milliseconds = f"{row['milliseconds']:.2f}"
        shown.add_row(row["optimizer"], milliseconds, *cells(row), *numbers, speed)
    return shown
