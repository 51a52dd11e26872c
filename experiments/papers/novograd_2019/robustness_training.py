"""The network of `modes` in larger batches, from other weights, and in float16."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.novograd_2019 import modes_training
from experiments.papers.novograd_2019.modes_training import (
    BATCH,
    DECAY,
    TRAIN_IMAGES,
    Make,
    Method,
    Start,
    Task,
    all_errors,
    held_out_error,
    train,
)
from experiments.training import many_runs


class Grid(NamedTuple):
    """What every optimizer is trained with.

    Attributes:
        batches: sizes of a batch, and by how many decades their rates are above those
            in `modes`; the first is that of the other two measurements.
        rates: which of the rates in `modes`.
        scales: exponents of 10, of what the initial weights are multiplied by.
        units: exponents of 2, of what the loss is multiplied by.
    """

    batches: Mapping[int, float]
    rates: slice
    scales: tuple[float, ...]
    units: tuple[int, ...]


GRID = Grid(
    batches={BATCH: 0.0, 100: 0.5, TRAIN_IMAGES: 1.0},
    rates=slice(None, None, 2),
    scales=(-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0),
    # The last is beyond float16.
    units=(-20, -16, -12, -8, -4, 0, 4, 8, 12, 13, 14, 15, 16),
)
SMALL_GRID = Grid(
    batches={BATCH: 0.0, TRAIN_IMAGES: 1.0},
    rates=slice(None, None, 6),
    scales=(-1.0, 0.0),
    units=(0, 16),
)


def _wide_adamw(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, eps=1e-4, weight_decay=DECAY)


def _float32_adamw(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """AdamW that keeps its moments, and computes, in float32 for all parameters."""
    inner = optax.adamw(learning_rate, weight_decay=DECAY)

    def update(updates: Any, state: Any, params: Any) -> Any:
        wide = optax.tree.cast((updates, params), jnp.float32)
        wide, state = inner.update(wide[0], state, wide[1])
        return optax.tree.cast_like(wide, updates), state

    return optax.GradientTransformation(
        lambda params: inner.init(optax.tree.cast(params, jnp.float32)), update
    )


# Adam's own eps of 1e-8 is 0 in float16, which divides 0 by 0 without a gradient.
WIDE, FLOAT32 = "AdamW, eps 1e-4", "AdamW, float32 inside"
# For float16 alone.
FLOAT16_ALONE = {WIDE: Method(_wide_adamw, -2.0), FLOAT32: Method(_float32_adamw, -2.0)}
METHODS = {**modes_training.METHODS, **FLOAT16_ALONE}
# SGD steps in the unit of the gradient: another one is another rate.
NOT_IN_UNITS = "SGD"


def study(
    name: str, grid: Grid, starts: Mapping[int, list[Start]], task: Task
) -> dict[str, Any]:
    """Train at all rates, and at the best one from other weights and in other units.

    Args:
        name: of the optimizer.
        grid: what it is trained with.
        starts: one for each seed, by the size of a batch.
        task: what is trained on.

    Returns:
        For each size of a batch the exponents of 10 of the rates, and errors: seeds x
        rates for each size, from the weights seeds x scales, in float16 seeds x units.
        `FLOAT16_ALONE` are there for float16 alone.
    """
    make, (own, *larger) = METHODS[name].make, grid.batches
    exponents, errors = {}, {}
    for batch in [own] if name in FLOAT16_ALONE else [own, *larger]:
        exponents[batch] = METHODS[name].exponents[grid.rates] + grid.batches[batch]
        rates = 10.0 ** exponents[batch]
        errors[batch] = all_errors(make, rates, starts[batch], task)
    best = 10.0 ** exponents[own][errors[own].mean(axis=0).argmin()]
    found = {
        "exponents": {str(batch): some.tolist() for batch, some in exponents.items()},
        "batches": {str(batch): some.tolist() for batch, some in errors.items()},
    }
    if name not in FLOAT16_ALONE:
        scales = 10.0 ** np.array(grid.scales)
        weights = errors_of_scales(make, best, scales, starts[own], task)
        found["weights"] = weights.tolist()
    if name != NOT_IN_UNITS:
        units = 2.0 ** np.array(grid.units)
        halved = errors_in_units(make, best, units, starts[own], task)
        found["float16"] = halved.tolist()
    return found


def errors_of_scales(
    make: Make,
    learning_rate: float,
    scales: np.ndarray,
    starts: list[Start],
    task: Task,
) -> np.ndarray:
    """Train from initial weights that are multiplied.

    Args:
        make: gives the optimizer.
        learning_rate: at the first step.
        scales: the factors.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        The errors on the images that were not trained on, seeds x scales.
    """

    def error(start: Start, scale: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda leaf: scale * leaf, start.params)
        start = start._replace(params=params)
        return held_out_error(train(make, learning_rate, start, task), task)

    return many_runs.over_all(error, starts, scales)


def errors_in_units(
    make: Make,
    learning_rate: float,
    units: np.ndarray,
    starts: list[Start],
    task: Task,
) -> np.ndarray:
    """Train in float16 throughout, on losses that are multiplied.

    Args:
        make: gives the optimizer; what it keeps has the dtype that it chooses.
        learning_rate: at the first step.
        units: the factors.
        starts: one for each seed, in float32.
        task: what is trained on, in float32.

    Returns:
        The errors on the images that were not trained on, seeds x units.
    """
    task = task._replace(images=task.images.astype(jnp.float16))

    def error(start: Start, unit: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), start.params)
        start = start._replace(params=params)
        return held_out_error(train(make, learning_rate, start, task, unit), task)

    return many_runs.over_all(error, starts, units)
