"""Finding official files, and saying clearly what is wrong with them.

A user points at a folder; which of the usual places in it holds the files is found
here, and a missing or damaged file is an error that says what would be right.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def find_folder(
    data_dir: Path | None,
    files: Sequence[str],
    subfolders: Sequence[str],
    *,
    dataset: str,
    origin: str,
) -> Path:
    """Return the folder that holds all `files`: `data_dir` or a folder inside it.

    Args:
        data_dir: what the user gave.
        files: the names of the official files.
        subfolders: the names that the official archive or custom gives to their folder;
            they come before any other folder inside `data_dir`.
        dataset: the data set's name, for the error message.
        origin: where the files officially come from, for the error message.

    Returns:
        The first folder that holds every file.

    Raises:
        FileNotFoundError: no folder does; names the missing files of the folder that
            comes closest.
    """
    if data_dir is None:
        raise FileNotFoundError(
            f"{dataset} needs a data_dir (--data-dir): the folder with "
            f"{', '.join(files)}, or its parent. They come from {origin}"
        )
    folders = [data_dir, *(data_dir / name for name in subfolders)]
    if data_dir.is_dir():
        folders += sorted(d for d in data_dir.iterdir() if d.is_dir())
    missing = [[f for f in files if not (d / f).is_file()] for d in folders]
    closest = min(range(len(folders)), key=lambda i: len(missing[i]))
    if missing[closest]:
        raise FileNotFoundError(
            f"{dataset}: missing {', '.join(missing[closest])}; looked in {data_dir} "
            f"and the folders inside it. The official files come from {origin}"
        )
    return folders[closest]


def damaged(path: Path, problem: str, right: str) -> ValueError:
    """Return the error for a file whose content cannot be right."""
    size = path.stat().st_size
    return ValueError(f"{path} ({size:,} bytes): {problem}; {right}")


def check_labels(path: Path, labels: np.ndarray, low: int, high: int) -> None:
    """Raise ValueError unless every label is in [low, high]."""
    if labels.min() < low or labels.max() > high:
        bad = int(np.flatnonzero((labels < low) | (labels > high))[0])
        raise damaged(
            path,
            f"record {bad} has the label {labels[bad]}",
            f"labels are {low} to {high}, so the file is damaged or another data set's",
        )
