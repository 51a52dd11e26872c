"""Optimizers by name, from and to a configuration that a JSON file can hold.

A configuration is `{"name": ..., **hyperparameters}`. An optimizer, a link or a
schedule within it is such a dictionary itself, ours or optax's. Names and defaults are
read from the functions' signatures; there is no second list to keep.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from normopt import optimizers, transforms
from normopt.checks import check_learning_rate, is_scalar, is_sequence
from normopt.matrices import output_matrices
from normopt.rules import by_path, output_channels, whole_leaves
from normopt.schedules import WarmRestarts, cosine_restarts

_SCHEDULES = {build.__name__: build for build in (cosine_restarts, WarmRestarts)}
RULES = {
    build.__name__: build for build in (output_channels, output_matrices, whole_leaves)
}


def names() -> list[str]:
    """Lists the optimizers of normopt that `make` knows by name.

    A configuration may also name

    - the links of normopt, and a chain: `{"name": "chain", "links": [...]}`;
    - the schedules `cosine_restarts` and `WarmRestarts`;
    - `output_channels` and `whole_leaves` for channel axes, `output_matrices` for
      matrices;
    - optimizers, transformations and schedules of optax, such as `sgd`,
      `clip_by_global_norm`, `scale_by_adam`, `exponential_decay` or `join_schedules`.

    If something in normopt and something in optax have the same name, you get that of
    normopt. A mask for a
    transformation of optax is a mapping `{pattern: True or False}`; leaves that no
    pattern matches get False.

    Examples:
      >>> "normalized" in normopt.names()
      True
    """
    return sorted(
        name for name, value in vars(optimizers).items() if inspect.isfunction(value)
    )


def config(name: str, **hyperparameters: Any) -> dict[str, Any]:
    """Describes an optimizer as a dictionary for JSON, with all defaults filled in.

    Args:
      name: one of `names()`, or one of the other names that the documentation of
        `names` lists.
      **hyperparameters: numbers, strings, axes, dtypes, and `{pattern: value}`
        mappings. Inner optimizers, links and schedules are dictionaries of the same
        form; they may leave out defaults. Scalar arrays are converted to numbers,
        tuples to lists, and dtypes to names.

    Returns:
      `{"name": name, ...}` with every hyper-parameter of the signature. Only defaults
      of optax that are functions are left out, because JSON cannot hold them. If c is
      the result, the optimizer `make(**json.loads(json.dumps(c)))` takes the same steps
      as the optimizer that c describes.

    Raises:
      TypeError: for an unknown or missing hyper-parameter, or one that JSON cannot
        hold, such as a callable or a built optimizer.
      ValueError: for an unknown name, for a number that is not finite, or if the
        optimizer itself raises a ValueError.

    Examples:
      >>> c = normopt.config("normalized", inner={"name": "sgd", "learning_rate": 0.1})
      >>> c["norm"], c["channel_axes"], c["inner"]["nesterov"]
      ('l2', [], False)

      A chain with links of normopt and of optax:

      >>> c = normopt.config("chain", links=[
      ...     {"name": "clip_by_global_norm", "max_norm": 1.0},
      ...     {"name": "scale_by_block_adam", "channel_axes": {"kernel$": (-1,)}},
      ...     {"name": "scale_by_learning_rate", "learning_rate": {
      ...         "name": "exponential_decay", "init_value": 0.1,
      ...         "transition_steps": 100, "decay_rate": 0.9}}])
      >>> c["links"][1]["channel_axes"], c["links"][2]["learning_rate"]["staircase"]
      ({'kernel$': [-1]}, False)
    """
    _check_name(name)
    complete = {"name": name}
    for option, value in _bind(name, hyperparameters).items():
        try:
            complete[option] = _written(f"{name}.{option}", value)
        except (TypeError, ValueError):
            if option in hyperparameters:
                raise
    make(name=name, **hyperparameters)
    return complete


def make(**config: Any) -> optax.GradientTransformation:
    """Builds the optimizer that a configuration describes.

    If the configuration names a norm of your own, call `register_norm` first. Otherwise
    `make` raises an error.

    Args:
      **config: `name` and hyper-parameters, as the function `config` returns them.
        Hyper-parameters that are missing get their defaults.

    Returns:
      The optimizer, link or schedule with this name.

    Raises:
      TypeError: for an unknown or missing hyper-parameter, or no `name`.
      ValueError: for an unknown name, or if the optimizer itself raises a ValueError.

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
    built = {
        option: _as_default(config["name"], option, _read(value))
        for option, value in options.items()
    }
    if config["name"] not in _ours():
        built = {option: _for_optax(option, value) for option, value in built.items()}
    rate = built.get("learning_rate")
    if rate is not None:
        check_learning_rate(rate, f"{config['name']}.learning_rate")
    return build(**built)


def chain(links: Sequence[Any]) -> optax.GradientTransformationExtraArgs:
    """Builds the chain that a configuration lists, one transformation after another."""
    if type(links) not in (list, tuple) or not links:  # an optimizer is a named tuple
        raise TypeError(
            "`chain.links` must be a list of at least one link or optimizer, got "
            f"links={links!r}"
        )
    for position, link in enumerate(links):
        if not isinstance(link, optax.GradientTransformation):
            raise TypeError(
                f"`chain.links[{position}]` must be a link or an optimizer as "
                f'{{"name": ..., **hyperparameters}}, got {link!r}'
            )
    return optax.chain(*links)


def join_schedules(
    schedules: Sequence[Any], boundaries: Sequence[int]
) -> optax.Schedule:
    """Joins schedules as optax does, which passes over what has no boundary."""
    for position, schedule in enumerate(schedules):
        is_stateful = isinstance(schedule, optax.schedules.StatefulSchedule)
        if not callable(schedule) or is_stateful:
            raise TypeError(
                f"`join_schedules.schedules[{position}]` must be a schedule of the "
                f"step count, got {schedule!r}"
            )
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"`join_schedules` takes one boundary less than schedules, got "
            f"boundaries={list(boundaries)} for {len(schedules)} schedules"
        )
    return optax.join_schedules(schedules, boundaries)


@functools.cache
def _ours() -> dict[str, Callable[..., Any]]:
    """Maps the names that mean something of normopt to what they build."""
    functions = {
        name: build
        for module in (transforms, optimizers)
        for name, build in vars(module).items()
        if inspect.isfunction(build)
    }
    return (
        functions
        | _SCHEDULES
        | RULES
        | {build.__name__: build for build in (chain, join_schedules)}
    )


@functools.cache
def _optax() -> dict[str, Callable[..., Any]]:
    """Maps the names of optax's schedules and transformations to what builds them."""
    return {
        name: build
        for name, build in vars(optax).items()
        if inspect.isfunction(build)
        and not name.startswith("_")
        and (_builds_transformation(name, build) or _builds_schedule(name))
    }


def _builds_transformation(name: str, build: Callable[..., Any]) -> bool:
    signature = inspect.signature(build)
    kind = getattr(signature.return_annotation, "__name__", "")
    if any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values()):
        return False  # chains, whose links are not named
    return kind.startswith("GradientTransformation") or name.startswith("scale_by_")


def _builds_schedule(name: str) -> bool:
    return hasattr(optax.schedules, name) and not name.startswith("inject")


def _builder(name: str) -> Callable[..., Any]:
    build = _ours().get(name) or _optax().get(name)
    if build is not None:
        return build
    near = _nearest(name, [*_ours(), *_optax()], 3)
    raise ValueError(
        f"unknown optimizer, link or schedule {name!r}"
        + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ";")
        + f" normopt's optimizers are {', '.join(names())}, its schedules "
        f"{', '.join(_SCHEDULES)}; its links, {{'name': 'chain', 'links': [...]}}, and "
        "optax's optimizers, transformations and schedules go by their names (sgd, "
        "adam, clip, scale_by_adam, exponential_decay, ...)"
    )


def _bind(name: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(_builder(name))
    known = list(signature.parameters)
    for option in hyperparameters:
        if option not in known:
            near = _nearest(option, known, 1)
            raise TypeError(
                f"{name}: unknown argument {option!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" It takes {', '.join(known) or 'none'}"
            )
    try:
        bound = signature.bind(**hyperparameters)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; it takes {', '.join(known)}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _as_default(name: str, option: str, value: Any) -> Any:
    """Gives the default itself for what JSON made of one: a list of a tuple."""
    default = inspect.signature(_builder(name)).parameters[option].default
    return default if type(value) is list and tuple(value) == default else value


def _nearest(word: str, known: Sequence[str], most: int) -> list[str]:
    """Finds the names that a misspelt one may mean, an abbreviation (lr) among them."""
    whole = {name.casefold(): name for name in known}
    if word.casefold() in whole:
        return [whole[word.casefold()]]
    initials = ["".join(part[:1] for part in name.split("_")) for name in whole]
    of_initials = [
        name
        for name, letters in zip(whole.values(), initials, strict=True)
        if len(letters) > 1 and letters == word.casefold()
    ]
    close = difflib.get_close_matches(word.casefold(), whole, most, cutoff=0.5)
    return (of_initials + [whole[name] for name in close])[:most]


def completed(given: Any) -> dict[str, Any]:
    """Completes a configuration that a function takes as its `config`."""
    if not isinstance(given, Mapping) or "name" not in given:
        raise TypeError(
            '`config` must be {"name": "adamw", "learning_rate": ..., ...}, as '
            f"normopt.config takes and writes it, got {given!r}"
        )
    return config(**given)


def _check_name(name: Any) -> None:
    """Raises unless `name` is one, and says what to write instead."""
    if isinstance(name, str):
        return
    if isinstance(name, Mapping):
        hint = "unpack a configuration: normopt.config(**configuration)"
    elif inspect.isfunction(name) and getattr(name, "__name__", "") in _ours():
        hint = f"write its name, {name.__name__!r}"
    else:
        hint = (
            "a built optimizer or schedule cannot be read back; write it down by its "
            'name before it is built: normopt.config("adamw", learning_rate=1e-3)'
        )
    raise TypeError(f"`name` must be a name such as 'adamw', got {name!r}: {hint}")


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
    # An optimizer is a named tuple, too.
    is_optimizer = isinstance(value, optax.GradientTransformation)
    if is_sequence(value) and not is_optimizer:
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
        'optimizer or a schedule as {"name": ..., **hyperparameters}, a rule as '
        "{pattern: value}, and of a sharding the names of its axes"
    )


def _read(value: Any) -> Any:
    """Builds the optimizers and schedules inside a value."""
    if _is_config(value):
        return make(**value)
    if isinstance(value, Mapping):
        return {key: _read(one) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_read(one) for one in value)
    return value


def _for_optax(option: str, value: Any) -> Any:
    """Turns what JSON can hold into what an option of optax wants."""
    if not isinstance(value, dict):
        return value
    if option == "boundaries_and_scales":
        return {int(step): scale for step, scale in value.items()}
    if option.endswith("mask"):
        return by_path(value, default=False)
    return by_path(value) if option == "param_labels" else value
