"""SVHN's cropped digits from the two official Matlab files."""

from pathlib import Path

import numpy as np
import scipy.io

from experiments.data.dataset import Dataset, Split, with_validation
from experiments.data.files import check_labels, damaged, find_folder

ORIGIN = "http://ufldl.stanford.edu/housenumbers/"
FILES = ("train_32x32.mat", "test_32x32.mat")


def load(data_dir: Path | None) -> Dataset:
    """Load SVHN; see `experiments.data.load`."""
    folder = find_folder(
        data_dir, FILES, ("svhn", "SVHN"), dataset="svhn", origin=ORIGIN
    )
    train, test = (_read(folder / name) for name in FILES)
    return with_validation("svhn", 10, train, test, str(folder))


def _read(path: Path) -> Split:
    right = f"arrays X (32, 32, 3, n), uint8, and y (n, 1) are right, as from {ORIGIN}"
    try:
        content = scipy.io.loadmat(path, variable_names=("X", "y"))
    # scipy has no common error: a damaged file surfaces as any of several types.
    except Exception as error:
        raise damaged(path, f"cannot be read ({error})", right) from error
    missing = [name for name in ("X", "y") if name not in content]
    if missing:
        raise damaged(path, f"without {' and '.join(missing)}", right)
    images, labels = content["X"], content["y"].ravel()
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape != (32, 32, 3, len(labels))
        or not len(labels)
    ):
        raise damaged(
            path,
            f"X is {images.shape} {images.dtype}, y is {content['y'].shape}",
            right,
        )
    check_labels(path, labels, 1, 10)
    # The digit 0 has the label 10 in the files.
    return Split(
        np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
        (labels % 10).astype(np.int32),
    )
