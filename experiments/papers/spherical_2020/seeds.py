"""One cell of the table: several seeds of one run.

The step, the evaluation and the choice of the best weights are those of the general
loop, and so are the random numbers: seed k here is `spherical_2020.train --seed k`, up
to the rounding of sums that are batched where the seeds are one computation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.data import Split
from experiments.papers.spherical_2020.epochs import Record, RunDiverged, train_epochs
from experiments.training import devices
from experiments.training.images import Images, on_device
from experiments.training.loop import keys_of, order_of
from experiments.training.preparation import Prepared, initial_weights
from experiments.training.runs import Run
from experiments.training.selection import chosen, keep_best, select
from experiments.training.steps import (
    EVALUATION_BATCH,
    Sums,
    TrainState,
    initial_state,
    make_evaluation_step,
    make_train_step,
    repeat,
)


def train_seeds(
    prepared: Prepared, seeds: Sequence[int], run: Run, console: Console
) -> dict[str, Any]:
    """Train runs that differ only in their seed, or go on, or read what is finished.

    Args:
        prepared: the run of any seed, whose own folder stays unused.
        seeds: those to train.
        run: the folder for all of them.
        console: where progress goes.

    Returns:
        What stands in its `result.json`: lists with a number for each seed, or, where a
        seed diverged, `diverged`: which one, after which step, and in words.

    Raises:
        OSError: a file cannot be written, or no checkpoint can be read.
    """
    if run.is_finished():
        return run.result()
    stack, plan = _Stack(prepared, seeds), prepared.plan
    start = initial_states(prepared, seeds)
    effort = {
        "epochs": plan.epochs,
        "steps": plan.total_steps,
        "device": devices.describe().splitlines()[0],
    }
    try:
        state = train_epochs(run, start, plan, stack.train_epoch, console, seeds)
    except RunDiverged as error:
        # A result too: it would diverge again.
        found = {"step": error.step, "seed": error.seed, "words": error.found}
        result = {"diverged": found, **effort}
    else:
        best = jax.vmap(chosen)(state)
        test = stack.evaluate(best, prepared.data.test)
        result = {
            "test_accuracy": _per_image(test.correct, test),
            "tested_step": np.asarray(best.step).tolist(),
            **effort,
        }
    run.finish(result)
    return result


def initial_states(prepared: Prepared, seeds: Sequence[int]) -> TrainState:
    """Return the states before the first step, each as its seed alone prepares it.

    Args:
        prepared: the run of any seed.
        seeds: one for each state along the leading axis.
    """
    model = prepared.run.config["model"]
    optimizer = prepared.loop.job.optimizer
    states = [
        keep_best(
            initial_state(*initial_weights(model, prepared.data, seed), optimizer)
        )
        for seed in seeds
    ]
    return _stacked(states)


def repeat_over_seeds(step: Callable[..., Any], *, scan: bool) -> Callable[..., Any]:
    """Return `run(carry, count, *args)`, which takes `count` steps of each run.

    Args:
        step: `step(carry, *args) -> carry` of one run. In the carry and the arguments
            those of all runs are stacked along a leading axis, but for the last
            argument, which they share. The carry's buffers may be donated.
        scan: whether stretches of steps run inside one `lax.scan`, and then the runs
            together under `jax.vmap`. On CPU they go one after another: there XLA takes
            several times as long for convolutions with a kernel for each run.
    """
    if scan:

        def together(carry, *args):
            axes = (*[0] * len(args), None)
            return jax.vmap(step, axes)(carry, *args)

        return repeat(together, scan=True)
    run_one = repeat(step, scan=False)

    def run(carry, count, *args):
        *own, shared = args
        ends = []
        for index in range(len(jax.tree.leaves(carry)[0])):
            one, *its_own = _at((carry, *own), index)
            ends.append(run_one(one, count, *its_own, shared))
        return _stacked(ends)

    return run


@jax.jit
def _at(stack: Any, index: int | jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stack)


@jax.jit
def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class _Stack:
    """Runs whose states are stacked along a leading axis, one for each seed."""

    def __init__(self, prepared: Prepared, seeds: Sequence[int]):
        job = prepared.loop.job
        self._seeds, self._plan = len(seeds), job.plan
        self._train = on_device(job.data.train)
        self._validation = on_device(job.data.validation)
        keys = [keys_of(seed) for seed in seeds]
        self._order_keys, self._step_keys = map(jnp.stack, zip(*keys, strict=True))
        step = make_train_step(
            job.network, job.optimizer, job.augmentation, job.plan.batch_size
        )
        evaluation = make_evaluation_step(job.network)
        self._run_steps, self._run_evaluation = (
            repeat_over_seeds(one, scan=job.scan) for one in (step, evaluation)
        )
        self._select = jax.jit(jax.vmap(select))
        self._orders = jax.jit(
            lambda keys, epoch: jax.vmap(order_of, (0, None, None))(
                keys, epoch, job.plan.images
            ),
        )

    def train_epoch(self, state: TrainState, epoch: int) -> tuple[TrainState, Record]:
        orders = self._orders(self._order_keys, epoch)
        carry = (state, self._zeros())
        arguments = (self._step_keys, orders, self._train)
        state, sums = self._run_steps(carry, self._plan.steps_per_epoch, *arguments)
        validation = self._evaluate(state, self._validation)
        state = state._replace(best=self._select(state, validation))
        return state, {
            "train_loss": _per_image(sums.loss, sums),
            "train_accuracy": _per_image(sums.correct, sums),
            "validation_loss": _per_image(validation.loss, validation),
            "validation_accuracy": _per_image(validation.correct, validation),
        }

    def evaluate(self, state: TrainState, split: Split) -> Sums:
        return self._evaluate(state, on_device(split))

    def _evaluate(self, state: TrainState, data: Images) -> Sums:
        batches = math.ceil(len(data) / EVALUATION_BATCH)
        carry = (jnp.zeros(self._seeds, jnp.int32), self._zeros())
        arguments = (state.params, state.model_state, data)
        return self._run_evaluation(carry, batches, *arguments)[1]

    def _zeros(self) -> Sums:
        return jax.tree.map(lambda zero: jnp.stack([zero] * self._seeds), Sums.zeros())


def _per_image(values: jax.Array, sums: Sums) -> list[float]:
    return (np.asarray(values, float) / np.asarray(sums.images)).tolist()
