"""The numbers of a run as files that TensorBoard reads, beside its `metrics.jsonl`."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.training import processes
from experiments.training.records import Record

FOLDER = "tensorboard"


def check() -> None:
    """Raise ValueError unless what writes the files is installed."""
    _writer_class()


@contextlib.contextmanager
def told(folder: Path, step: int, wanted: bool) -> Iterator[Callable[[Record], None]]:
    """Give what takes each record of a run and writes it for TensorBoard.

    Args:
        folder: of the run.
        step: from which it goes on; what stands there of later ones is left out.
        wanted: whether anything is written; of several processes the first one writes.
    """
    if not wanted or not processes.is_first():
        yield lambda record: None
        return
    writer = _writer_class()(logdir=str(folder / FOLDER), purge_step=step + 1)

    def write(record: Record) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    with contextlib.closing(writer):
        yield write


def _writer_class() -> Any:
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs tensorboardX ({error}): pip install '.[tensorboard]'"
        ) from error
