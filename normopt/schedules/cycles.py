"""Cycles of a cosine: how long they may be, and the value at a position in one."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from normopt.checks import check_flag, check_integer, check_number

LAST_COUNT = 2**31 - 1  # where optax's counts stop


def lengths_of(cycle_steps: Any) -> list[int]:
    """Lists the lengths of cycles that are given: a number, or a sequence of them."""
    return list(cycle_steps) if isinstance(cycle_steps, list | tuple) else [cycle_steps]


def check_cycles(
    cycle_steps: Any,
    eta_min: Any,
    eta_max: Any,
    t_mult: int,
    autorestart: bool,
    t_cur: int,
) -> None:
    """Raises for arguments of a cosine with restarts that have no meaning."""
    lengths = lengths_of(cycle_steps)
    if not lengths:
        raise ValueError("`cycle_steps` must name at least one length, got none")
    for length in lengths:
        hint = "or give a list or tuple of such lengths"
        check_integer("cycle_steps", length, 2, static=True, hint=hint)
    check_integer("t_mult", t_mult, 1, static=True)
    check_integer("t_cur", t_cur, 0, static=True, hint="0 is the start of a cycle")
    check_flag("autorestart", autorestart)
    for option, eta in (("eta_min", eta_min), ("eta_max", eta_max)):
        if isinstance(eta, optax.schedules.StatefulSchedule):
            raise TypeError(
                f"`{option}` must be one number or a schedule of the step count, got "
                f"the stateful {eta!r}; cosine_restarts is such a schedule"
            )
        if not callable(eta):
            check_number(option, eta, 0)
    ends = (eta_min, eta_max)
    are_known = not any(callable(eta) or isinstance(eta, Tracer) for eta in ends)
    if are_known and float(eta_min) > float(eta_max):
        raise ValueError(
            "`eta_min` must not be above `eta_max`, got "
            f"eta_min={float(eta_min):g} and eta_max={float(eta_max):g}"
        )
    if t_mult != 1 and not autorestart:
        raise ValueError(
            f"`t_mult` must be 1 without autorestart, got t_mult={t_mult}: the cosine "
            "goes on and no cycle follows; restart(..., cycle_steps=n) sets the length "
            "of the next one by hand"
        )
    if len(lengths) > 1 and not autorestart:
        raise ValueError(
            f"`cycle_steps` must be one number without autorestart, got {cycle_steps}: "
            "restart(..., cycle_steps=n) sets the length of the next cycle by hand"
        )
    if len(lengths) > 1 and t_mult != 1:
        raise ValueError(
            f"`t_mult` must be 1 beside a sequence of lengths, got t_mult={t_mult} and "
            f"cycle_steps={cycle_steps}: the sequence says all lengths"
        )
    if autorestart and t_cur >= lengths[0]:
        raise ValueError(
            "`t_cur` counts within a cycle and must be below its length, got "
            f"t_cur={t_cur} and cycle_steps={lengths[0]}"
        )


def turned(t: jax.Array, half: jax.Array) -> jax.Array:
    """Takes t to [0, half], where it turns back: the cosine has a period of 2 half."""
    rest = t % half
    return jnp.where((t // half) % 2 == 1, half - rest, rest)


def annealed(t: jax.Array, half: jax.Array, eta_min: Any, eta_max: Any) -> jax.Array:
    """Gives the cosine's value at t, from eta_max at 0 to eta_min at half."""
    share = 0.5 * (1 + jnp.cos(jnp.pi * (t.astype(float) / half.astype(float))))
    # Not eta_min + share * (eta_max - eta_min), which can miss eta_max by a rounding.
    return share * eta_max + (1 - share) * eta_min


def eta_at(eta: Any, count: Any) -> Any:
    """Gives an end of the cosine at a count: a number stays, a schedule is asked."""
    return eta(count) if callable(eta) else eta
