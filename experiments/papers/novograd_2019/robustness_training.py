"""The network of `modes` from other weights, and in float16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers.novograd_2019 import modes_training
from experiments.papers.novograd_2019.modes_training import (
    DECAY,
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
        rates: which of the rates in `modes`.
        scales: exponents of 10, of what the initial weights are multiplied by.
        units: exponents of 2, of what the loss is multiplied by.
    """

    rates: slice
    scales: tuple[float, ...]
    units: tuple[int, ...]


GRID = Grid(
    rates=slice(None, None, 2),
    scales=(-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0),
    # The last is beyond float16.
    units=(-20, -16, -12, -8, -4, 0, 4, 8, 12, 13, 14, 15, 16),
)
SMALL_GRID = Grid(
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


def study(name: str, grid: Grid, starts: list[Start], task: Task) -> dict[str, Any]:
    """Train at all rates, and at the best one from other weights and in other units.

    Args:
        name: of the optimizer.
        grid: what it is trained with.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        The exponents of 10 of the rates, and errors: seeds x rates, from the weights
        seeds x scales, in float16 seeds x units. `FLOAT16_ALONE` are there for float16
        alone.
    """
    make, exponents = METHODS[name].make, METHODS[name].exponents[grid.rates]
    errors = all_errors(make, 10.0**exponents, starts, task)
    best = 10.0 ** exponents[errors.mean(axis=0).argmin()]
    found = {"exponents": exponents.tolist(), "errors": errors.tolist()}
    if name not in FLOAT16_ALONE:
        scales = 10.0 ** np.array(grid.scales)
        weights = errors_of_scales(make, best, scales, starts, task)
        found["weights"] = weights.tolist()
    if name != NOT_IN_UNITS:
        units = 2.0 ** np.array(grid.units)
        halved = errors_in_units(make, best, units, starts, task)
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
