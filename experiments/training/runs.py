"""A run's folder: its name follows from the configuration, its files are never half.

The same command finds the same folder again, which is what makes resuming safe. Of
several processes the first one alone writes.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.training import processes, provenance
from experiments.training.locking import HOLDER, LOCK

BEGIN_ANEW = "--fresh begins anew"


class Run:
    """The folder `root/<label>-<hash of the configuration>` and the files in it."""

    def __init__(
        self,
        root: Path,
        label: str,
        config: dict[str, Any],
        asked: dict[str, Any] | None = None,
    ):
        """Name the folder; nothing is created before `open`.

        Args:
            root: the folder that it lies in.
            label: how its name begins.
            config: all that its numbers depend on.
            asked: what the rest of its name follows from, if not from `config`: what is
                known of that before anything is found out that takes long.
        """
        self.config = config
        canonical = json.dumps(
            _told_apart(config if asked is None else asked),
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
        self.folder = root / f"{label}-{digest}"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.timing_file = self.folder / "timing.jsonl"
        self.figure_file = self.folder / "learning_curve.png"
        self.blocks_file = self.folder / "blocks.png"
        self.checkpoints_folder = self.folder / "checkpoints"
        self._config_file = self.folder / "config.json"
        self._axes_file = self.folder / "axes.json"
        self._provenance_file = self.folder / "provenance.json"
        self._result_file = self.folder / "result.json"

    def is_finished(self) -> bool:
        """Say whether the run has its result."""
        return self._result_file.exists()

    def result(self) -> dict[str, Any]:
        """Return what a finished run wrote last."""
        return read_json(self._result_file)

    def was_begun(self) -> bool:
        """Say whether a command has opened the run before."""
        return self._config_file.exists()

    def found_axes(self) -> dict[str, list[int]] | None:
        """Return the channel axes that an earlier start has found, None before it.

        Raises:
            OSError: the file is damaged.
        """
        if not self._axes_file.exists():
            return None
        found = read_json(self._axes_file)
        if not isinstance(found, dict) or not all(
            isinstance(axes, list) and all(type(axis) is int for axis in axes)
            for axes in found.values()
        ):
            raise _damaged(self._axes_file, "it must hold a list of axes for each rule")
        return found

    def keep_axes(self, found: dict[str, Any]) -> None:
        """Write the channel axes that have been found, for the next start to read."""
        write_json(self._axes_file, found)

    def check_config(self) -> None:
        """Raise OSError if the folder was begun with another configuration.

        Its name tells what was asked alone, and not what was found.
        """
        if self.was_begun() and read_json(self._config_file) != json.loads(
            json.dumps(self.config)
        ):
            raise _damaged(
                self._axes_file, f"what it holds is not what {self._config_file} has"
            )

    def check_data(self) -> None:
        """Raise OSError if the folder was begun with other data.

        Its name may leave open which they are.
        """
        if not self.was_begun():
            return
        there, ours = read_json(self._config_file), self.config["data"]
        if not isinstance(there, dict) or not isinstance(there.get("data"), dict):
            raise _damaged(self._config_file, "it must say which data were trained on")
        if there["data"] != ours:
            raise OSError(
                f"{self.folder} was begun with other data, {_in_words(there['data'])}; "
                f"these are {_in_words(ours)}: take those, or another --runs-dir, or "
                "begin anew with --fresh"
            )

    def remove(self) -> None:
        """Delete what is in the folder, but for the lock of who removes it."""
        if processes.is_first():
            for path in self._content():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        path.unlink()
        processes.wait_for_all("the run's folder is removed")
        if self._content():
            raise OSError(f"cannot remove {self.folder}")

    def _content(self) -> list[Path]:
        if not self.folder.exists():
            return []
        found = self.folder.iterdir()
        return [path for path in found if path.name not in (LOCK, HOLDER)]

    def open(self) -> None:
        """Create the folder, with the configuration and what runs it in it."""
        if processes.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._config_file, self.config)
            self._add_provenance()
        processes.wait_for_all("the run's folder is there")
        if not self.folder.exists():
            raise OSError(
                f"{self.folder}, made by the first process, is not seen by this one: "
                "it must be in a folder that all processes share"
            )

    def provenance(self) -> list[dict[str, Any]]:
        """Return where the run comes from, one entry for each program that trained it.

        A run that was resumed by another commit, or elsewhere, has more than one.
        """
        if not self._provenance_file.exists():
            return []
        return read_json(self._provenance_file)

    def _add_provenance(self) -> None:
        known, ours = self.provenance(), provenance.describe()
        if known[-1:] != [ours]:
            write_json(self._provenance_file, [*known, ours])

    def cut_metrics(self, step: int) -> None:
        """Drop the metrics past `step`, which the resumed run will write again."""
        kept = [r for r in read_records(self.metrics_file) if r["step"] <= step]
        write_text(self.metrics_file, "".join(_line(record) for record in kept))

    def has_part(self, name: str) -> bool:
        """Say whether the folder has a part."""
        return self._part_file(name).exists()

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a part of an open run, which is measured unless the folder has it."""
        path = self._part_file(name)
        if not path.exists():
            write_json(path, measure())
        return read_json(path)

    def _part_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_json(self._result_file, result)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a `.jsonl` file; a last line cut short is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a `.jsonl` file, on disk when this returns."""
    if not processes.is_first():
        return
    with naming(path), path.open("ab") as file:
        file.write(_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    if not processes.is_first():
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    with naming(path):
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def read_json(path: Path, advice: str = BEGIN_ANEW) -> Any:
    """Return what a JSON file holds; OSError, with advice, if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, str(error), advice) from error


def _in_words(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items())


def _damaged(path: Path, why: str, advice: str = BEGIN_ANEW) -> OSError:
    return OSError(f"{path} is damaged: {why}; {advice}")


def _told_apart(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that differs, keys sorted, where two runs train otherwise.

    Of an optimizer's rules by path the first match wins, so that their order counts.
    """
    if "optimizer" not in config:
        return config
    return {**config, "optimizer": _with_order(config["optimizer"])}


def _with_order(value: Any) -> Any:
    """Return an optimizer's configuration with rules as pairs, which keep their order.

    Rules in the order of the alphabet stay a mapping, whose keys are sorted anyhow.
    """
    if not isinstance(value, dict):
        return value
    pairs = [(key, _with_order(inner)) for key, inner in value.items()]
    # What has a name is an optimizer or a schedule, not rules.
    is_named = isinstance(value.get("name"), str)
    return dict(pairs) if is_named or list(value) == sorted(value) else pairs


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that cannot be written, which the error of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
