"""The four optimizers of a network: SGD with momentum and Adam, plain and normalized.

As the notebooks of the Keras implementation have them: momentum of Nesterov, the eps of
Keras, and a new optimizer at each learning rate, whose moments begin at zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import normopt

METHODS = ("SGD", "normalized SGD", "Adam", "normalized Adam")
# Those of smoke runs: each kind once, one of them normalized.
SMOKE = ("SGD", "normalized Adam")
MOMENTUM = 0.9
EPS = 1e-7


def kind_of(method: str) -> str:
    """Return "SGD" or "Adam"."""
    return method.removeprefix("normalized ")


def optimizer_of(
    method: str, norm: str, rates: Sequence[float], steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return one of `METHODS` and its learning rate by count of updates.

    Args:
        method: its name.
        norm: of normopt, by which gradients are divided.
        rates: the learning rates, one after the other.
        steps: updates at each of them.
    """
    schedule = optax.join_schedules(
        [optax.constant_schedule(rate) for rate in rates],
        [steps * rank for rank in range(1, len(rates))],
    )
    optimizer = optax.chain(
        begun_anew(direction_of(method), steps), optax.scale_by_learning_rate(schedule)
    )
    return maybe_normalized(optimizer, method, norm), schedule


def direction_of(method: str) -> optax.GradientTransformation:
    """Return what one of `METHODS` makes of gradients, without a learning rate."""
    if kind_of(method) == "SGD":
        return optax.trace(MOMENTUM, nesterov=True)
    return optax.scale_by_adam(eps=EPS)


def maybe_normalized(
    optimizer: optax.GradientTransformation, method: str, norm: str
) -> optax.GradientTransformation:
    """Return the optimizer, which gets normalized gradients if the method says so.

    Args:
        optimizer: of the method's kind.
        method: one of `METHODS`.
        norm: of normopt, by which gradients are divided.
    """
    if kind_of(method) == method:
        return optimizer
    return normopt.normalized(optimizer, norm=norm)


class BegunAnewState(NamedTuple):
    """State of `begun_anew`."""

    count: jax.Array  # int32 scalar: updates done
    inner: Any  # that of the inner transformation


def begun_anew(
    inner: optax.GradientTransformation, every: int
) -> optax.GradientTransformation:
    """Return `inner` with its first state again before each `every`-th update."""

    def init(params: Any) -> BegunAnewState:
        return BegunAnewState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        begins = state.count % every == 0
        old = jax.tree.map(
            lambda new, kept: jnp.where(begins, new, kept),
            inner.init(updates),
            state.inner,
        )
        updates, new = inner.update(updates, old, params)
        return updates, BegunAnewState(state.count + 1, new)

    return optax.GradientTransformation(init, update)
