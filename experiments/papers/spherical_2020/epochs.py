"""A run that pauses after each epoch: resumable, for a loop other than the general one.

The general loop goes on before its numbers are there; this one waits for them once an
epoch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


def train_epochs(
    run: Run,
    start: TrainState,
    plan: Plan,
    train_epoch: TrainEpoch,
    console: Console,
) -> TrainState:
    """Train to the end of the plan, from the start or the last checkpoint.

    Args:
        run: the folder that gets records and checkpoints.
        start: the state before the first step.
        plan: its length.
        train_epoch: from a state and the number of an epoch, counted from 0, to the
            next state and a record with the quantities that `metrics.jsonl` has.
        console: where progress goes.

    Returns:
        The state after the last epoch.

    Raises:
        TrainingDiverged: a loss, weight, statistic or moment is not finite.
        OSError: a file cannot be written, or no checkpoint can be read.
    """
    run.open()
    every = max(1, -(-plan.epochs // SAVES))
    with Checkpoints(run.checkpoints_folder) as checkpoints:
        restored = checkpoints.restore(start)
        state = start if restored is None else restored
        done = int(state.step)
        run.cut_metrics(done)
        verb = f"resuming after step {done} of" if done else "training into"
        console.print(f"{verb} {run.folder}", highlight=False, soft_wrap=True)
        with TrainingProgress(
            console, plan.total_steps, done, plan.batch_size
        ) as progress:
            for epoch in range(done // plan.steps_per_epoch, plan.epochs):
                state, record = train_epoch(state, epoch)
                step = (epoch + 1) * plan.steps_per_epoch
                _check(state, step, checkpoints)
                record = {"step": step, "epoch": epoch + 1, **record}
                append_record(run.metrics_file, record)
                progress.advance(plan.steps_per_epoch)
                progress.show(record)
                if (epoch + 1) % every == 0 or epoch + 1 == plan.epochs:
                    # A copy, because the next epoch may take the buffers.
                    checkpoints.save(step, jax.tree.map(jnp.copy, state))
    return state


def _check(state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    if (bad_step := int(state.first_bad_step)) != NEVER:
        found = f"the loss of step {bad_step}"
    elif not _is_finite((state.params, state.model_state, state.opt_state)):
        found = f"a weight, statistic or moment after step {step}"
    else:
        return
    raise TrainingDiverged(f"{found} is not finite; {checkpoints.last_good()}")


_is_finite = jax.jit(all_finite)
