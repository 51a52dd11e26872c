"""What `tpu_compile` shows of the programs that it compiled, from their rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

BASELINE = "optax.adamw"
STEP = "training step"

Row = dict[str, Any]


def programs(stored: Mapping[str, Any]) -> Table:
    """Return seconds, memory, bytes and operations of each program."""
    table = _empty(
        "programs, a chip",
        "MB of arguments, of temporaries, at the peak, and accessed by XLA's count",
        ("s", "args", "temp", "peak", "all", "GFLOP"),
    )
    for row in stored["rows"]:
        memory = (row[f"{part}_bytes"] for part in ("argument", "temporary", "peak"))
        table.add_row(
            *_names(row),
            f"{row['compile_seconds']:.0f}",
            *(f"{size / 1e6:.0f}" for size in memory),
            f"{row['bytes_accessed'] / 1e6:.0f}",
            f"{row['operations'] / 1e9:.2f}",
        )
    return table


def traffic(stored: Mapping[str, Any]) -> Table:
    """Return the bytes that each optimizer's step moves, for each parameter."""
    table = _empty(
        "an optimizer's step, a chip",
        f"bytes a parameter there, and the ratio to {BASELINE}: of main memory alone, "
        "and accessed by XLA's count",
        ("parameters", "main", "ratio", "all", "ratio"),
    )
    alone = {_names(row): row for row in stored["rows"] if row["program"] != STEP}
    for (*where, program), row in alone.items():
        baseline, cells = alone[*where, BASELINE], []
        for count in ("main_memory_bytes", "bytes_accessed"):
            cells.append(f"{row[count] / row['parameters_of_chip']:.1f}")
            cells.append(f"{row[count] / baseline[count]:.2f}")
        table.add_row(*where, program, f"{row['parameters_of_chip']:,}", *cells)
    return table


def exchanges(stored: Mapping[str, Any]) -> Table:
    """Return what the chips exchange in each program."""
    table = _empty("collectives", None, ("kind", "count", "MB"))
    for row in stored["rows"]:
        for found in row["collectives"] or [{"kind": "none", "count": 0, "bytes": 0}]:
            table.add_row(
                *_names(row),
                found["kind"],
                str(found["count"]),
                f"{found['bytes'] / 1e6:.3f}",
            )
    return table


def _empty(title: str, caption: str | None, numbers: Sequence[str]) -> Table:
    # Without rules between columns it fits a terminal of 80.
    table = Table(
        *("chips", "way", "program"),
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _names(row: Row) -> tuple[str, str, str]:
    return row["topology"], row["way"], row["program"]
