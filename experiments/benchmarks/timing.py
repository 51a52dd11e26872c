"""What the commands that time programs share: options, and where the times go."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from experiments.training import devices, provenance
from experiments.training.measuring import check_least, make_room_for, one_line_errors
from experiments.training.runs import write_json


@dataclasses.dataclass(frozen=True)
class TimingOptions:
    """How often to time, and where to write."""

    rounds: int = 5
    """How often each has its turn."""
    smoke: bool = False
    """A run of seconds: the smallest case, and a round or two."""
    json: Path | None = None
    """A file for the records."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Measure again what is finished."""


_Options = TypeVar("_Options", bound=TimingOptions)


def ask(
    options: type[_Options],
    name: str,
    args: Sequence[str],
    *,
    least: Mapping[str, int],
    small: Mapping[str, Any],
) -> _Options:
    """Return what the command line says.

    Args:
        options: of the command.
        name: of the command.
        args: the arguments.
        least: the smallest value of options that are numbers.
        small: what a smoke run has in the place of what is asked for.
    """
    config = tyro.cli(options, args=args, prog=f"python -m experiments {name}")
    check_least(config, **least)
    return dataclasses.replace(config, **small) if config.smoke else config


def time_and_show(
    config: TimingOptions,
    measure: Callable[[Console], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], Table | str],
) -> None:
    """Measure, store the records if there is a file for them, and print them.

    Args:
        config: of the command.
        measure: returns the records, and tells the console how far it is.
        show: sums them up.
    """
    console = Console()
    console.print(devices.describe(), markup=False, highlight=False, soft_wrap=True)
    with one_line_errors():
        make_room_for(config.json)
        stored = {
            "device": devices.describe(),
            "provenance": provenance.describe(),
            "rounds": config.rounds,
            **measure(console),
        }
        if config.json is not None:
            write_json(config.json, stored)
    shown = show(stored)
    console.print(shown, highlight=False, soft_wrap=isinstance(shown, str))
