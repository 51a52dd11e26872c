"""How far a step turns the filters of a network, beside what is predicted from them.

Quantities are means over the output channels of a convolution; see
`effective_learning_rate`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import normopt
from experiments.papers.spherical_2020 import protocol
from experiments.papers.spherical_2020.epochs import Record
from experiments.training.images import on_device
from experiments.training.loop import Job, keys_of, order_of
from experiments.training.steps import (
    Sums,
    TrainState,
    initial_state,
    make_train_step,
    repeat,
)

# A kernel is drawn this much shorter or longer at most.
LARGEST_FACTOR = 4.0


class Measures(NamedTuple):
    """Sums over the steps of an epoch of means over the blocks, a scalar a layer."""

    norm: dict[str, jax.Array]
    angle: dict[str, jax.Array]
    rate: dict[str, jax.Array]


class Fit(NamedTuple):
    """How one quantity follows another over layers and epochs, in logarithms.

    Attributes:
        correlation: of the two, within the epochs.
        slope: of the line through the origin, which is 1 where they are proportional.
    """

    correlation: float
    slope: float


def draw_factors(params: Any, seed: int) -> dict[str, float]:
    """Draw a factor for each convolution's kernel, uniform in its logarithm.

    Args:
        params: of a network.
        seed: the same gives the same factors.

    Returns:
        Factors from 1 / `LARGEST_FACTOR` to `LARGEST_FACTOR`, by path.
    """
    (pattern,) = protocol.CHANNEL_AXES
    paths = normopt.leaf_paths(params, pattern)
    exponents = np.random.default_rng(seed).uniform(-1, 1, len(paths))
    factors = (LARGEST_FACTOR**exponents).tolist()
    return dict(zip(paths, factors, strict=True))


def lengthen(state: TrainState, job: Job, factors: Mapping[str, float]) -> TrainState:
    """Return a state before the first step whose kernels are times their factors.

    The batch norm behind each takes the factor out again, so that the network's
    function stays, but for what the epsilon in the norm does.

    Args:
        state: before the first step.
        job: whose optimizer begins anew.
        factors: by the path of a kernel.
    """
    leaves, structure = jax.tree.flatten(state.params)
    paths = normopt.leaf_paths(state.params)
    params = jax.tree.unflatten(
        structure,
        [leaf * factors.get(p, 1.0) for p, leaf in zip(paths, leaves, strict=True)],
    )
    return initial_state(params, state.model_state, job.optimizer)


def make_train_epoch(
    job: Job,
) -> Callable[[TrainState, int], tuple[TrainState, Record]]:
    """Return an epoch of a job that measures each step; see `train_epochs`."""
    order_key, step_key = keys_of(job.seed)
    images = on_device(job.data.train)
    step = make_train_step(
        job.network, job.optimizer, job.augmentation, job.plan.batch_size
    )

    def measured_step(carry: Any, *args: Any) -> Any:
        (state, sums), before = carry
        after, sums = step((state, sums), *args)
        rate = job.schedule(state.step)
        new = measures(state.params, after.params, rate)
        return (after, sums), jax.tree.map(jnp.add, before, new)

    run_steps = repeat(measured_step, scan=job.scan)

    def train_epoch(state: TrainState, epoch: int) -> tuple[TrainState, Record]:
        order = order_of(order_key, epoch, job.plan.images)
        shapes = jax.eval_shape(lambda p: measures(p, p, 1.0), state.params)
        zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
        steps = job.plan.steps_per_epoch
        carry = ((state, Sums.zeros()), zeros)
        (state, sums), summed = run_steps(carry, steps, step_key, order, images)
        means = jax.tree.map(lambda total: float(total) / steps, summed)
        return state, {
            "train_loss": float(sums.loss) / int(sums.images),
            "train_accuracy": int(sums.correct) / int(sums.images),
            **means._asdict(),
        }

    return train_epoch


def measures(before: Any, after: Any, learning_rate: Any) -> Measures:
    """Return the quantities of one step, by the path of each convolution.

    Args:
        before: the parameters before the step.
        after: those after it.
        learning_rate: of the step.
    """
    axes = protocol.CHANNEL_AXES
    norms = normopt.block_norms(before, axes)
    angles = normopt.block_angles(before, after, axes)
    found = Measures({}, {}, {})
    (pattern,) = axes
    paths = normopt.leaf_paths(before, pattern)
    # In one order: leaves without blocks are None, which is no leaf of the results.
    kernels = [leaf for leaf in jax.tree.leaves(before) if leaf.ndim == 4]
    for path, kernel, norm, angle in zip(
        paths, kernels, jax.tree.leaves(norms), jax.tree.leaves(angles), strict=True
    ):
        size = kernel.size // kernel.shape[-1]
        found.norm[path] = jnp.mean(norm)
        found.angle[path] = jnp.mean(angle)
        found.rate[path] = jnp.mean(learning_rate * size**0.5 / norm)
    return found


def fit_rates(records: Sequence[Record], layers: Sequence[str] | None = None) -> Fit:
    """Say how the angles follow the rates, over epochs and layers, all of them or some.

    Args:
        records: one an epoch.
        layers: by path, some perhaps several times.
    """
    paths = list(records[0]["angle"]) if layers is None else layers
    angles, rates = (
        _within_epochs(
            [[record[quantity][path] for path in paths] for record in records]
        )
        for quantity in ("angle", "rate")
    )
    return _fit(angles, rates)


def fit_widths(records: Sequence[Record], factors: Mapping[str, float]) -> Fit:
    """Say how the angles follow the rates that the widths alone would give.

    Those are the first ones with the factors taken out: before training, sqrt(d) / |w|
    of He's initial weights is as the root of the number of output channels.
    """
    first = records[0]["rate"]
    widths = _within_epochs([[first[path] * factors[path] for path in first]])
    angles = _within_epochs([list(record["angle"].values()) for record in records])
    return _fit(angles, np.broadcast_to(widths, angles.shape))


def _within_epochs(layers: Sequence[Sequence[float]]) -> np.ndarray:
    """Return logarithms, epochs x layers, less their mean over an epoch's layers.

    Else the steps of the learning rate, which all layers share, are all there is.
    """
    logs = np.log(layers)
    return logs - logs.mean(axis=1, keepdims=True)


def _fit(angles: np.ndarray, predicted: np.ndarray) -> Fit:
    return Fit(
        float(np.corrcoef(angles.ravel(), predicted.ravel())[0, 1]),
        float((angles * predicted).sum() / (predicted**2).sum()),
    )
