"""Runs that pause after each epoch: resumable, for loops other than the general one.

What they train is a `TrainState`, of one run or of several that are stacked, and maybe
something beside it. The general loop goes on before its numbers are there; these wait
for them once an epoch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import Plan, TrainingDiverged
from experiments.training.progress import TrainingProgress
from experiments.training.runs import Run, append_record
from experiments.training.skipping import all_finite
from experiments.training.steps import NEVER, TrainState

# A run saves at most so often: the state of several large networks takes seconds.
SAVES = 40

Record = dict[str, Any]
TrainEpoch = Callable[[TrainState, int], tuple[TrainState, Record]]


class RunDiverged(TrainingDiverged):
    """Says which of the runs that are trained stopped being finite.

    Attributes:
        found: what is not finite, in words.
        step: after which step.
        seed: of the run among stacked ones, None of one alone.
    """

    def __init__(self, found: str, step: int, seed: int | None, last_good: str):
        """Take, besides the attributes, which checkpoint is the last good one."""
        super().__init__(f"{found}; {last_good}")
        self.found, self.step, self.seed = found, step, seed


def train_epochs(
    run: Run,
    start: TrainState,
    plan: Plan,
    train_epoch: TrainEpoch,
    console: Console,
    seeds: Sequence[int] = (),
) -> TrainState:
    """Train to the end of the plan, from the start or the last checkpoint.

    Args:
        run: the folder that gets records and checkpoints.
        start: the state before the first step.
        plan: of each of the runs that are stacked.
        train_epoch: from a state and the number of an epoch, counted from 0, to the
            next state and a record with the quantities that `metrics.jsonl` has; one
            that differs between stacked runs is a list of numbers.
        console: where progress goes.
        seeds: of the runs that are stacked, for messages.

    Returns:
        The state after the last epoch.

    Raises:
        RunDiverged: a loss, or after an epoch a weight, statistic or moment, is not
            finite.
        OSError: a file cannot be written, or no checkpoint can be read.
    """
    run.open()
    runs = np.size(start.step)
    every = max(1, -(-plan.epochs // SAVES))
    with Checkpoints(run.checkpoints_folder) as checkpoints:
        restored = checkpoints.restore(start)
        state = start if restored is None else restored
        done = int(np.max(state.step))
        run.cut_metrics(done)
        verb = f"resuming after step {done} of" if done else "training into"
        console.print(f"{verb} {run.folder}", highlight=False, soft_wrap=True)
        images = plan.batch_size * runs
        with TrainingProgress(console, plan.total_steps, done, images) as progress:
            for epoch in range(done // plan.steps_per_epoch, plan.epochs):
                state, record = train_epoch(state, epoch)
                step = (epoch + 1) * plan.steps_per_epoch
                _check(state, step, seeds, checkpoints)
                record = {"step": step, "epoch": epoch + 1, **record}
                append_record(run.metrics_file, record)
                progress.advance(plan.steps_per_epoch)
                progress.show({name: _mean(value) for name, value in record.items()})
                if (epoch + 1) % every == 0 or epoch + 1 == plan.epochs:
                    # A copy, because the next epoch may take the buffers.
                    checkpoints.save(step, jax.tree.map(jnp.copy, state))
    return state


def _check(
    state: TrainState, step: int, seeds: Sequence[int], checkpoints: Checkpoints
) -> None:
    bad_steps, finite = map(np.atleast_1d, (state.first_bad_step, _are_finite(state)))
    for bad_step, is_finite, seed in zip(
        bad_steps.tolist(), finite, seeds or [None], strict=True
    ):
        if bad_step != NEVER:
            step, found = bad_step, f"the loss of step {bad_step}"
        elif not is_finite:
            found = f"a weight, statistic or moment after step {step}"
        else:
            continue
        where = "" if seed is None else f" of seed {seed}"
        found += f"{where} is not finite"
        raise RunDiverged(found, step, seed, checkpoints.last_good())


@jax.jit
def _are_finite(state: TrainState) -> jax.Array:
    """Say of each run whether what it goes on from is finite."""

    def is_finite(one: TrainState) -> jax.Array:
        return all_finite((one.params, one.model_state, one.opt_state))

    return (jax.vmap(is_finite) if state.step.ndim else is_finite)(state)


def _mean(value: Any) -> Any:
    return float(np.mean(value)) if isinstance(value, list) else value
