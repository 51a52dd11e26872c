"""Optimizers by name, from and to a configuration that a JSON file can hold.

A configuration is `{"name": ..., **hyperparameters}`. An inner optimizer or a schedule
within it is such a dictionary itself, ours or optax's. Names and defaults are read from
the functions' signatures; there is no second list to keep.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from normopt import optimizers
from normopt.checks import check_learning_rate, is_scalar
from normopt.schedules import WarmRestarts, cosine_restarts

_SCHEDULES = {build.__name__: build for build in (cosine_restarts, WarmRestarts)}


def names() -> list[str]:
    """Lists the optimizers of normopt that `make` knows by name.

    Configurations may also name `cosine_restarts` and `WarmRestarts`, optax's
    optimizers that take a `learning_rate` and its functions that end in `schedule`,
    e.g. `sgd`, `adam`, `rmsprop`, `cosine_decay_schedule`; where both have a name, it
    means normopt's.

    Examples:
      >>> "normalized" in normopt.names()
      True
    """
    return sorted(
        name for name, value in vars(optimizers).items() if inspect.isfunction(value)
    )


def config(name: str, **hyperparameters: Any) -> dict[str, Any]:
    """Writes an optimizer down: validated, complete with defaults, JSON-able.

    Args:
      name: one of `names()`, or a schedule, or an optimizer of optax.
      **hyperparameters: numbers, strings, axes, dtypes, `{pattern: value}` mappings;
        inner optimizers and schedules as dictionaries of the same form, complete or
        not. Scalar arrays become numbers, tuples lists, dtypes names.

    Returns:
      `{"name": name, ...}` with every hyper-parameter of the signature;
      `make(**json.loads(json.dumps(c)))` gives the same trajectory as the optimizer.

    Raises:
      TypeError: for an unknown or missing hyper-parameter, or one that JSON cannot
        hold: a callable, an optimizer that is already built.
      ValueError: for an unknown name, a number that is not finite, and for all that
        the optimizer itself refuses.

    Examples:
      >>> c = normopt.config("normalized", inner={"name": "sgd", "learning_rate": 0.1})
      >>> c["norm"], c["channel_axes"], c["inner"]["nesterov"]
      ('l2', [], False)
    """
    bound = _bind(name, hyperparameters)
    complete = {"name": name}
    for option, value in bound.items():
        complete[option] = _written(f"{name}.{option}", value)
    make(name=name, **hyperparameters)
    return complete


def make(**config: Any) -> optax.GradientTransformation:
    """Builds the optimizer that a configuration describes.

    A custom norm must be registered with `register_norm` before; the error says so.

    Args:
      **config: `name` and hyper-parameters, as `config` writes them or a JSON file
        holds them; what is left out has its default.

    Returns:
      The optimizer (or, for the name of a schedule, the schedule).

    Raises:
      TypeError: for an unknown or missing hyper-parameter, or no `name`.
      ValueError: for an unknown name, and for all that the optimizer itself refuses.

    Examples:
      >>> import json
      >>> c = normopt.config("clipped", max_norm=1.0,
      ...                    inner={"name": "adam", "learning_rate": 1e-3})
      >>> tx = normopt.make(**json.loads(json.dumps(c)))
      >>> type(tx).__name__
      'GradientTransformationExtraArgs'
    """
    if not isinstance(config.get("name"), str):
        raise TypeError(
            'a configuration is {"name": ..., **hyperparameters}, got one with '
            f"name={config.get('name')!r}"
        )
    hyperparameters = {k: v for k, v in config.items() if k != "name"}
    build = _builder(config["name"])
    options = _bind(config["name"], hyperparameters)
    read = _read if _is_ours(config["name"]) else _read_for_optax
    built = {option: read(value) for option, value in options.items()}
    rate = built.get("learning_rate")
    if rate is not None:
        check_learning_rate(rate, f"{config['name']}.learning_rate")
    return build(**built)


def _is_ours(name: str) -> bool:
    return name in names() or name in _SCHEDULES


def _builder(name: str) -> Callable[..., Any]:
    if _is_ours(name):
        return _SCHEDULES.get(name) or getattr(optimizers, name)
    build = getattr(optax, name, None)
    if inspect.isfunction(build) and (
        name.endswith("schedule")
        or "learning_rate" in inspect.signature(build).parameters
    ):
        return build
    raise ValueError(
        f"unknown optimizer or schedule {name!r}; normopt's optimizers are "
        f"{', '.join(names())}, its schedules {', '.join(_SCHEDULES)}, and optax's "
        "optimizers and schedules go by their names (sgd, adam, cosine_decay_schedule, "
        "...)"
    )


def _bind(name: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(_builder(name))
    try:
        bound = signature.bind(**hyperparameters)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its signature is {signature}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _written(option: str, value: Any) -> Any:
    """Turns a value into what JSON holds, or says which option cannot be written."""
    if value is None or isinstance(value, bool | str):
        return value
    if _is_config(value):
        return config(**value)
    if isinstance(value, Mapping):
        return {str(k): _written(f"{option}[{k!r}]", v) for k, v in value.items()}
    if type(value) in (tuple, list):  # not an optimizer, which is a named tuple
        return [_written(f"{option}[{i}]", v) for i, v in enumerate(value)]
    if is_scalar(value) and not isinstance(value, Tracer):
        number = value if isinstance(value, int | float) else np.asarray(value).item()
        if not math.isfinite(number):
            raise ValueError(f"`{option}` must be finite to be written, got {number}")
        return number
    if isinstance(value, type | np.dtype):
        return jnp.dtype(value).name
    raise TypeError(
        f"`{option}` cannot be written to a configuration: {value!r}. Write an inner "
        'optimizer or a schedule as {"name": ..., **hyperparameters} and a rule as '
        "{pattern: value}"
    )


def _read(value: Any) -> Any:
    """Builds the optimizers and schedules inside a value."""
    if _is_config(value):
        return make(**value)
    if isinstance(value, Mapping):
        return {key: _read(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_read(one) for one in value]
    return value


def _read_for_optax(value: Any) -> Any:
    # JSON turned the steps of piecewise schedules into strings.
    value = _read(value)
    if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
        return {int(key): one for key, one in value.items()}
    return value
