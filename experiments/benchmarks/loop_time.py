"""Time a step of the training loop beside the same step in a bare Python loop.

Both train the same network on the same images by a step of the same source, by turns.
The bare loop calls it and looks at nothing until the end. The training loop also makes
records, which it fetches while later steps run; counted are its steps between the first
record of an epoch and the last one before the validation.

    python -m experiments loop_time --json experiments/results/loop_time.json

takes under a minute on two CPU cores. The same command again goes on with the rounds
that are left; `--fresh` times anew. There a step of the loop took 0.96 times the bare
step, the median of the rounds' own ratios, of which half are from 0.84 to 1.02: what
the loop costs is less than the machine's noise. The bar: at most 1.1 times.
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.benchmarks import timing
from experiments.benchmarks.ratios import Ratio
from experiments.models import MODELS
from experiments.training.checkpoints import Checkpoints
from experiments.training.images import on_device
from experiments.training.loop import keys_of, order_of
from experiments.training.measuring import measure_rounds
from experiments.training.preparation import Prepared, TrainConfig, prepare
from experiments.training.progress import TrainingProgress
from experiments.training.runs import Run, read_records
from experiments.training.steps import Sums, make_train_step, repeat

BAR = 1.1
# So that an epoch of the digits has five records.
LOG_EVERY = 4


@dataclasses.dataclass(frozen=True)
class LoopTimeConfig(timing.TimingOptions):
    """What to train, and how often."""

    model: Literal[tuple(MODELS)] = "resnet20"  # type: ignore[valid-type]
    """The network, on scikit-learn's digits."""
    rounds: int = 8
    """Epochs of each loop, after one that compiles."""


def main(args: Sequence[str]) -> None:
    """Print both times and their ratio."""
    config = timing.ask(
        LoopTimeConfig,
        "loop_time",
        args,
        least={"rounds": 1},
        small={"model": "resnet8", "rounds": 1},
    )

    def measured(console: Console) -> dict[str, Any]:
        return {"model": config.model, **measure(config, console)}

    timing.time_and_show(config, measured, in_words)


def measure(config: LoopTimeConfig, console: Console) -> dict[str, Any]:
    """Time both loops by turns, in rounds of which those that are finished stay.

    Args:
        config: the network, and how many turns of each count.
        console: gets a bar, and a line for each round.

    Returns:
        Milliseconds of a step in each, and their ratio, medians over the rounds, and
        the quartiles of the ratio.
    """
    loops = functools.cache(lambda: _Loops(config.model))
    rounds = measure_rounds(
        config,
        "loop_time",
        {"model": config.model},
        lambda _: loops().turn(),
        console,
    )
    loop, bare = ([times[which] for times in rounds] for which in ("loop", "bare"))
    ratio, quartiles = Ratio.of(loop, bare)
    return {
        "loop_ms": 1e3 * statistics.median(loop),
        "bare_ms": 1e3 * statistics.median(bare),
        "ratio": ratio,
        "quartiles": list(quartiles),
    }


class _Loops:
    """Both loops, compiled."""

    def __init__(self, model: str):
        self._prepared = prepare(
            TrainConfig(model=model, optimizer="adamw", epochs=1, log_every=LOG_EVERY)
        )
        self._bare = _Bare(self._prepared)
        # It compiles, and does not count.
        self.turn()

    def turn(self) -> dict[str, float]:
        """Return the seconds of a step in each."""
        with tempfile.TemporaryDirectory() as folder:
            in_loop = _in_loop(self._prepared, Path(folder))
        return {"loop": in_loop, "bare": self._bare.seconds()}


def _in_loop(prepared: Prepared, folder: Path) -> float:
    """Return the seconds of a step of the training loop, in an epoch from the start."""
    run, plan = Run(folder, "loop", {}), prepared.plan
    run.open()
    # The loop takes the buffers of its state.
    state = jax.tree.map(jnp.copy, prepared.state)
    console = Console(quiet=True)
    with (
        Checkpoints(run.checkpoints_folder) as checkpoints,
        TrainingProgress(console, plan.total_steps) as progress,
    ):
        prepared.loop.run(state, run, checkpoints, progress)
    first, *_, last, _ = read_records(run.timing_file)
    return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


class _Bare:
    """The step without the loop, compiled once."""

    def __init__(self, prepared: Prepared):
        job = prepared.loop.job
        step = make_train_step(
            job.network, job.optimizer, job.augmentation, prepared.plan.batch_size
        )
        order_key, step_key = keys_of(job.seed)
        order = order_of(order_key, 0, job.plan.images)
        self._arguments = step_key, order, on_device(job.data.train)
        self._run = repeat(step, scan=job.scan)
        self._start, self._steps = prepared.state, prepared.plan.steps_per_epoch

    def seconds(self) -> float:
        """Return the seconds of one of its steps, in an epoch from the start."""
        carry = jax.tree.map(jnp.copy, (self._start, Sums.zeros()))
        jax.block_until_ready(carry)
        began = time.perf_counter()
        jax.block_until_ready(self._run(carry, self._steps, *self._arguments))
        return (time.perf_counter() - began) / self._steps


def in_words(stored: Mapping[str, Any]) -> str:
    """Return a line with both times, their ratio and the bar."""
    verdict = "holds" if stored["ratio"] <= BAR else "missed"
    return (
        f"a step of {stored['model']}: {stored['loop_ms']:.1f} ms in the training "
        f"loop, {stored['bare_ms']:.1f} ms bare, medians of {stored['rounds']} rounds; "
        f"ratio {stored['ratio']:.3f}, the median of the rounds' own ratios, half of "
        f"which are {' to '.join(f'{end:.3f}' for end in stored['quartiles'])}; "
        f"the bar of {BAR} {verdict}"
    )
