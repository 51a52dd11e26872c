"""What links share that follow a schedule: its state is held once, around them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from normopt.following import check_schedule, stateful


class ScheduledState(NamedTuple):
    """State of what is given a `schedule`."""

    schedule: Any  # of the schedule: FollowedState, WarmRestartsState
    inner: Any  # of what is scheduled


def scheduled(
    schedule: Any, build: Callable[[Any], optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Builds a transformation around eta_t, the value of a schedule at each step.

    Args:
      schedule: None for an eta_t of 1, a number, a schedule of the count, or a stateful
        schedule.
      build: from eta_t to the transformation, whose state must not depend on it. It may
        use eta_t in several places: they see the same one.

    Returns:
      What `build` gives, if eta_t is a number; else it with a `ScheduledState`.
    """
    check_schedule(schedule)
    if not callable(schedule):
        eta = 1.0 if schedule is None else schedule
        return optax.with_extra_args_support(build(eta))
    # Built once beforehand, so that bad options are known now.
    inner = build(1.0)
    following = stateful(schedule)

    def init_fn(params: optax.Params) -> ScheduledState:
        return ScheduledState(following.init(), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScheduledState]:
        eta = following(state.schedule, **extra_args)
        now = optax.with_extra_args_support(build(eta))
        updates, inner_state = now.update(updates, state.inner, params, **extra_args)
        after = following.update(state.schedule, **extra_args)
        return updates, ScheduledState(after, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
