"""Restarts the schedule in an optimizer state, and reads its value for a log."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normopt.checks import check_integer
from normopt.schedules.warm_restarts import WarmRestartsState
from normopt.transforms.scheduling import FollowedState


def restart(opt_state: Any, t_cur: Any = 0, cycle_steps: Any = None) -> Any:
    """Restarts every `WarmRestarts` in a state: the next update uses eta(t_cur).

    Pass the state of any optimizer or wrapper, or a part of this state. It may be
    sharded, or restored from a checkpoint. The call works inside and outside of
    `jax.jit`. For an `nnx.Optimizer` write
    `optimizer.opt_state = normopt.restart(optimizer.opt_state)`. Nothing else in the
    state changes, so moments stay.

    Args:
      opt_state: a state with at least one `WarmRestartsState`.
      t_cur: the new position in the cycle, at least 0; 0 is the beginning. It may be
        past the end of the cycle, where the cosine rises again. With `autorestart`, the
        next cycle then begins after one update.
      cycle_steps: if given, the length of the cycle from now on, at least 2. The
        lengths of later cycles follow from `t_mult`, or from the sequence of lengths.

    Returns:
      The new state, of the same structure, shapes, dtypes and sharding.

    Raises:
      TypeError: if a position or a length is not an integer.
      ValueError: if the state holds no `WarmRestarts`, for a negative position, or a
        length below 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> tx = normopt.adamw(0.1, schedule=normopt.WarmRestarts(10))
      >>> state = tx.init(jnp.ones(2))
      >>> state = normopt.restart(state, t_cur=9)
      >>> updates, state = tx.update(jnp.ones(2), state, jnp.ones(2))
      >>> float(normopt.current_eta(state))
      0.0
    """
    check_integer("t_cur", t_cur, 0, hint="0 begins the cycle again")
    if cycle_steps is not None:
        check_integer("cycle_steps", cycle_steps, 2)
    if not _found(opt_state, WarmRestartsState):
        raise ValueError(
            "the state holds no schedule that can be restarted. Pass "
            "schedule=normopt.WarmRestarts(...) to the optimizer: cosine_restarts is a "
            "function of the count, which nothing can move. A checkpoint is to be "
            "restored into the structure of jax.eval_shape(optimizer.init, params), "
            "without which it comes as plain dictionaries"
        )

    def moved(node: Any) -> Any:
        if not isinstance(node, WarmRestartsState):
            return node
        length = node.cycle_steps
        if cycle_steps is not None:
            length = _filled(node.cycle_steps, cycle_steps)
        return node._replace(t_cur=_filled(node.t_cur, t_cur), cycle_steps=length)

    return jax.tree.map(moved, opt_state, is_leaf=_is_a(WarmRestartsState))


def current_eta(opt_state: Any) -> jax.Array:
    """Returns the value eta_t that a schedule had at the last update, to log it.

    Args:
      opt_state: the state of any optimizer or wrapper with one `WarmRestarts`, or with
        one function of the step count as `schedule=`. If such a function is inside
        `optax.inject_hyperparams`, read its value from
        `opt_state.hyperparams["schedule"]` instead. If you wrote a stateful schedule
        yourself, read its own state.

    Returns:
      A float scalar. Before the first update, it is the value that the first update
      will use.

    Raises:
      ValueError: if the state holds no such schedule, or several.

    Examples:
      >>> import jax.numpy as jnp
      >>> schedule = normopt.cosine_restarts(10, eta_max=0.5)
      >>> state = normopt.adamw(0.1, schedule=schedule).init(jnp.ones(2))
      >>> float(normopt.current_eta(state))
      0.5
    """
    found = _found(opt_state, (WarmRestartsState, FollowedState))
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} schedules given as `schedule=`, and "
            "current_eta reads the value of one: "
            + (
                "pass a part of the state"
                if found
                else "a number has no state, a learning rate is not among them, and "
                "under optax.inject_hyperparams the value stands in "
                'opt_state.hyperparams["schedule"]'
            )
        )
    (eta,) = jax.tree.leaves(found[0].eta)
    return eta


def _is_a(kinds: Any) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, kinds)


def _found(tree: Any, kinds: Any) -> list[Any]:
    nodes = jax.tree.leaves(tree, is_leaf=_is_a(kinds))
    return [node for node in nodes if isinstance(node, kinds)]


def _filled(old: Any, value: Any) -> Any:
    """Puts a number where an array is, in its dtype, sharding and container."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), old)
