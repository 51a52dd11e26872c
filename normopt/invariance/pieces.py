"""Large leaves, piece by piece.

NumPy writes every array between two operations to memory. In pieces that stay in the
cache several operations take about as long as reading the leaf once, and no copy of the
leaf is held beside it.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from normopt.numerics import wide_dtype

Array = Any  # of NumPy; pyright knows no `real` of one
Index = tuple[slice, ...]

# So many elements are a piece: 256 kB of float32, a part of a core's own cache.
PIECE = 2**16


def pieces(*arrays: Array) -> Iterator[tuple[Index, *tuple[Array, ...]]]:
    """Goes through arrays of one shape in pieces that lie together in memory.

    Yields:
      Where a piece is, with one slice for each axis, and the piece of each array, in
      float32 at least.
    """
    dtypes = [wide_dtype(x.dtype) for x in arrays]
    for index in _indices(arrays[0].shape):
        parts = (
            x[index].astype(dtype, copy=False)
            for x, dtype in zip(arrays, dtypes, strict=True)
        )
        yield index, *parts


def _indices(shape: tuple[int, ...]) -> Iterator[Index]:
    """Takes the last axes whole as long as they fit, cuts one, and walks the first."""
    whole, cut = 1, len(shape) - 1
    while cut > 0 and whole * shape[cut] <= PIECE:
        whole *= shape[cut]
        cut -= 1
    steps = [1] * cut + [max(1, PIECE // whole)] if shape else []
    starts = (range(0, n, step) for n, step in zip(shape, steps, strict=False))
    rest = (slice(None),) * (len(shape) - len(steps))
    for first in itertools.product(*starts):
        cuts = (slice(i, i + step) for i, step in zip(first, steps, strict=True))
        yield (*cuts, *rest)


def largest(x: Array) -> float:
    """Gives the largest size of an element; NaN if one is NaN."""
    if x.dtype.kind == "f":
        return float(max(x.max(), -x.min()))
    return float(np.max([np.abs(part).max() for _, part in pieces(x)]))


def in_units(x: Array, top: float) -> Array:
    """Divides by the largest element, so that no square under- or overflows."""
    return x * x.real.dtype.type(1 / top if top else 1)


def squared(x: Array) -> Array:
    """Takes |x|^2 of each element."""
    return np.square(x) if x.dtype.kind == "f" else np.abs(x) ** 2


def length(x: Array) -> float:
    """Takes the length of a leaf or a gradient."""
    top = largest(x)
    squares = (np.sum(squared(in_units(part, top))) for _, part in pieces(x))
    return top * math.sqrt(sum(map(float, squares)))


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Makes room that JAX takes over on a CPU without a copy: aligned to 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)
