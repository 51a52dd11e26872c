"""Checkpoints of a run: the newest few, and the newest one that can be read.

Orbax writes each beside its final name and renames it when it is whole; what can still
go wrong is a file damaged later, and then the checkpoint before it serves.
"""

import logging
import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from experiments.steps import TrainState

KEPT = 3


class Checkpoints:
    """The checkpoints in one folder, saved in the background; a context manager."""

    def __init__(self, folder: Path):
        """Open the folder, creating it if there is none."""
        # Orbax reports every save at a level that a progress bar does not survive.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last save."""
        self._manager.close()

    def save(self, step: int, state: TrainState) -> None:
        """Begin to save the state after `step` steps."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def latest_step(self) -> int | None:
        """Return the newest saved step, None before the first."""
        return self._manager.latest_step()

    def restore(self, template: TrainState) -> TrainState | None:
        """Return the newest readable state, with a warning for each newer one.

        Args:
            template: a state of the same structure, shapes, dtypes and shardings.

        Returns:
            The state, or None if there are no checkpoints.

        Raises:
            OSError: there are checkpoints and none of them can be read. Nothing is
                deleted then: the cause may be the program, not the files.
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
                first_line = (str(error).splitlines() or [""])[0][:200]
                unreadable[step] = f"{type(error).__name__}: {first_line}"
                continue
            for newer, reason in unreadable.items():
                warnings.warn(
                    f"the checkpoint of step {newer} cannot be read ({reason}); "
                    f"using the one before it, of step {step}",
                    stacklevel=2,
                )
                self._manager.delete(newer)
            return state
        if unreadable:
            raise OSError(
                f"no checkpoint in {self._manager.directory} can be read, the newest "
                f"because of {next(iter(unreadable.values()))}; --fresh trains again"
            )
        return None
