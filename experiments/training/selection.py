"""The weights that were best on the validation data, kept beside the newest ones.

They are part of the state that a checkpoint holds, so a resumed run tests what it would
have tested had nothing stopped it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.data import Data
from experiments.training.steps import Sums, TrainState


class Best(NamedTuple):
    """The weights of the epoch of the largest merit, the first of equal ones."""

    params: Any  # tree of float32
    model_state: Any  # tree
    merit: jax.Array  # float32 scalar: on the validation data; -inf before any
    step: jax.Array  # int32 scalar: after which they were taken


def keep_best(state: TrainState) -> TrainState:
    """Return a state before the first step with room for its best weights."""
    # Copies: a step takes the buffers of its state, each of which it may see once.
    params, model_state = jax.tree.map(jnp.copy, (state.params, state.model_state))
    nothing = jnp.full((), -jnp.inf, jnp.float32)
    best = Best(params, model_state, nothing, jnp.zeros((), jnp.int32))
    return state._replace(best=best)


def select(state: TrainState, validation: Sums, data: Data) -> Best:
    """Return the better of the best weights and the state's own.

    Args:
        state: of a run that keeps its best.
        validation: what the state's own weights give.
        data: that say how good this is.
    """
    merit = data.merit(validation.loss, validation.correct).astype(jnp.float32)
    own = Best(state.params, state.model_state, merit, state.step)
    better = own.merit > state.best.merit
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), own, state.best)


def chosen(state: TrainState) -> TrainState:
    """Return the state whose weights are tested: the best if kept, or the last."""
    if state.best is None:
        return state
    best = state.best
    return state._replace(
        params=best.params, model_state=best.model_state, step=best.step
    )
