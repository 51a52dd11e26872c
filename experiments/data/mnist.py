"""MNIST from its four official gzipped idx files."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset, Split, with_validation
from experiments.data.files import check_labels, damaged, find_folder

ORIGIN = "https://yann.lecun.com/exdb/mnist/"
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Two zero bytes, the type (8: unsigned byte), the number of dimensions.
_IMAGES, _LABELS = 0x0803, 0x0801


def load(data_dir: Path | None) -> Dataset:
    """Load MNIST; see `experiments.data.load`."""
    folder = find_folder(
        data_dir, FILES, ("mnist", "MNIST", "MNIST/raw"), dataset="mnist", origin=ORIGIN
    )
    train, test = (
        _read_split(folder / images, folder / labels)
        for images, labels in (FILES[:2], FILES[2:])
    )
    return with_validation("mnist", 10, train, test, str(folder))


def _read_split(image_file: Path, label_file: Path) -> Split:
    images, labels = _read_idx(image_file, _IMAGES), _read_idx(label_file, _LABELS)
    if len(images) != len(labels):
        raise damaged(
            label_file,
            f"holds {len(labels):,} labels",
            f"{image_file.name} holds {len(images):,} images, one label each is right",
        )
    if images.shape[1:] != (28, 28):
        raise damaged(
            image_file, f"images of shape {images.shape[1:]}", "MNIST's are (28, 28)"
        )
    check_labels(label_file, labels, 0, 9)
    return Split(images[..., None], labels.astype(np.int32))


def _read_idx(path: Path, magic: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise damaged(
            path,
            f"cannot be decompressed ({error})",
            f"a complete gzip file is needed, take it again from {ORIGIN}",
        ) from error
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    found = int.from_bytes(content[:4], "big")
    if len(content) < header or found != magic:
        raise damaged(
            path,
            f"begins with the magic number {found:#010x}",
            f"an idx file of this kind begins with {magic:#010x}",
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape) or not shape[0]:
        raise damaged(
            path,
            f"holds {len(content):,} bytes uncompressed",
            f"its header promises shape {shape}, that is "
            f"{header + math.prod(shape):,} bytes, of at least one record",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
