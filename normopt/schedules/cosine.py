"""Cosine annealing with warm restarts, as a function of the count.

The value of such a schedule is a multiplier eta_t of an update and of its decay, not a
learning rate. It can be used wherever optax takes a schedule.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.schedules.cycles import annealed, check_cycles, eta_at, lengths_of, turned


def cosine_restarts(
    cycle_steps: int | Sequence[int],
    eta_min: optax.ScalarOrSchedule = 0.0,
    eta_max: optax.ScalarOrSchedule = 1.0,
    t_mult: int = 1,
    autorestart: bool = True,
    t_cur: int = 0,
) -> Callable[[Any], jax.Array]:
    r"""Makes a schedule that falls along a cosine, and restarts after each cycle.

    .. math::
      \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
        \left(1 + \cos \frac{\pi \, t_\mathrm{cur}}{T - 1}\right)

    A cycle has T updates: the first one uses eta_max, the last one eta_min. The
    position in the cycle is computed in integers, so it is exact up to a count of 2^31.

    Args:
      cycle_steps: T of the first cycle: its number of updates, at least 2; or a
        sequence with one such number for each cycle. After the sequence, its last
        number repeats.
      eta_min: the value at the end of a cycle, at least 0: a number, or a schedule of
        the count.
      eta_max: the value at the beginning of a cycle, at least `eta_min`: a number, or a
        schedule of the count.
      t_mult: each cycle is `t_mult` times as long as the one before.
      autorestart: whether to begin a new cycle when a cycle ends. Otherwise the cosine
        rises and falls again, without a jump.
      t_cur: the position of the first update in the first cycle, at least 0.

    Returns:
      A schedule: a function from a count, or an array of counts, to eta_t.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for fewer than 2 steps, for an `eta_min` above `eta_max`,
        and, with `autorestart`, for a `t_cur` outside the first cycle. Also if two of
        these are true: `t_mult` is not 1; `cycle_steps` has several lengths;
        `autorestart` is False.

    Examples:
      Cycles of 3 and 6 updates. Each one begins at 1 and ends at 0:

      >>> schedule = normopt.cosine_restarts(3, t_mult=2)
      >>> [round(float(schedule(count)), 2) for count in range(9)]
      [1.0, 0.5, 0.0, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]

      The result is a multiplier. To use it as a learning rate, set `eta_max` to the
      largest learning rate:

      >>> import optax
      >>> tx = optax.sgd(normopt.cosine_restarts((240, 360, 300), eta_max=0.1))

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
      2017, arXiv 1608.03983, equation 5, and "Decoupled Weight Decay Regularization",
      2019, arXiv 1711.05101, appendix B. The papers divide by T instead of T - 1, so
      there eta_min is never reached.
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
        return annealed(t, half, eta_at(eta_min, count), eta_at(eta_max, count))

    return schedule


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
