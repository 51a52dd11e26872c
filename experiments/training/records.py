"""From numbers on the device to a line of `metrics.jsonl`, or to a reason to stop."""

import math
from typing import Any, NamedTuple

import jax

import normopt
from experiments.data import Data
from experiments.training.skipping import MOST_IN_A_ROW
from experiments.training.steps import NEVER, Sums

Record = dict[str, Any]
OBSERVED_STEP = "observed_step"  # as skipped steps do not count, at most a record's own


class Numbers(NamedTuple):
    """What the device says of an interval of steps."""

    train: Sums
    validation: Sums | None  # at the end of an epoch
    learning_rate: jax.Array  # float scalar: of the last update
    first_bad_step: jax.Array  # int32 scalar
    finite: jax.Array | None  # bool scalar, at the end of an epoch: all weights are
    skipped: jax.Array | None  # int32 scalar: steps skipped so far, if any ever is
    observed: Any = None  # {path: `normopt.Observation`} of the last step, if any is


def record_of(step: int, epoch: float, numbers: Numbers, data: Data) -> Record:
    """Return the record of the interval that ends with `step`.

    A loss or a score is None where no example counted: outside the end of an epoch, and
    for an interval of nothing but skipped steps.

    Args:
        step: the last one.
        epoch: that it ends.
        numbers: of the interval.
        data: that were trained on.
    """
    record = {
        "step": step,
        "epoch": epoch,
        "learning_rate": float(numbers.learning_rate),
    }
    for split in ("train", "validation"):
        sums = getattr(numbers, split)
        known = averages(sums, data) if sums is not None and sums.images else {}
        for name in ("loss", data.scored):
            record[f"{split}_{name}"] = known.get(name)
    if numbers.skipped is not None:
        record["skipped"] = int(numbers.skipped)
    if numbers.observed is not None:
        seen = normopt.summary(numbers.observed)
        record |= {OBSERVED_STEP: seen.pop("step"), **seen}
    return record


def averages(sums: Sums, data: Data) -> dict[str, float | int]:
    """Return the loss over at least one example, and what the data are judged by."""
    examples = int(sums.images)
    loss = float(sums.loss) / examples
    return {"loss": loss, **data.score(loss, int(sums.correct), examples)}


def problem(record: Record, numbers: Numbers) -> str | None:
    """Name the first thing that is not finite and stops the run, None if all is well.

    Args:
        record: of the interval.
        numbers: that it was made of.
    """
    if (bad_step := int(numbers.first_bad_step)) != NEVER:
        if numbers.skipped is None:
            return f"the loss of step {bad_step}"
        return (
            f"the loss or a gradient of step {bad_step}, after {MOST_IN_A_ROW} steps "
            "skipped in a row,"
        )
    if numbers.finite is not None and not numbers.finite:
        return f"a weight, statistic or moment after step {record['step']}"
    for name, value in record.items():
        if value is not None and not math.isfinite(value):
            return f"the {name.replace('_', ' ')} recorded at step {record['step']}"
    return None
