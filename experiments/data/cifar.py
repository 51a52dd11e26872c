"""CIFAR-10 and CIFAR-100 from their official binary files.

The binary version is a plain array of records. The pickle version is refused: loading
a pickle runs whatever code it holds.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset, Split, with_validation
from experiments.data.files import check_labels, damaged, find_folder

ORIGIN = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The files of one of the two sets; the last label byte is the class."""

    name: str
    classes_per_label_byte: tuple[int, ...]
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    # What the archive with the pickles brings, to recognise it.
    pickle_folder: str
    pickle_files: tuple[str, ...]


_CIFAR10 = _Layout(
    name="cifar10",
    classes_per_label_byte=(10,),
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    pickle_folder="cifar-10-batches-py",
    pickle_files=("data_batch_1", "test_batch", "batches.meta"),
)
_CIFAR100 = _Layout(
    name="cifar100",
    classes_per_label_byte=(20, 100),
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test=("test.bin",),
    pickle_folder="cifar-100-python",
    pickle_files=("train", "test", "meta"),
)


def load_cifar10(data_dir: Path | None) -> Dataset:
    """Load CIFAR-10; see `experiments.data.load`."""
    return _load(_CIFAR10, data_dir)


def load_cifar100(data_dir: Path | None) -> Dataset:
    """Load CIFAR-100 with its 100 fine labels; see `experiments.data.load`."""
    return _load(_CIFAR100, data_dir)


def _load(layout: _Layout, data_dir: Path | None) -> Dataset:
    try:
        folder = find_folder(
            data_dir,
            layout.train + layout.test,
            (layout.folder,),
            dataset=layout.name,
            origin=f"{ORIGIN} ({layout.archive})",
        )
    except FileNotFoundError as error:
        if data_dir is not None and (pickles := _find_pickles(layout, data_dir)):
            raise FileNotFoundError(
                f"{layout.name}: {pickles} holds the Python version, whose files are "
                "pickles and are never loaded; take the binary version, "
                f"{layout.archive}, from {ORIGIN}"
            ) from error
        raise
    train, test = (
        _concatenate([_read(folder / name, layout) for name in names])
        for names in (layout.train, layout.test)
    )
    classes = layout.classes_per_label_byte[-1]
    return with_validation(layout.name, classes, train, test, str(folder))


def _find_pickles(layout: _Layout, data_dir: Path) -> Path | None:
    for folder in (data_dir, data_dir / layout.pickle_folder):
        if any((folder / name).is_file() for name in layout.pickle_files):
            return folder
    return None


def _read(path: Path, layout: _Layout) -> Split:
    label_bytes = len(layout.classes_per_label_byte)
    record = label_bytes + _PIXELS
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % record:
        raise damaged(
            path,
            f"{len(content) / record:.2f} records",
            f"a whole number of {record}-byte records is right, at least one",
        )
    records = content.reshape(-1, record)
    for byte, classes in enumerate(layout.classes_per_label_byte):
        check_labels(path, records[:, byte], 0, classes - 1)
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Split(images, records[:, label_bytes - 1].astype(np.int32))


def _concatenate(splits: list[Split]) -> Split:
    return Split(
        np.concatenate([split.images for split in splits]),
        np.concatenate([split.labels for split in splits]),
    )
