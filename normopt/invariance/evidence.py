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
from typing import NamedTuple

import numpy as np

from normopt.blocks import block_size
from normopt.invariance.moving import Array, in_units, squared

Partition = tuple[int, ...]  # the axes that index the blocks

# So many elements of a gradient show how much of it is rounding.
SAMPLE = 4096


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
        if self.reference == 0:
            return math.inf
        return float(np.linalg.norm(self.dots)) / self.reference

    def rounding(self, other: "Radial") -> float:
        """Gives the share of the measure that is rounding, from a second gradient."""
        if self.reference == 0:
            return math.inf
        return float(np.linalg.norm(self.dots - other.dots)) / self.reference


class Products:
    """A leaf and its gradient, multiplied element by element and summed by block.

    All is in units of the largest elements, so that no square under- or overflows.
    Re(g w), without a conjugate, is Euler's product for complex leaves too: JAX returns
    the conjugate of the direction of ascent.
    """

    def __init__(self, w: Array, g: Array):
        """Take the products that the blocks of every partition sum."""
        (w, top), (g, steepest) = in_units(w), in_units(g)
        self._scale = top * steepest
        self._products = (g * w).real, squared(w), squared(g)

    def radial(self, axes: Partition) -> Radial:
        """Measures the gradient by the blocks of one partition."""
        whole = self._products[0]
        within = tuple(axis for axis in range(whole.ndim) if axis not in axes)
        dots, ww, gg = (
            np.sum(x, axis=within).ravel().astype(np.float64) for x in self._products
        )
        reference = math.sqrt(np.sum(gg * ww) / block_size(whole.shape, axes))
        return Radial(dots * self._scale, reference * self._scale)


def length(x: np.ndarray) -> float:
    """Takes the length of a leaf or a gradient."""
    unit, top = in_units(x)
    return top * math.sqrt(np.sum(squared(unit)))


class Sample(NamedTuple):
    """Some elements of a gradient, of which then no copy has to be kept."""

    elements: np.ndarray
    chosen: np.ndarray  # where they are

    @classmethod
    def of(cls, g: np.ndarray) -> "Sample":
        """Chooses elements that are not zero, evenly spaced."""
        nonzero = np.flatnonzero(g)
        # A view would keep the numbers of all elements.
        chosen = nonzero[:: max(1, len(nonzero) // SAMPLE)].copy()
        return cls(g.ravel()[chosen], chosen)

    def rounding(self, other: np.ndarray) -> float:
        """Gives the share of the gradient that is rounding, from a second one."""
        size = length(self.elements) if len(self.chosen) else 0.0
        if size == 0:
            return math.inf
        return length(self.elements - other.ravel()[self.chosen]) / size
