"""Cosine annealing with warm restarts: as a function, and as a state one can restart.

The value of such a schedule is a multiplier eta_t of an update and of its decay, not a
learning rate. As a function of the count it can stand for any schedule of optax; as a
state it also restarts when it is told to.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.checks import check_integer, check_not_negative
from normopt.cycles import LAST_COUNT, annealed, check_cycles, lengths_of, turned
from normopt.rules import PerLeaf, check_per_leaf, scaled


def cosine_restarts(
    cycle_steps: int | Sequence[int],
    eta_min: optax.ScalarOrSchedule = 0.0,
    eta_max: optax.ScalarOrSchedule = 1.0,
    t_mult: int = 1,
    autorestart: bool = True,
    t_cur: int = 0,
) -> Callable[[Any], jax.Array]:
    r"""Anneals a multiplier along a cosine, again and again: a schedule of the count.

    .. math::
      \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
        \left(1 + \cos \frac{\pi \, t_\mathrm{cur}}{T - 1}\right)

    A cycle has T updates, the first at eta_max and the last at eta_min. The cycle that
    a count falls into is looked up in a table of integers: nothing drifts, for counts
    up to 2^31.

    Args:
      cycle_steps: T, the number of updates in the first cycle, at least 2; or a
        sequence of such numbers, one for each cycle, the last of which repeats.
      eta_min: where a cycle ends, at least 0: a number, or a schedule of the count.
      eta_max: where a cycle begins, likewise; not below `eta_min`.
      t_mult: what the length of a cycle is multiplied by to give that of the next.
      autorestart: whether a cycle follows on the first; else the cosine goes on, up
        again and down again, without a jump.
      t_cur: the position in the first cycle of the first update, at least 0.

    Returns:
      A schedule: from a count, or an array of counts, to eta_t.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for fewer than 2 steps, `eta_min` above `eta_max`, a
        `t_cur` outside the first cycle, and for `t_mult` other than 1, or several
        lengths, without `autorestart`.

    Examples:
      Cycles of 3 and 6 updates, each of which begins at 1 and ends at 0:

      >>> schedule = normopt.cosine_restarts(3, t_mult=2)
      >>> [round(float(schedule(count)), 2) for count in range(9)]
      [1.0, 0.5, 0.0, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]

      It is a factor; as a learning rate it wants the largest one:

      >>> import optax
      >>> tx = optax.sgd(normopt.cosine_restarts((240, 360, 300), eta_max=0.1))

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
      2017, arXiv 1608.03983, equation 5, and "Decoupled Weight Decay Regularization",
      2019, arXiv 1711.05101, appendix B; there T divides where T - 1 does here, and
      eta_min is never reached.
    """
    check_cycles(cycle_steps, eta_min, eta_max, t_mult, autorestart, t_cur)
    lengths = [int(length) for length in lengths_of(cycle_steps)]
    # Counts and t_cur are both below 2^31: their sum has room in 32 bits.
    while t_mult > 1 and sum(lengths) < 2**32:
        lengths.append(lengths[-1] * int(t_mult))
    starts = [0, *itertools.accumulate(lengths)][:-1]
    in_range = sum(start < 2**32 for start in starts)
    starts, lengths = starts[:in_range], lengths[:in_range]

    def place_in_cycle(position: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = jnp.asarray(starts, jnp.uint32)
        index = jnp.searchsorted(table, position, "right", method="compare_all") - 1
        t = position - table[index]
        # The last length repeats; one that t_mult grew to is longer than all counts.
        longest = jnp.asarray(min(lengths[-1], 2**32 - 1), jnp.uint32)
        t = jnp.where(index == len(lengths) - 1, t % longest, t)
        # In floating point, for a last cycle that ends beyond the integers.
        return t, jnp.asarray([float(n - 1) for n in lengths], float)[index]

    def schedule(count: Any) -> jax.Array:
        position = _unsigned(count) + jnp.asarray(t_cur, jnp.uint32)
        if autorestart:
            t, half = place_in_cycle(position)
        else:
            half = jnp.asarray(lengths[0] - 1, jnp.uint32)
            t = turned(position, half)
        return annealed(t, half, _at(eta_min, count), _at(eta_max, count))

    return schedule


class WarmRestartsState(NamedTuple):
    """State of `WarmRestarts`."""

    count: jax.Array  # int32 scalar: updates done
    t_cur: jax.Array  # int32 scalar: position of the next update in its cycle
    cycle_steps: jax.Array  # int32 scalar: the length of that cycle
    cycle: jax.Array  # int32 scalar: how many cycles ended by themselves
    eta: jax.Array  # float scalar: what the last update used; first, what it will


@dataclasses.dataclass(frozen=True)
class WarmRestarts:
    r"""`cosine_restarts` with its position in a state, which `restart` can move.

    .. math::
      \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
        \left(1 + \cos \frac{\pi \, t_\mathrm{cur}}{T - 1}\right)

    It implements optax's protocol `optax.schedules.StatefulSchedule`, so it can be the
    `schedule` of `decay_weights`, `adamw`, `sgdw` and `nadamw`, and any number at all
    under `optax.inject_hyperparams`. Left alone it equals `cosine_restarts`.

    Args:
      cycle_steps: T, the number of updates in the first cycle, at least 2; or a
        sequence of such numbers, one for each cycle, the last of which repeats.
      eta_min: where a cycle ends, at least 0: a number, or a schedule of the count of
        all updates.
      eta_max: where a cycle begins, likewise; not below `eta_min`.
      t_mult: what the length of a cycle is multiplied by to give that of the next, no
        cycle being longer than 2^31 - 1 steps.
      autorestart: whether the next cycle begins by itself; else the cosine goes on, up
        again and down again, until `restart` is called.
      t_cur: the position in the first cycle of the first update, at least 0.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, as `cosine_restarts` does.

    Examples:
      The training loop decides when to begin again, and for how long:

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
            _at(self.eta_min, state.count),
            _at(self.eta_max, state.count),
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


def normalized_decay(lambda_norm: PerLeaf, total_steps: int) -> PerLeaf:
    r"""Turns a normalized weight decay into one per update.

    .. math:: \lambda = \lambda_\mathrm{norm} \sqrt{1 / T}

    The best decay falls with the number of updates; the normalized one hardly depends
    on it, on the batch size and on the number of epochs.

    Args:
      lambda_norm: the normalized decay, at least 0: a number, `{pattern: number}`, or a
        callable from params to a tree of numbers.
      total_steps: T, at least 2: the updates of one cycle, as in the paper, where each
        warm restart begins a training of its own; or those of all of training, which
        decays less.

    Returns:
      The decay, in the form that was given.

    Raises:
      TypeError: if a decay is not a number or `total_steps` not an integer.
      ValueError: for a negative decay, or fewer than 2 steps.

    Examples:
      >>> normopt.normalized_decay({"kernel$": 0.05, "bias$": 0.0}, 2500)
      {'kernel$': 0.001, 'bias$': 0.0}

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, appendix B.1, with T = B E / b batch passes.
    """
    check_per_leaf("lambda_norm", lambda_norm, check_not_negative)
    check_integer("total_steps", total_steps, 2, static=True)
    return scaled(lambda_norm, math.sqrt(1 / total_steps))


def _unsigned(count: Any) -> jax.Array:
    """Gives a count 32 bits without a sign, which have room for 2^31."""
    if not isinstance(count, int | float | np.ndarray | np.generic | jax.Array):
        raise TypeError(
            "cosine_restarts(...) is a function of the step count, got a "
            f"{type(count).__name__}: it can be a `schedule`, no option per leaf"
        )
    # `optax.join_schedules` asks for counts below 0, and drops what it gets for them.
    of_numbers: Any = jnp if isinstance(count, jax.Array) else np
    return jnp.asarray(of_numbers.maximum(count, 0).astype(np.uint32))


def _at(eta: Any, count: Any) -> Any:
    return eta(count) if callable(eta) else eta
