"""From what a user writes after `--optimizer` to a complete normopt configuration.

The learning rate's schedule depends on the length of the run, so a configuration that
leaves it out gets it here.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax

import normopt

Config = dict[str, Any]

DEFAULT_LEARNING_RATE = 0.02
_DEFAULT_INNER = {"name": "sgd", "momentum": 0.9, "nesterov": True}


def complete(text: str, learning_rate: float | None, steps: int) -> Config:
    """Return the complete configuration of an optimizer.

    Args:
        text: a name, a JSON configuration, or the path of a `.json` file with one.
            Where it has no learning rate it gets a cosine decay to zero, and where it
            wraps an inner optimizer and names none, SGD with Nesterov momentum.
        learning_rate: where that decay starts; None: `DEFAULT_LEARNING_RATE`.
        steps: of the whole run.

    Returns:
        What `normopt.make` takes and JSON can hold.

    Raises:
        ValueError: the text is no configuration, or one that normopt refuses, or it has
            a learning rate and `learning_rate` is given too.
        FileNotFoundError: the file is missing.
    """
    config = _parse(text)
    if learning_rate is not None and "learning_rate" in _innermost(config):
        raise ValueError(
            f"--learning-rate {learning_rate} beside an --optimizer that has its own "
            f"({_innermost(config)['learning_rate']}); give one of the two"
        )
    decay = {
        "name": "cosine_decay_schedule",
        "init_value": DEFAULT_LEARNING_RATE if learning_rate is None else learning_rate,
        "decay_steps": steps,
    }
    return normopt.config(**_with_learning_rate(config, decay))


def schedule_of(config: Config) -> Callable[[Any], Any]:
    """Return a complete configuration's learning rate as a function of the count."""
    value = _innermost(config)["learning_rate"]
    if value is None:
        raise ValueError(
            f"the learning rate of {_innermost(config)['name']!r} must be a number or "
            "a schedule, got null"
        )
    if isinstance(value, dict):
        return normopt.make(**value)
    return optax.constant_schedule(value)


def _parse(text: str) -> Config:
    if text.endswith(".json"):
        text = Path(text).read_text()
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


def _innermost(config: Config) -> Config:
    while isinstance(config.get("inner"), dict):
        config = config["inner"]
    return config


def _with_learning_rate(config: Config, decay: Config) -> Config:
    if _wraps(config["name"]):
        inner = config.get("inner", _DEFAULT_INNER)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise ValueError(
                f"the inner optimizer of {config['name']!r} must be an object such as "
                f'{{"name": "sgd", "momentum": 0.9}}, got {inner!r}'
            )
        return {**config, "inner": _with_learning_rate(inner, decay)}
    return {"learning_rate": decay, **config}


def _wraps(name: str) -> bool:
    if name not in normopt.names():
        return False
    return "inner" in inspect.signature(getattr(normopt, name)).parameters
