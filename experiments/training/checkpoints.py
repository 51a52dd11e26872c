"""Checkpoints of a run: the newest few, and the newest one that can be read.

Orbax writes each beside its final name and renames it when it is whole, so a save that
is killed or fails takes nothing along. What can still go wrong is a file damaged later,
and then the checkpoint before it serves.
"""

import contextlib
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.training.processes import are_many
from experiments.training.steps import TrainState

KEPT = 3


class Checkpoints:
    """The checkpoints in one folder, saved in the background; a context manager.

    A save that fails raises an OSError that names its step, the cause and the last good
    checkpoint: from `check` once it has failed, at the latest from the next `save` or
    at the end of the `with`.
    """

    def __init__(self, folder: Path):
        """Open the folder, creating it if there is none."""
        # Orbax logs every save, which a progress bar does not survive, and with asyncio
        # the traceback of every write that fails, of which one line is raised here.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, cleanup_tmp_directories=True
            ),
        )
        self._folder = folder
        self._saving: int | None = None
        self._failed = False
        self._hook = sys.unraisablehook

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        sys.unraisablehook = self._report_unless_late
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last save; its failure gives way to an error before it."""
        try:
            self.wait()
        except OSError:
            if kind is None:
                raise
        finally:
            self._close()

    def save(self, step: int, state: TrainState) -> None:
        """Begin to save the state after `step` steps, when the last save is done."""
        self.wait()
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raise what a save in the background failed of; waits for none."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in the background, if there is one."""
        try:
            self._manager.wait_until_finished()
        # A full disk surfaces as any of several types, by which file of it is hit.
        except Exception as error:
            raise self._failure(error) from error

    def last_good(self) -> str:
        """Say which checkpoint is the newest whole one; waits for one being saved."""
        # If that fails, it is the one before it: there is nothing else to say.
        with contextlib.suppress(OSError):
            self.wait()
        return self._newest()

    def restore(self, template: TrainState) -> TrainState | None:
        """Return the newest readable state, with a warning for each newer one.

        Args:
            template: a state of jax.Arrays of the same structure, shapes, dtypes and
                shardings.

        Returns:
            The state, or None if there are no checkpoints.

        Raises:
            OSError: there are checkpoints and none of them can be read, or of several
                processes one cannot read the newest. Nothing is deleted then: the cause
                may be the program, not the files.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        unreadable: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._manager.restore(
                    step, args=ocp.args.StandardRestore(abstract)
                )
            # Damage surfaces as any of several types, by which file of it is hit.
            except Exception as error:
                unreadable[step] = f"{type(error).__name__}: {_first_line(error)}"
                # Others have read other files of it, and go on.
                if are_many():
                    raise OSError(
                        f"the checkpoint of step {step} in {self._folder} cannot be "
                        f"read by one of the processes ({unreadable[step]}); delete it "
                        "and they go on from the one before it"
                    ) from error
                continue
            for newer, reason in unreadable.items():
                warnings.warn(
                    f"the checkpoint of step {newer} cannot be read ({reason}); "
                    f"using the one before it, of step {step}",
                    stacklevel=2,
                )
                self._manager.delete(newer)
            return jax.tree.map(_placed_as, state, template)
        if unreadable:
            raise OSError(
                f"no checkpoint in {self._manager.directory} can be read, the newest "
                f"because of {next(iter(unreadable.values()))}; --fresh trains again"
            )
        return None

    def _newest(self) -> str:
        step = self._manager.latest_step()
        if step is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is that of step {step}"

    def _failure(self, error: Exception) -> OSError:
        self._failed = True
        return OSError(
            f"cannot save the checkpoint of step {self._saving} in {self._folder}: "
            f"{_cause(error)}; {self._newest()}"
        )

    def _close(self) -> None:
        if not self._failed:
            self._manager.close()
            sys.unraisablehook = self._hook
            return
        # Orbax may raise here what has been told. The hook stays: reports of the failed
        # save come as late as the process ends.
        with contextlib.suppress(Exception):
            self._manager.close()

    def _report_unless_late(self, report: Any) -> None:
        """Drop what TensorStore reports to an event loop that orbax has closed.

        That is each write that fails after the first one of a save.
        """
        late = isinstance(report.exc_value, RuntimeError) and (
            str(report.exc_value) == "Event loop is closed"
        )
        if not late:
            self._hook(report)


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest whole checkpoint in a folder, None without any.

    Orbax gives a checkpoint its name when it is whole.
    """
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(steps, default=None)


def _placed_as(leaf: jax.Array, template: jax.Array) -> jax.Array:
    """Leave to JAX where an array lies whose place nobody has named.

    Orbax names the device, and for such arguments a step would be compiled anew: once
    beside others without a place, and once more where its own results come back.
    """
    return leaf if template.committed else jax.device_put(jax.device_get(leaf))


def _cause(error: Exception) -> str:
    """Return what the system said, which TensorStore wraps in its own words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
