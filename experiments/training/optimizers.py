"""From what a user writes after `--optimizer` to a complete normopt configuration.

The learning rate's schedule depends on the length of the run, and the blocks on the
network, so a configuration that leaves them out gets them here.
"""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt

Config = dict[str, Any]

# Where the decay starts, by the name of the outermost optimizer: chosen by the accuracy
# on the digits' validation images.
DEFAULT_LEARNING_RATES = {"adamsrt": 0.01, "normalized": 0.02}
OTHER_RATE = 0.02
# Of so many steps at most a learning rate is looked at before the run.
_MOST_RATES = 10_000
# What the options of optax mean, which does not check them; normopt checks its own.
_BELOW_ONE = ("b1", "b2", "momentum")
_AT_LEAST_ZERO = ("eps", "eps_root", "l1", "weight_decay", "weight_decay_rate")
_ABBREVIATED = {
    "beta1": "b1",
    "beta2": "b2",
    "beta": "momentum",
    "lr": "learning_rate",
    "wd": "weight_decay",
}
# What is wrapped where nobody says so, by whether the wrapper has a learning rate and
# so decides how long steps are itself; and what takes leaves that are no matrices.
_INNER = {
    False: {"name": "sgd", "momentum": 0.9, "nesterov": True},
    True: {"name": "adam"},
}
_REST = {"name": "adam"}
_RATE, _CHAIN = "learning_rate", "chain"


def read(text: str, learning_rate: float | None, steps: int) -> Config:
    """Return the configuration that a text stands for, checked and not yet complete.

    Args:
        text: a name, a JSON configuration, or the path of a `.json` file with one.
            Each part of it that takes a learning rate and has none gets a cosine decay
            to zero. An optimizer that wraps another one and names none wraps SGD with
            Nesterov momentum, or Adam if it sets the length of steps itself; one of
            matrices leaves the `rest` to Adam.
        learning_rate: where that decay starts; None: the optimizer's own default.
        steps: of the whole run.

    Returns:
        What `complete` takes.

    Raises:
        ValueError: the text is no configuration, or one that normopt refuses; a number
            of it is out of its range; or it has a learning rate and `learning_rate` is
            given too.
        FileNotFoundError: the file is missing.
    """
    config = _with_inner(_parse(text))
    takes_it = [one for one in levels(config) if _RATE in _parameters(one["name"])]
    if learning_rate is not None and takes_it and _RATE in takes_it[0]:
        raise ValueError(
            f"--learning-rate {learning_rate} beside an --optimizer that has its own "
            f"({takes_it[0][_RATE]}); give one of the two"
        )
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(
            f"`learning_rate` must be positive and finite, got {learning_rate}"
        )
    if learning_rate is None:
        learning_rate = DEFAULT_LEARNING_RATES.get(config["name"], OTHER_RATE)
    decay = {
        "name": "cosine_decay_schedule",
        "init_value": learning_rate,
        "decay_steps": steps,
    }
    config = _with_learning_rate(config, decay)
    _check_keys(config)
    _check_numbers(config)
    _check_rates(normopt.config(**config), steps)
    return config


def complete(config: Config, find_axes: Callable[[], Config]) -> Config:
    """Return a configuration with all that it leaves out.

    Args:
        config: what `read` returned.
        find_axes: gives the `channel_axes` of the network's scale-invariant weights.
            It is asked if an optimizer has no blocks unless it is told some, and the
            configuration does not mention them.

    Returns:
        What `normopt.make` takes and JSON can hold.
    """
    if any(_lacks_axes(level) for level in levels(config)):
        config = _with_axes(config, find_axes())
    return normopt.config(**config)


def without_axes(config: Config) -> list[str]:
    """Return the names of the optimizers for which `complete` asks for axes."""
    return [level["name"] for level in levels(config) if _lacks_axes(level)]


def schedule_of(config: Config) -> Callable[[Any], Any]:
    """Return a complete configuration's learning rate as a function of the count.

    It is the rate in force: times eta_t, where the optimizer has a `schedule`.
    """
    level = _rated(config)
    if level[_RATE] is None:
        raise ValueError(
            f"the learning rate of {level['name']!r} must be a number or a schedule, "
            "got null"
        )
    rate = _function_of_count(level[_RATE])
    if level.get("schedule") is None:
        return rate
    eta = _function_of_count(level["schedule"])
    return lambda count: rate(count) * eta(count)


def _check_keys(value: Any) -> None:
    """Raise ValueError at an option that nobody has; unknown names are normopt's."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _check_keys(inner)
    if not _is_config(value):
        return
    name = value["name"]
    known = [key for key in _parameters(name) if key != "self"]
    for key in value if known else ():
        if key not in ("name", *known):
            near = _ABBREVIATED.get(key, key)
            near = difflib.get_close_matches(near, known, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else ";"
            raise ValueError(
                f"{name} has no option `{key}`{hint} it has {', '.join(known)}"
            )


def _check_numbers(value: Any, option: str = "optimizer") -> None:
    """Raise ValueError at a number that is out of the range of its option."""
    if isinstance(value, dict):
        for key, inner in value.items():
            # A rule by path is a value of the option that has it.
            known = "name" in value or option == "optimizer"
            _check_numbers(inner, key if known else option)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, option)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"`{option}` must be finite, got {value}")
        if option in _BELOW_ONE and not 0 <= value < 1:
            raise ValueError(f"`{option}` must be in [0, 1), got {value}")
        if option in _AT_LEAST_ZERO and value < 0:
            raise ValueError(f"`{option}` must be >= 0, got {value}")


def _check_rates(config: Config, steps: int) -> None:
    """Raise ValueError if a learning rate leads uphill, or none leads anywhere."""
    counts = np.unique(np.linspace(0, steps - 1, min(steps, _MOST_RATES)).astype(int))
    schedule = schedule_of(config)
    rates = np.asarray(jax.vmap(schedule)(jnp.asarray(counts, jnp.int32)))
    name = _rated(config)["name"]
    for step, rate in zip(counts + 1, rates, strict=True):
        if not rate >= 0:
            raise ValueError(
                f"the learning rate of {name} must be >= 0, got {rate:g} at step {step}"
            )
    if not np.any(rates > 0) or not math.isfinite(rates[0]):
        raise ValueError(
            f"the learning rate of {name} must be positive and finite, got "
            f"{rates[0]:g} at step 1" + ("" if rates[0] else " and in all others")
        )


def _function_of_count(value: Any) -> Callable[[Any], Any]:
    if not isinstance(value, dict):
        return optax.constant_schedule(value)
    return normopt.make(**unrestarted(value))


def unrestarted(schedule: Config) -> Config:
    """Return what a schedule is as long as nobody restarts it, as no run here does."""
    is_stateful = schedule["name"] == "WarmRestarts"
    return {**schedule, "name": "cosine_restarts"} if is_stateful else schedule


def _parse(text: str) -> Config:
    if text.endswith(".json"):
        text = Path(text).read_text(encoding="utf-8")
    elif not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--optimizer is no valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ValueError(
            '--optimizer must be an object such as {"name": "adamw", "b1": 0.9}, '
            f"got {text.strip()}"
        )
    return config


def levels(config: Config) -> list[Config]:
    """Return a configuration and those inside it: of what it wraps, and of links."""
    inside = [config.get("inner"), *_links(config)]
    return [config, *(one for c in inside if _is_config(c) for one in levels(c))]


def _rated(config: Config) -> Config:
    """Return the outermost level with a learning rate, which is the one in force."""
    found = next((one for one in levels(config) if _RATE in one), None)
    if found is None:
        raise ValueError(
            f"--optimizer {config['name']} has no learning rate: make it a link of "
            '{"name": "chain", "links": [..., {"name": "scale_by_learning_rate"}]}'
        )
    return found


def _with_inner(config: Config) -> Config:
    """Return a configuration that names what it wraps, and what takes the rest."""
    takes = _parameters(config["name"])
    if "inner" in takes:
        inner = config.get("inner", _INNER[_RATE in takes])
        if not _is_config(inner):
            raise ValueError(
                f"the inner optimizer of {config['name']!r} must be an object such as "
                f'{{"name": "sgd", "momentum": 0.9}}, got {inner!r}'
            )
        config = {**config, "inner": _with_inner(inner)}
    if "rest" in takes:
        rest = config.get("rest", _REST)
        config = {**config, "rest": _with_inner(rest) if _is_config(rest) else rest}
    return _with_links(config, _with_inner)


def _with_learning_rate(config: Config, decay: Config) -> Config:
    def filled(one: Config) -> Config:
        return _with_learning_rate(one, decay)

    for option in ("inner", "rest"):
        if _is_config(config.get(option)):
            config = {**config, option: filled(config[option])}
    if _lacks_rate(config):
        config = {_RATE: decay, **config}
    return _with_links(config, filled)


def _with_axes(config: Config, axes: Config) -> Config:
    def filled(one: Config) -> Config:
        return _with_axes(one, axes)

    if _is_config(config.get("inner")):
        config = {**config, "inner": filled(config["inner"])}
    if _lacks_axes(config):
        config = {**config, "channel_axes": axes}
    return _with_links(config, filled)


def _with_links(config: Config, change: Callable[[Config], Config]) -> Config:
    links = _links(config)
    if not links:
        return config
    return {**config, "links": [change(o) if _is_config(o) else o for o in links]}


def _links(config: Config) -> list[Any]:
    links = config.get("links") if config["name"] == _CHAIN else None
    return links if isinstance(links, list) else []


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _lacks_rate(config: Config) -> bool:
    return _RATE in _parameters(config["name"]) and _RATE not in config


def _lacks_axes(config: Config) -> bool:
    option = _parameters(config["name"]).get("channel_axes")
    return (
        option is not None and option.default is None and "channel_axes" not in config
    )


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """Return what an optimizer, a link or a schedule takes, ours or else optax's."""
    made = getattr(normopt, name, None) or getattr(optax, name, None)
    # What a chain takes is told apart from the function of optax by normopt.
    if name == _CHAIN or name.startswith("_") or not callable(made):
        return {}
    return inspect.signature(made).parameters
