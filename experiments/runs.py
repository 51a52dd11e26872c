"""A run's folder: its name follows from the configuration, its files are never half.

The same command finds the same folder again, which is what makes resuming safe.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any


class Run:
    """The folder `root/<label>-<hash of the configuration>` and the files in it."""

    def __init__(self, root: Path, label: str, config: dict[str, Any]):
        """Name the folder; nothing is created before `open`."""
        self.config = config
        canonical = json.dumps(
            config, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
        self.folder = root / f"{label}-{digest}"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.timing_file = self.folder / "timing.jsonl"
        self.figure_file = self.folder / "learning_curve.png"
        self.checkpoints_folder = self.folder / "checkpoints"
        self._result_file = self.folder / "result.json"

    def result(self) -> dict[str, Any] | None:
        """Return what a finished run wrote last, None for any other."""
        if not self._result_file.exists():
            return None
        return json.loads(self._result_file.read_text())

    def remove(self) -> None:
        """Delete the folder, if there is one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise OSError(f"cannot remove {self.folder}")

    def open(self) -> None:
        """Create the folder, with the configuration in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", self.config)

    def cut_metrics(self, step: int) -> None:
        """Drop the metrics past `step`, which the resumed run will write again."""
        kept = [r for r in read_records(self.metrics_file) if r["step"] <= step]
        write_text(self.metrics_file, "".join(_line(record) for record in kept))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_json(self._result_file, result)


def stored_files(
    out: Path, name: str, *, smoke: bool, redraw: bool
) -> tuple[Path, Path]:
    """Return where an experiment keeps its records and its figure, in a folder made.

    Args:
        out: the folder of full runs; a smoke run has one of its own inside, so that it
            replaces nothing.
        name: of both files.
        smoke: whether it is such a run.
        redraw: whether the records must be there already.
    """
    folder = out / "smoke" if smoke else out
    records, figure = (folder / f"{name}.{end}" for end in ("json", "png"))
    if redraw and not records.exists():
        sys.exit(f"error: --redraw needs {records}, which a run without it writes")
    folder.mkdir(parents=True, exist_ok=True)
    return records, figure


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a `.jsonl` file; a last line cut short is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a `.jsonl` file, on disk when this returns."""
    with path.open("a") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
