"""Cosine annealing with warm restarts, as a state that a training loop can move."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.schedules.cycles import (
    LAST_COUNT,
    annealed,
    check_cycles,
    eta_at,
    lengths_of,
    turned,
)


class WarmRestartsState(NamedTuple):
    """State of `WarmRestarts`."""

    count: jax.Array  # int32 scalar: updates done
    t_cur: jax.Array  # int32 scalar: position of the next update in its cycle
    cycle_steps: jax.Array  # int32 scalar: the length of this cycle
    cycle: jax.Array  # int32 scalar: number of cycles that ended by themselves
    eta: jax.Array  # float scalar: eta_t of the last update (at first, of the next)


@dataclasses.dataclass(frozen=True)
class WarmRestarts:
    r"""A `cosine_restarts` that the training loop can restart, by `normopt.restart`.

    .. math::
      \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
        \left(1 + \cos \frac{\pi \, t_\mathrm{cur}}{T - 1}\right)

    Pass it as the `schedule` of `decay_weights`, `adamw`, `sgdw` or `nadamw`. It is an
    `optax.schedules.StatefulSchedule`, so under `optax.inject_hyperparams` you can
    pass it in place of any number. Without a `restart` its values are those of
    `cosine_restarts`.

    Args:
      cycle_steps: T of the first cycle: its number of updates, at least 2; or a
        sequence with one such number for each cycle. After the sequence, its last
        number repeats.
      eta_min: the value at the end of a cycle, at least 0: a number, or a schedule of
        the count of all updates.
      eta_max: the value at the beginning of a cycle, at least `eta_min`: a number, or a
        schedule of the count of all updates.
      t_mult: each cycle is `t_mult` times as long as the one before, up to 2^31 - 1
        steps.
      autorestart: whether to begin a new cycle when a cycle ends. Otherwise the cosine
        rises and falls again until `restart` is called.
      t_cur: the position of the first update in the first cycle, at least 0.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, as `cosine_restarts` does.

    Examples:
      The training loop decides when the next cycle begins, and how long it is:

      >>> import jax.numpy as jnp
      >>> schedule = normopt.WarmRestarts(3, autorestart=False)
      >>> tx = normopt.sgdw(0.1, schedule=schedule)
      >>> params, etas = jnp.ones(1), []
      >>> state = tx.init(params)
      >>> for step in range(7):
      ...     if step == 3:
      ...         state = normopt.restart(state, cycle_steps=5)
      ...     updates, state = tx.update(params, state, params)
      ...     etas.append(round(float(normopt.current_eta(state)), 2))
      >>> etas
      [1.0, 0.5, 0.0, 1.0, 0.85, 0.5, 0.15]

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
      2017, arXiv 1608.03983, equation 5; see `cosine_restarts`.
    """

    cycle_steps: int | Sequence[int]
    eta_min: optax.ScalarOrSchedule = 0.0
    eta_max: optax.ScalarOrSchedule = 1.0
    t_mult: int = 1
    autorestart: bool = True
    t_cur: int = 0

    def __post_init__(self) -> None:
        """Refuses what `cosine_restarts` refuses."""
        check_cycles(*(getattr(self, one.name) for one in dataclasses.fields(self)))
        if isinstance(self.cycle_steps, list):
            object.__setattr__(self, "cycle_steps", tuple(self.cycle_steps))

    def init(self) -> WarmRestartsState:
        """Gives the state before the first update."""
        zero = np.zeros([], np.int32)
        start = WarmRestartsState(
            count=jnp.asarray(zero),
            t_cur=jnp.asarray(self.t_cur, jnp.int32),
            cycle_steps=jnp.asarray(lengths_of(self.cycle_steps)[0], jnp.int32),
            cycle=jnp.asarray(zero),
            eta=jnp.zeros([], float),
        )
        return start._replace(eta=self(start))

    def __call__(self, state: WarmRestartsState, **extra_args: Any) -> jax.Array:
        """Gives the value that the next update uses."""
        del extra_args
        if not isinstance(state, WarmRestartsState):
            raise TypeError(
                "a WarmRestarts keeps a state and is no function of the count: pass it "
                "as `schedule=`, or as any number under optax.inject_hyperparams; "
                "cosine_restarts(...) with the same arguments is such a function"
            )
        half = state.cycle_steps - 1
        return annealed(
            turned(state.t_cur, half),
            half,
            eta_at(self.eta_min, state.count),
            eta_at(self.eta_max, state.count),
        )

    def update(self, state: WarmRestartsState, **extra_args: Any) -> WarmRestartsState:
        """Gives the state after one more update."""
        eta = self(state, **extra_args)
        t_cur: Any = optax.safe_increment(state.t_cur)
        cycle_steps, cycle = state.cycle_steps, state.cycle
        if self.autorestart:
            ends = t_cur >= cycle_steps
            t_cur = jnp.where(ends, 0, t_cur)
            cycle = jnp.where(ends, optax.safe_increment(cycle), cycle)
            following = self._length_after(cycle_steps, cycle)
            cycle_steps = jnp.where(ends, following, cycle_steps)
        count: Any = optax.safe_increment(state.count)
        return WarmRestartsState(count, t_cur, cycle_steps, cycle, eta)

    def _length_after(self, cycle_steps: jax.Array, cycle: jax.Array) -> jax.Array:
        lengths = lengths_of(self.cycle_steps)
        if len(lengths) > 1:
            return jnp.asarray(lengths, jnp.int32)[jnp.minimum(cycle, len(lengths) - 1)]
        t_mult = int(self.t_mult)
        has_room = cycle_steps <= LAST_COUNT // t_mult
        return jnp.where(has_room, cycle_steps * t_mult, LAST_COUNT)
