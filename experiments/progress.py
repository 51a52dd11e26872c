"""What a person sees during a run: a bar in a terminal, a few lines elsewhere."""

import math
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Where no bar can be redrawn, so many lines tell the story of a run.
_LINES = 10


class TrainingProgress:
    """Shows steps done, and the latest loss and accuracy; a context manager."""

    def __init__(self, console: Console, total_steps: int, done: int = 0):
        """Show a run of `total_steps` of which `done` are behind."""
        self._console = console
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
        """Count `steps` more as under way."""
        self._bar.advance(self._task, steps)

    def show(self, record: dict[str, Any]) -> None:
        """Show the losses and accuracies of a record of `metrics.jsonl`."""
        shown = {
            "loss": ("train_loss", ".4f"),
            "accuracy": ("train_accuracy", ".2%"),
            "validation": ("validation_accuracy", ".2%"),
            "skipped": ("skipped", "d"),
        }
        # A quantity may be unknown at the end of this interval, or in this run.
        latest = "  ".join(
            f"{name} {record[key]:{form}}"
            for name, (key, form) in shown.items()
            if record.get(key) is not None
        )
        self._bar.update(self._task, latest=latest)
        if not self._console.is_terminal and record["step"] >= self._next_line:
            self._next_line += self._spacing
            self._console.print(
                f"step {record['step']}/{self._total}  epoch {record['epoch']:g}  "
                f"{latest}",
                soft_wrap=True,
            )
