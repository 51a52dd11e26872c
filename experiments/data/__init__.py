"""Data sets by name, so that an experiment names its data and nothing more."""

from collections.abc import Callable
from pathlib import Path

from experiments.data import cifar, digits, mnist, stdlib, svhn
from experiments.data.dataset import Dataset as Dataset
from experiments.data.dataset import Split as Split
from experiments.data.text import Text as Text
from experiments.data.text import TextDataset as TextDataset

# What a run trains on.
Data = Dataset | TextDataset

_LOADERS: dict[str, Callable[[Path | None], Data]] = {
    "digits": digits.load,
    "mnist": mnist.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
    "svhn": svhn.load,
    "stdlib": stdlib.load,
}


def names() -> tuple[str, ...]:
    """Return the names that `load` knows."""
    return tuple(_LOADERS)


def load(name: str, data_dir: str | Path | None = None) -> Data:
    """Load a data set into memory.

    Args:
        name: one of `names()`.
        data_dir: the folder with the official files, or its parent. `digits` comes with
            scikit-learn and `stdlib` with Python: they need none.

    Returns:
        Its training, validation and test splits.

    Raises:
        FileNotFoundError: a file is missing; says which, and where it comes from.
        ValueError: the name is unknown, or a file is damaged; says what would be right.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(_LOADERS)}")
    return _LOADERS[name](None if data_dir is None else Path(data_dir))
