"""What the commands of all experiments share: their options, and how they run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from experiments.training.measuring import check_least, measure_and_show

Stored = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to write, and how much to compute."""

    out: Path = Path("runs")
    """The folder for records, figures and what is finished."""
    smoke: bool = False
    """A run of seconds: few seeds, settings and steps, in a folder of its own."""
    redraw: bool = False
    """Print and draw the stored records, without computing."""
    fresh: bool = False
    """Compute again what is finished or under way."""


_Options = TypeVar("_Options", bound=Options)


def ask(options: type[_Options], name: str, args: Sequence[str]) -> _Options:
    """Return what the command line of an experiment says.

    Args:
        options: of the experiment.
        name: that the command line knows; its paper's folder is that of what it writes.
        args: the arguments.
    """
    return tyro.cli(
        options,
        args=args,
        prog=f"python -m experiments {name}",
        default=options(out=Path("runs") / name.partition(".")[0]),
    )


def run(
    args: Sequence[str],
    name: str,
    options: type[_Options],
    measure: Callable[[_Options, Console], dict[str, Any]],
    draw: Callable[[Path, Stored], None],
    table: Callable[[Stored], Any],
    *,
    least: Mapping[str, int],
    small: Mapping[str, Any] | None = None,
) -> None:
    """Do what a command says: measure, store, draw and print, or only the last two.

    Args:
        args: of the command line.
        name: of the experiment, which names its files too.
        options: of the experiment.
        measure: from the options to the records.
        draw: writes their figure.
        table: sums them up.
        least: the smallest value of options that are numbers.
        small: what a smoke run has in the place of what is asked for.
    """
    config = ask(options, name, args)
    check_least(config, **least)
    if config.smoke:
        config = dataclasses.replace(config, **(small or {}))
    file = name.rpartition(".")[2]
    measure_and_show(config, file, functools.partial(measure, config), draw, table)
