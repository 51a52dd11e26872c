"""What links share that follow a schedule: its state is held once, around them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.checks import check_number, is_scalar
from normopt.keeping import MADE_FOR_OTHERS
from normopt.leafwise import leafwise


class FollowedState(NamedTuple):
    """What `ScheduledState.schedule` holds if the schedule is a function of count."""

    count: jax.Array  # int32 scalar: updates done
    eta: jax.Array  # float scalar: eta_t of the last update (at first, of the next)


@dataclasses.dataclass(frozen=True)
class _Followed:
    """A schedule of the count, as a stateful one."""

    schedule: optax.Schedule

    def init(self) -> FollowedState:
        count = jnp.zeros([], jnp.int32)
        eta = self(FollowedState(count, count))
        check_number("schedule", eta, 0)
        return FollowedState(count, eta)

    def __call__(self, state: FollowedState, **extra_args: Any) -> jax.Array:
        del extra_args
        if not isinstance(state, FollowedState):
            raise TypeError(
                "`schedule` is a function of the count and needs a FollowedState, got "
                f"{type(state).__name__}: {MADE_FOR_OTHERS}; call init again"
            )
        # A copy, as a schedule may give an array that is the user's own.
        return jnp.array(self.schedule(state.count), float)

    def update(self, state: FollowedState, **extra_args: Any) -> FollowedState:
        count: Any = optax.safe_increment(state.count)
        return FollowedState(count, self(state, **extra_args))


class ScheduledState(NamedTuple):
    """State of an optimizer or link whose option `schedule` is not just a number."""

    schedule: Any  # FollowedState, WarmRestartsState, or that of your schedule
    inner: Any  # the state of the optimizer or link without its schedule


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
    _check_schedule(schedule)
    eta_now: Any = 1.0 if schedule is None else schedule
    # Built once beforehand, so that bad options are known now.
    inner = optax.with_extra_args_support(build(1.0 if callable(eta_now) else eta_now))

    def update_fixed(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if isinstance(state, ScheduledState):
            raise TypeError(
                f"no `schedule` is given, and the state is that of one: "
                f"{MADE_FOR_OTHERS}; go on with state.inner, or call init again"
            )
        return inner.update(updates, state, params, **extra_args)

    if not callable(schedule):
        return optax.GradientTransformationExtraArgs(inner.init, update_fixed)
    following = _stateful(schedule)

    def init_fn(params: optax.Params) -> ScheduledState:
        return ScheduledState(following.init(), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScheduledState]:
        if not isinstance(state, ScheduledState):
            raise TypeError(
                "`schedule` needs a ScheduledState, which holds its place, got "
                f"{type(state).__name__}: {MADE_FOR_OTHERS}, or restored without a "
                "target; call init again, or restore into jax.eval_shape(init, params)"
            )
        eta = following(state.schedule, **extra_args)
        check_number("schedule", eta, 0)
        now = optax.with_extra_args_support(build(eta))
        updates, inner_state = now.update(updates, state.inner, params, **extra_args)
        after = following.update(state.schedule, **extra_args)
        return updates, ScheduledState(after, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_eta(eta: Any) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by eta_t, a traced one in the dtype of each leaf."""
    return leafwise("scale_by_eta", _scale, share=lambda state: (eta,))


def scale_by_rate(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by minus the learning rate, a number or a schedule.

    As `optax.scale_by_learning_rate` does, with its states; but in float32 at least,
    and without raising the dtype of the updates to that of a rate that is an array, as
    an injected one is.
    """
    schedule: Any = learning_rate
    counted: dict[str, Any] = {}
    if callable(learning_rate):
        counted["state"] = optax.ScaleByScheduleState
        counted["start"] = lambda: {"count": jnp.zeros([], jnp.int32)}

    def share(state: Any) -> tuple[Any]:
        # The count is already that of this step; a schedule begins at 0.
        return (-(schedule(state.count - 1) if counted else schedule),)

    return leafwise("scale_by_rate", _scale, share=share, also_integers=True, **counted)


def _scale(u, w, axes, option, kept, shared):
    return u * shared[0], kept


def _check_schedule(schedule: Any) -> None:
    """Raises unless `schedule` is None, a number of at least 0, or a schedule."""
    is_class = isinstance(schedule, type)
    if schedule is None or (callable(schedule) and not is_class):
        return
    if not is_scalar(schedule):
        raise TypeError(
            "`schedule` must be eta_t as one number, a schedule of the step count or a "
            f"WarmRestarts, got schedule={schedule!r}"
        )
    check_number("schedule", schedule, 0)


def _stateful(schedule: Any) -> Any:
    """Gives a schedule of the count a state; a stateful one has its own."""
    if isinstance(schedule, optax.schedules.StatefulSchedule):
        return schedule
    return _Followed(schedule)
