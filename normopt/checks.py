"""Refusals at build time: a bad number is named before any device work is done.

Only concrete numbers are looked at. Under `optax.inject_hyperparams`, `jax.jit` or
`jax.vmap` a hyper-parameter is traced, has no value yet, and passes.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from normopt.numerics import wide_dtype


def is_scalar(value: Any) -> bool:
    """Tells whether `value` is one real number: a Python one, or a 0-d array."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return value.ndim == 0 and not jnp.iscomplexobj(value)
    return isinstance(value, int | float)


def is_sequence(value: Any) -> bool:
    """Tells whether `value` is a tuple or a list of what an option takes."""
    # In JAX 0.6.0 a PartitionSpec is a tuple; in later versions it is none.
    return isinstance(value, tuple | list) and not isinstance(value, PartitionSpec)


def check_number(
    option: str,
    value: Any,
    at_least: float = -math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    finite: bool = True,
    where: str = "",
) -> None:
    """Raises unless `value` is one number in the stated range.

    Args:
      option: the option's name, for the message.
      value: what was given for it.
      at_least: the smallest number allowed.
      above: every number allowed is larger than this.
      below: every number allowed is smaller than this.
      finite: whether infinity is refused; NaN always is.
      where: the pattern or leaf path that the value stands at, for the message.

    Raises:
      TypeError: if `value` is not a scalar.
      ValueError: if it is a concrete number outside the range.
    """
    place = f" at {where!r}" if where else ""
    if isinstance(value, bool) or not is_scalar(value):
        raise TypeError(f"`{option}` must be one number, got {option}={value!r}{place}")
    if isinstance(value, Tracer):
        return
    number = _as_float(value)
    wanted = []
    if at_least > -math.inf:
        wanted.append(f"at least {at_least:g}")
    if above > -math.inf:
        wanted.append(f"above {above:g}")
    if below < math.inf:
        wanted.append(f"below {below:g}")
    elif finite:
        wanted.append("finite")
    in_range = number >= at_least and number > above
    in_range &= number < below or below == math.inf
    if math.isnan(number) or (finite and math.isinf(number)) or not in_range:
        wish = " and ".join(wanted) or "a number"
        raise ValueError(f"`{option}` must be {wish}, got {option}={number:g}{place}")


def _as_float(value: Any) -> float:
    """Gives infinity for integers beyond the range of floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_integer(
    option: str, value: Any, at_least: int, *, static: bool = False, hint: str = ""
) -> None:
    """Raises unless `value` is one integer in the range that optax counts in.

    Args:
      option: the option's name, for the message.
      value: what was given for it.
      at_least: the smallest integer allowed; the largest is 2^31 - 1.
      static: whether the value must be known when a step is traced.
      hint: what the message adds about the right form.

    Raises:
      TypeError: if `value` is not an integer.
      ValueError: if it is a concrete one outside the range.
    """
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_array:
        is_integer = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    is_traced = isinstance(value, Tracer)
    if static and is_traced:
        hint = (
            "optax.inject_hyperparams takes an integer for a number that may change: "
            f"give it static_args=({option!r},)"
        )
    hint = f"; {hint}" if hint else ""
    if not is_integer or (static and is_traced):
        raise TypeError(f"`{option}` must be an integer, got {option}={value!r}{hint}")
    if not is_traced and not at_least <= int(value) < 2**31:
        raise ValueError(
            f"`{option}` must be at least {at_least} and below 2^31, got "
            f"{option}={int(value)}{hint}"
        )


def check_flag(option: str, value: Any) -> None:
    """Raises unless `value` is True or False: the text "false" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{option}` must be True or False, got {option}={value!r}")


def check_inner(name: str, inner: Any, option: str = "inner") -> None:
    """Raises unless what `name` is to wrap is an optimizer or a link."""
    if not isinstance(inner, optax.GradientTransformation):
        hint = "from a configuration, build it with normopt.make"
        if isinstance(inner, optax.MultiSteps):
            hint = "pass what its gradient_transformation() returns"
        raise TypeError(
            f"`{name}` wraps an optimizer such as optax.sgd(0.1), got "
            f"{option}={inner!r}; {hint}"
        )


def check_learning_rate(learning_rate: Any, option: str = "learning_rate") -> None:
    """Raises unless `learning_rate` is a number of at least 0 or a schedule."""
    if isinstance(learning_rate, optax.schedules.StatefulSchedule):
        raise TypeError(
            f"`{option}` must be one number or a schedule of the step count, got the "
            f"stateful {learning_rate!r}: pass it as `schedule=`, or give it its state "
            "by optax.inject_hyperparams"
        )
    if callable(learning_rate):
        return
    if not is_scalar(learning_rate):
        raise TypeError(
            f"`{option}` must be one number or a schedule of the step count, got "
            f"{option}={learning_rate!r}"
        )
    check_number(option, learning_rate, 0)


def check_not_negative(option: str, value: Any, where: str) -> None:
    """Checks one value of a per-leaf option that is a number of at least 0."""
    check_number(option, value, 0, where=where)


def check_radius(option: str, value: Any, where: str) -> None:
    """Checks one value of a radius per leaf: above 0, a word for a length, or None."""
    if isinstance(value, str) and value not in ("initial", "present"):
        place = f" at {where!r}" if where else ""
        raise ValueError(
            f'`{option}` must be a number above 0, "initial", "present" or None, got '
            f"{option}={value!r}{place}"
        )
    if value is not None and not isinstance(value, str):
        check_number(option, value, above=0, where=where)


def check_moment_dtype(option: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or names a real floating-point dtype."""
    if dtype is None:
        return
    try:
        is_floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        # The floats of 8 bits and less meet no other dtype in an expression.
        wide_dtype(dtype)
    except (TypeError, ValueError):
        is_floating = False
    if not is_floating:
        raise TypeError(
            f"`{option}` must be None or a floating-point dtype such as 'float32', got "
            f"{option}={dtype!r}; optax.inject_hyperparams calls jnp.float32 with the "
            "step count, so write the name there"
        )


class LargeDecayWarning(UserWarning):
    """A decoupled weight decay so large that it may be meant for `optax.adamw`."""


def warn_of_half_life(optimizer: str, weight_decay: Any) -> None:
    """Warns of a plain decay that halves a weight within 34 steps.

    Users of optax or torch write such numbers, because there the learning rate
    multiplies them. A number in a mapping was chosen on purpose.
    """
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float):
        return
    if weight_decay >= 0.02:
        steps = math.log(0.5) / math.log1p(-min(weight_decay, 0.5))
        warnings.warn(
            f"`{optimizer}(weight_decay={weight_decay:g})` halves every weight in "
            f"{max(steps, 1):.0f} steps, for any learning rate. optax.adamw and torch "
            "multiply the decay by the learning rate. If your number comes from "
            f"there, write weight_decay=learning_rate * {weight_decay:g}; otherwise "
            'write {"": ' + f"{weight_decay:g}" + "}, which does not warn",
            LargeDecayWarning,
            stacklevel=3,
        )


def is_zero(value: Any) -> bool:
    """Tells whether a number is known to be zero when a step is traced."""
    return not isinstance(value, Tracer) and float(value) == 0
