"""What a person sees during a run: a bar in a terminal, a few lines elsewhere."""

import math
import time
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.training import interrupting

_Item = TypeVar("_Item")

# Where no bar can be redrawn, so many lines tell the story of a run.
_LINES = 10


class TrainingProgress:
    """Shows steps done, and the latest loss and accuracy; a context manager."""

    def __init__(
        self,
        console: Console,
        total_steps: int,
        done: int = 0,
        batch_size: int = 1,
        counted: str = "images",
    ):
        """Show a run of `total_steps` of `batch_size` images; `done` are behind.

        What is counted may be something else.
        """
        self._console, self._counted = console, counted
        self._batch_size = batch_size
        # When the record that speed is counted from and the latest one came, and with
        # which steps.
        self._first: tuple[float, int] | None = None
        self._latest: tuple[float, int] | None = None
        self._validated = False
        self._total = total_steps
        self._spacing = max(1, math.ceil(total_steps / _LINES))
        self._next_line = (done // self._spacing + 1) * self._spacing
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training", total=total_steps, completed=done, latest=""
        )

    def __enter__(self) -> "TrainingProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def advance(self, steps: int) -> None:
        """Count `steps` more as under way, or end if somebody has interrupted."""
        interrupting.check()
        self._bar.advance(self._task, steps)

    def counted_per_second(self) -> float | None:
        """Return how fast training is, None where there is nothing to tell it by.

        It counts from the first record, and again from the first validation: both wait
        for a compilation. Later validations and checkpoints are part of it.
        """
        if self._first is None or self._first == self._latest:
            return None
        (began, first), (now, latest) = self._first, self._latest
        return (latest - first) * self._batch_size / (now - began)

    def show(self, record: dict[str, Any]) -> None:
        """Show the losses and accuracies of a record of `metrics.jsonl`."""
        self._latest = time.perf_counter(), record["step"]
        validated = record.get("validation_loss") is not None
        if self._first is None or (validated and not self._validated):
            self._first = self._latest
        self._validated = self._validated or validated
        shown = {
            "loss": ("train_loss", ".4f"),
            "accuracy": ("train_accuracy", ".2%"),
            "validation": ("validation_accuracy", ".2%"),
            "bits per byte": ("train_bits_per_byte", ".3f"),
            "held out": ("validation_bits_per_byte", ".3f"),
            "skipped": ("skipped", "d"),
        }
        # A quantity may be unknown at the end of this interval, or in this run.
        latest = "  ".join(
            f"{name} {record[key]:{form}}"
            for name, (key, form) in shown.items()
            if record.get(key) is not None
        )
        if (speed := self.counted_per_second()) is not None:
            latest += f"  {speed:,.0f} {self._counted}/s"
        self._bar.update(self._task, latest=latest)
        if not self._console.is_terminal and record["step"] >= self._next_line:
            self._next_line += self._spacing
            self._console.print(
                f"step {record['step']}/{self._total}  epoch {record['epoch']:g}  "
                f"{latest}",
                soft_wrap=True,
            )


def counted(items: Collection[_Item], console: Console, what: str) -> Iterator[_Item]:
    """Yield the items under a bar that counts those that are done, in a terminal.

    It ends between items if somebody has interrupted.

    Args:
        items: to work on, one after the other.
        console: gets the bar.
        what: they are.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        # A thread that redraws it would run beside what is timed.
        auto_refresh=False,
    )
    with bar:
        task = bar.add_task(what, total=len(items))
        for item in items:
            yield item
            interrupting.check()
            bar.update(task, advance=1, refresh=True)
