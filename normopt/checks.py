"""Refusals at build time: a bad number is named before any device work is done.

Only concrete numbers are looked at. Under `optax.inject_hyperparams`, `jax.jit` or
`jax.vmap` a hyper-parameter is traced, has no value yet, and passes.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def is_scalar(value: Any) -> bool:
    """Tells whether `value` is one number: a Python one, or a 0-d array of any kind."""
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    return isinstance(value, int | float) or (is_array and value.ndim == 0)


def check_number(
    option: str,
    value: Any,
    at_least: float = -math.inf,
    *,
    above: float = -math.inf,
    finite: bool = True,
    where: str = "",
) -> None:
    """Raises unless `value` is one number in the stated range.

    Args:
      option: the option's name, for the message.
      value: what was given for it.
      at_least: the smallest number allowed.
      above: every number allowed is larger than this.
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
    number = float(value)
    wanted = []
    if at_least > -math.inf:
        wanted.append(f"at least {at_least:g}")
    if above > -math.inf:
        wanted.append(f"above {above:g}")
    if finite:
        wanted.append("finite")
    in_range = number >= at_least and number > above
    if math.isnan(number) or (finite and math.isinf(number)) or not in_range:
        wish = " and ".join(wanted) or "a number"
        raise ValueError(f"`{option}` must be {wish}, got {option}={number:g}{place}")


def is_zero(value: Any) -> bool:
    """Tells whether a number is known to be zero when a step is traced."""
    return not isinstance(value, Tracer) and float(value) == 0
