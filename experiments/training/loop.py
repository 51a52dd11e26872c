"""The training loop: keeps the device busy, without waiting for a step.

The data lives on the device. While one interval of steps runs, the host waits for
nothing but the metrics of the interval before; those go to disk before the checkpoint
that follows them, so a resumed run finds every record it needs. On emulated devices
alone it waits for each step; see `Placement.emulated`.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import normopt
from experiments.data import Data, Split, Text, TextDataset
from experiments.data.augment import Augment
from experiments.training import generating
from experiments.training.checkpoints import Checkpoints
from experiments.training.images import Images, on_device
from experiments.training.placement import Placement
from experiments.training.processes import are_many
from experiments.training.progress import TrainingProgress
from experiments.training.records import Numbers, Record, averages, problem, record_of
from experiments.training.runs import Run, append_record
from experiments.training.selection import chosen, select
from experiments.training.skipping import all_finite, skipped_steps
from experiments.training.steps import (
    EVALUATION_BATCH,
    Network,
    Sums,
    TrainState,
    make_evaluation_step,
    make_train_step,
    repeat,
)


class TrainingDiverged(RuntimeError):
    """The loss or the weights stopped being finite."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is and where it pauses.

    Attributes:
        images: in the training split; of a text, stretches that are cropped.
        batch_size: of them in a step; an epoch leaves out what fills no batch.
        epochs: passes over the training split.
        log_every: the most steps between two records.
    """

    images: int
    batch_size: int
    epochs: int
    log_every: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training split."""
        return self.images // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def intervals(self, done: int) -> Iterator[tuple[int, int]]:
        """Yield the first and last step of each interval after `done` steps.

        Each lies within one epoch, and their lengths differ by one at most: every
        length is a compilation of its own where stretches of steps are scanned.
        """
        per_epoch = self.steps_per_epoch
        parts = math.ceil(per_epoch / self.log_every)
        bounds = [per_epoch * part // parts for part in range(parts + 1)]
        for epoch in range(self.epochs):
            for start, stop in zip(bounds, bounds[1:], strict=False):
                if epoch * per_epoch + start >= done:
                    yield epoch * per_epoch + start, epoch * per_epoch + stop


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a run trains, besides its state.

    Attributes:
        network: the model without its arrays.
        optimizer: what turns gradients into updates.
        optimizer_name: for messages.
        schedule: the learning rate by count of updates, for the records.
        data: the examples.
        augmentation: applied to training batches.
        plan: the length of the run.
        seed: where the order of the images and the augmentation come from.
        scan: whether stretches of steps run inside one `lax.scan`.
        placement: the devices.
        observes: whether the optimizer notes what the blocks do.
    """

    network: Network
    optimizer: optax.GradientTransformation
    optimizer_name: str
    schedule: Callable[[Any], Any]
    data: Data
    augmentation: Augment
    plan: Plan
    seed: int
    scan: bool
    placement: Placement = Placement()
    observes: bool = False


@dataclasses.dataclass
class _Pending:
    """An interval whose numbers are still on the device."""

    step: int
    numbers: Numbers
    snapshot: TrainState | None

    def is_ready(self) -> bool:
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self.numbers))


class Loop:
    """Trains and evaluates one job.

    Attributes:
        job: which one.
    """

    def __init__(self, job: Job):
        """Put the training and validation images on the devices."""
        self.job, put = job, job.placement.put
        self._train = put(on_device(job.data.train))
        self._validation = put(on_device(job.data.validation))
        order_key, step_key = keys_of(job.seed)
        self._step_key = put(step_key)
        network = job.placement.spread(job.network)
        step = make_train_step(
            network,
            job.optimizer,
            job.placement.split_first(job.augmentation),
            job.plan.batch_size,
        )

        def step_in_place(carry: tuple[TrainState, Sums], *args: Any) -> Any:
            state, sums = step(carry, *args)
            return job.placement.keep_state(state, job.optimizer), sums

        evaluation = make_evaluation_step(network, job.placement.devices)
        dispatch = {"scan": job.scan, "wait": job.placement.emulated}
        self._run_steps = repeat(step_in_place, **dispatch)
        self._run_evaluation = repeat(evaluation, **dispatch)
        self._snapshot = jax.jit(_snapshot)
        self._select = jax.jit(functools.partial(select, data=job.data))
        everywhere = job.placement.everywhere
        self._observations = jax.jit(normopt.observations, out_shardings=everywhere)
        self._order = jax.jit(
            lambda epoch: order_of(order_key, epoch, job.plan.images),
            out_shardings=everywhere,
        )
        self._zeros = jax.jit(
            lambda: (jnp.zeros((), jnp.int32), Sums.zeros()), out_shardings=everywhere
        )

    def check(self, state: TrainState) -> None:
        """Trace what a run does, so that what cannot work fails before it writes."""
        jax.eval_shape(
            lambda *args: self._run_steps(args[:2], 1, *args[2:]),
            *(state, self._zeros()[1], self._step_key, self._order(0), self._train),
        )
        if self.job.observes:
            jax.eval_shape(normopt.observations, state.opt_state)

    def evaluate(
        self, state: TrainState, split: Split | Text
    ) -> dict[str, float | int]:
        """Return the loss and what the data score on a split, of the tested weights."""
        sums = self._evaluate(chosen(state), self.job.placement.put(on_device(split)))
        return averages(jax.device_get(sums), self.job.data)

    def sample(self, state: TrainState) -> str | None:
        """Return text that the tested weights write; None of what is no text."""
        job, tested = self.job, chosen(state)
        if not isinstance(job.data, TextDataset):
            return None
        drawn = jax.jit(
            functools.partial(generating.sample, job.network),
            out_shardings=job.placement.everywhere,
        )(tested.params, tested.model_state, keys_of(job.seed)[1])
        return generating.in_words(jax.device_get(drawn))

    def run(
        self,
        state: TrainState,
        run: Run,
        checkpoints: Checkpoints,
        progress: TrainingProgress,
        tell: Callable[[Record], None] = lambda record: None,
    ) -> TrainState:
        """Train from `state` to the end of the plan.

        Args:
            state: where to start, at the end of an epoch; its buffers are donated.
            run: the folder that gets the records.
            checkpoints: saved after each epoch.
            progress: told of each step and record.
            tell: told of each record, too.

        Returns:
            The state after the last step.

        Raises:
            TrainingDiverged: the loss or a weight is not finite; names the step, the
                optimizer and the last good checkpoint.
            OSError: a record or a checkpoint cannot be written.
        """
        plan, pending, began = self.job.plan, None, time.perf_counter()
        order = None

        def settle() -> None:
            nonlocal pending
            if pending is not None:
                settled, pending = pending, None
                checkpoints.check()
                record = self._record(settled, checkpoints)
                append_record(run.metrics_file, record)
                seconds = round(time.perf_counter() - began, 3)
                append_record(
                    run.timing_file, {"step": settled.step, "seconds": seconds}
                )
                progress.show(record)
                tell(record)
                if settled.snapshot is not None:
                    checkpoints.save(settled.step, settled.snapshot)

        def tick(steps: int) -> None:
            progress.advance(steps)
            # Processes that wait for one another must do so at the same steps.
            if pending is not None and not are_many() and pending.is_ready():
                settle()

        for start, stop in plan.intervals(int(state.step)):
            epoch, within = divmod(start, plan.steps_per_epoch)
            if order is None or not within:
                order = self._order(epoch)
            state, sums = self._run_steps(
                (state, self._zeros()[1]),
                stop - start,
                *(self._step_key, order, self._train),
                tick=tick,
            )
            validation = snapshot = finite = None
            if stop % plan.steps_per_epoch == 0:
                validation = self._evaluate(state, self._validation)
                if state.best is not None:
                    state = state._replace(best=self._select(state, validation))
                snapshot, finite = self._snapshot(state)
            # Copies: the next step takes the state's own buffers.
            skipped = jax.tree.map(jnp.copy, skipped_steps(state.opt_state))
            numbers = Numbers(
                sums,
                validation,
                self._learning_rate(stop, skipped),
                jnp.copy(state.first_bad_step),
                finite,
                skipped,
                self._observations(state.opt_state) if self.job.observes else None,
            )
            settle()
            pending = _Pending(stop, numbers, snapshot)
        settle()
        return state

    def _evaluate(self, state: TrainState, data: Images | Text) -> Sums:
        batches = math.ceil(len(data) / EVALUATION_BATCH)
        arguments = (state.params, state.model_state, data)
        return self._run_evaluation(self._zeros(), batches, *arguments)[1]

    def _learning_rate(self, step: int, skipped: jax.Array | None) -> jax.Array:
        """Return the rate of the last update: the count leaves out skipped steps."""
        count = step - 1 if skipped is None else jnp.maximum(step - 1 - skipped, 0)
        return jnp.asarray(self.job.schedule(count))

    def _record(self, pending: _Pending, checkpoints: Checkpoints) -> Record:
        numbers = jax.device_get(pending.numbers)
        epoch = pending.step / self.job.plan.steps_per_epoch
        record = record_of(pending.step, epoch, numbers, self.job.data)
        if (found := problem(record, numbers)) is not None:
            advice = "a smaller learning rate may help"
            if numbers.skipped is None:
                advice += ", or --skip-nonfinite if it is a few batches that are bad"
            raise TrainingDiverged(
                f"{found} is not finite with the optimizer {self.job.optimizer_name}; "
                f"{checkpoints.last_good()}; {advice}"
            )
        return record


def keys_of(seed: int) -> tuple[jax.Array, jax.Array]:
    """Return the random keys of a run: for the orders of its epochs, for its steps."""
    order_key, step_key = jax.random.split(jax.random.key(seed))
    return order_key, step_key


def order_of(key: jax.Array, epoch: int | jax.Array, images: int) -> jax.Array:
    """Return the order of an epoch's images, which follows from its number alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), images)


def _snapshot(state: TrainState) -> tuple[TrainState, jax.Array]:
    """Copy a state, whose own buffers the next step takes, and say if it is finite."""
    finite = all_finite((state.params, state.model_state, state.opt_state))
    return jax.tree.map(jnp.copy, state), finite
