"""What a gradient says about scale invariance, for every partition of a leaf.

The loss does not see the length of a block b if its gradient g is orthogonal to the
block w. The measure of a partition compares what the loss changes by, to first order,
when every block gets longer or shorter at random, with what it changes by when every
block moves as far in a random direction:

    sqrt(sum_b <g_b, w_b>^2) / sqrt(sum_b |g_b|^2 |w_b|^2 / d_b)

It is about 1 for random vectors of any size d_b, and 0 for an invariance.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from normopt.blocks import block_size
from normopt.invariance.moving import add_sums
from normopt.invariance.pieces import (
    PIECE,
    Array,
    in_units,
    largest,
    length,
    pieces,
    squared,
)
from normopt.numerics import wide_dtype

Partition = tuple[int, ...]  # the axes that index the blocks

# So many elements of a gradient show how much of it is rounding.
SAMPLE = 4096


def rms(values: Iterable[float]) -> float:
    """Takes the root mean square, 0 of nothing."""
    squares = [value**2 for value in values]
    return math.sqrt(sum(squares) / max(len(squares), 1))


@functools.cache
def partitions(shape: tuple[int, ...]) -> list[Partition]:
    """Lists the axes that can index blocks of more than one element, finest first.

    Axes of size one are left out; among equally many blocks the later axes come first.
    """
    axes = [axis for axis, n in enumerate(shape) if n > 1]
    subsets = (s for n in range(len(axes)) for s in itertools.combinations(axes, n))
    sized = [(block_size(shape, s), [-a for a in reversed(s)], s) for s in subsets]
    return [s for size, _, s in sorted(sized) if size > 1]


class Radial(NamedTuple):
    """What one gradient says about one partition of a leaf."""

    dots: np.ndarray  # <g_b, w_b> of each block
    reference: float  # the root of the sum of |g_b|^2 |w_b|^2 / d_b

    @property
    def measure(self) -> float:
        """Gives 0 for an invariance, about 1 for random vectors, inf without any."""
        return self._share(self.dots)

    def rounding(self, again: np.ndarray) -> float:
        """Gives the share of the measure that is rounding, from other dots."""
        return self._share(self.dots - again)

    def _share(self, dots: np.ndarray) -> float:
        if self.reference == 0:
            return math.inf
        return float(np.linalg.norm(dots)) / self.reference


class Products:
    """A leaf and its gradient, multiplied element by element and summed by block.

    All is in units of the largest elements, so that no square under- or overflows.
    Re(g w), without a conjugate, is Euler's product for complex leaves too: JAX returns
    the conjugate of the direction of ascent.
    """

    def __init__(self, w: Array, g: Array):
        """Take the products that the blocks of every partition sum."""
        self._w, self._g = w, g
        self._tops = largest(w), largest(g)
        self._scale = math.prod(self._tops)

    def radials(self, which: Iterable[Partition]) -> dict[Partition, Radial]:
        """Measures the gradient by the blocks of each partition."""
        sums = self._sums(which, lambda w, g: ((g * w).real, squared(w), squared(g)))
        return {
            axes: Radial(
                dots * self._scale,
                math.sqrt(np.sum(gg * ww) / block_size(self._w.shape, axes))
                * self._scale,
            )
            for axes, (dots, ww, gg) in sums.items()
        }

    def dots(self, which: Iterable[Partition]) -> dict[Partition, np.ndarray]:
        """Gives the products with the gradient of each partition's blocks alone."""
        sums = self._sums(which, lambda w, g: ((g * w).real,))
        return {axes: dots * self._scale for axes, (dots,) in sums.items()}

    def _sums(
        self,
        which: Iterable[Partition],
        terms: Callable[[Array, Array], tuple[Array, ...]],
    ) -> dict[Partition, list[np.ndarray]]:
        shape, sums = self._w.shape, {}
        for index, w, g in pieces(self._w, self._g):
            parts = terms(in_units(w, self._tops[0]), in_units(g, self._tops[1]))
            for axes in which:
                if axes not in sums:
                    blocks = [n if a in axes else 1 for a, n in enumerate(shape)]
                    sums[axes] = [np.zeros(blocks) for _ in parts]
                for total, part in zip(sums[axes], parts, strict=True):
                    add_sums(total, part, index, axes)
        return {axes: [s.ravel() for s in totals] for axes, totals in sums.items()}


class Sample(NamedTuple):
    """Some elements of a gradient, of which then no copy has to be kept."""

    elements: np.ndarray
    chosen: np.ndarray  # where they are

    @classmethod
    def of(cls, g: Array) -> "Sample":
        """Chooses elements that are not zero, evenly spaced."""
        flat, step = g.reshape(-1), max(1, np.count_nonzero(g) // SAMPLE)
        chosen, seen = [], 0
        for start in range(0, flat.size, PIECE):
            nonzero = np.flatnonzero(flat[start : start + PIECE])
            chosen.append(start + nonzero[-seen % step :: step])
            seen += len(nonzero)
        places = np.concatenate(chosen)
        return cls(_at(flat, places), places)

    def rounding(self, other: Array, factor: float = 1.0) -> float:
        """Gives the share of the gradient that is rounding, from another one.

        Args:
          other: `factor` times the gradient, but for rounding.
          factor: by how much it is larger.
        """
        size = length(self.elements) if len(self.chosen) else 0.0
        if size == 0:
            return math.inf
        again = _at(other.reshape(-1), self.chosen) / np.float32(factor)
        return length(self.elements - again) / size


def _at(flat: Array, places: np.ndarray) -> np.ndarray:
    return flat[places].astype(wide_dtype(flat.dtype))
