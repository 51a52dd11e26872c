"""What the commands of experiments share: where records go, and how errors end them."""

import contextlib
import errno
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from experiments.training import provenance, ranges
from experiments.training.interrupting import Interrupted
from experiments.training.locking import alone_in
from experiments.training.loop import TrainingDiverged
from experiments.training.progress import counted
from experiments.training.runs import Run, naming, read_json, write_json

# What may change the time that a program takes.
_TIMING_VARIABLES = ("JAX_", "LIBTPU_", "MALLOC_", "OMP_", "TPU_", "XLA_")


class Kept(Protocol):
    """The part of a configuration that says where records are."""

    out: Path
    smoke: bool


class Drawn(Kept, Protocol):
    """That of an experiment whose figure can be drawn again."""

    redraw: bool


class Resumable(Kept, Protocol):
    """That of an experiment whose parts are kept as they are finished."""

    fresh: bool


class Timed(Resumable, Protocol):
    """That of an experiment which measures the same several times."""

    rounds: int


def folder_of(config: Kept) -> Path:
    """Return the folder of the records, which smoke runs have apart from full ones."""
    return config.out / "smoke" if config.smoke else config.out


def check_least(config: Any, **least: int) -> None:
    """End the program with one line at an option that is out of its range.

    Args:
        config: what the options are fields of; None is one that is left out.
        **least: the smallest value of each, by name.
    """
    try:
        ranges.check(config, **least)
    except ValueError as error:
        sys.exit(f"error: {error}")


def measure_and_show(
    config: Drawn,
    name: str,
    measure: Callable[[Console], dict[str, Any]],
    draw: Callable[[Path, dict[str, Any]], None],
    table: Callable[[dict[str, Any]], Table],
) -> None:
    """Store what an experiment measures as JSON, and draw and print what is stored.

    Args:
        config: `out`, the folder of full runs; `smoke`, whether to keep apart from
            these in a folder inside; `redraw`, whether to measure nothing.
        name: of the experiment, and so of the records and the figure.
        measure: returns the records, which get their provenance beside them; may tell
            the console how far it is.
        draw: writes the figure.
        table: sums the records up.
    """
    folder, console = folder_of(config), Console()
    records, figure = (folder / f"{name}.{end}" for end in ("json", "png"))
    if config.redraw and not records.exists():
        sys.exit(f"error: --redraw needs {records}, which a run without it writes")
    if not config.redraw:
        with one_line_errors():
            measured = measure(console)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(records, {**measured, "provenance": provenance.describe()})
    stored = read_stored(records)
    with showing(records, redraw=config.redraw):
        draw(figure, stored)
        shown = table(stored)
    console.print(shown)
    console.print(f"{records}\n{figure}", markup=False, highlight=False, soft_wrap=True)


def read_stored(records: Path) -> dict[str, Any]:
    """Return what an experiment has stored, or end the program with one line."""
    with one_line_errors():
        return read_json(records, "take it away, and a run without --redraw writes it")


@contextlib.contextmanager
def showing(records: Path, *, redraw: bool) -> Iterator[None]:
    """Name records that cannot be shown, in one line where they were only read."""
    with one_line_errors() if redraw else contextlib.nullcontext():
        with reading(f"what {records} holds", "a run without --redraw writes it"):
            yield


def make_room_for(records: Path | None) -> None:
    """Make the folder of a file, if any is wanted, before anything is measured.

    Raises:
        OSError: it cannot be made, or written to, or what has the file's name is none.
    """
    if records is None:
        return
    with naming(records):
        # Writing would put a file in the place of a device, such as /dev/stdout.
        if records.exists() and not records.is_file():
            raise FileExistsError(errno.EEXIST, "it is there, and no file")
        records.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(records.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Name the results, perhaps of another version, that are not what is read."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as bad:
        raise ValueError(
            f"{what} is not what is read today ({type(bad).__name__}: {bad}); {advice}"
        ) from bad


def measure_parts(
    config: Resumable,
    name: str,
    settings: dict[str, Any],
    parts: Collection[str],
    measure: Callable[[str], dict[str, Any]],
    console: Console,
    *,
    others: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Measure the parts of an experiment, but for those that the same command has left.

    Args:
        config: where they are kept, and whether to begin anew.
        name: of the experiment.
        settings: all that its numbers depend on, but for the program. That is told of
            all parts alike, so no other one may have measured some of them.
        parts: their names, which are those of files.
        measure: from a name to what JSON can hold of that part.
        console: gets a bar, and a line for each part.
        others: the names of parts that are told, too, where a command has left them.

    Returns:
        The parts by name.
    """
    origin = provenance.describe()
    run = Run(folder_of(config), name, {**settings, "provenance": origin})
    # Of files that differ from their commit nobody knows whether they still are the
    # ones that have measured the parts.
    is_known = provenance.is_known(origin)
    if not is_known:
        console.print("changes or no git: the next command measures all anew")
    with alone_in(run.folder):
        if config.fresh or not is_known:
            run.remove()
        run.open()
        measured = {}
        left = [one for one in others if one not in parts and run.has_part(one)]
        for part in counted([*parts, *left], console, "parts"):
            was_there, began = run.has_part(part), time.perf_counter()
            measured[part] = run.part(part, functools.partial(measure, part))
            seconds = time.perf_counter() - began
            took = "finished before" if was_there else f"{seconds:.0f} s"
            console.print(f"{part}: {took}", highlight=False)
        return measured


def measure_rounds(
    config: Timed,
    name: str,
    settings: dict[str, Any],
    measure: Callable[[str], dict[str, Any]],
    console: Console,
) -> list[dict[str, Any]]:
    """Time the same in every round, as `measure_parts` does whose parts are rounds.

    Args:
        config: how many, where they are kept, and whether to begin anew.
        name: of the experiment.
        settings: all that a round depends on, but for the program, the machine and the
            variables of its environment.
        measure: from the name of a round to what JSON can hold of it.
        console: gets a bar, and a line for each round.

    Returns:
        The rounds.
    """
    settings = {
        **settings,
        "machine": platform.node(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_TIMING_VARIABLES)
        },
    }
    rounds = [f"round {number}" for number in range(1, config.rounds + 1)]
    return list(
        measure_parts(config, name, settings, rounds, measure, console).values()
    )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line at what its user can mend."""
    try:
        yield
    except (OSError, ValueError, TrainingDiverged) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; the same command, without --fresh, goes on"
        ) from None
