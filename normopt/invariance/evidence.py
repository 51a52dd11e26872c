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
from normopt.invariance.moving import in_units

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


class Summary(NamedTuple):
    """What one gradient says about a leaf as a whole."""

    length: float  # of the gradient
    sample: np.ndarray  # of its elements, to compare it with another one
    chosen: np.ndarray  # where they are

    def rounding(self, other: "Summary") -> float:
        """Gives the share of the gradient that is rounding, from a second one."""
        length = float(np.linalg.norm(self.sample))
        if length == 0:
            return math.inf
        return float(np.linalg.norm(self.sample - other.sample)) / length


def summary(g: np.ndarray, chosen: np.ndarray | None = None) -> Summary:
    """Sums up a gradient, of which no copy has to be kept to see its rounding."""
    unit, top = in_units(g)
    flat = unit.ravel()
    if chosen is None:
        chosen = np.flatnonzero(flat)
        chosen = chosen[:: max(1, len(chosen) // SAMPLE)]
    length = top * float(np.sqrt(np.sum(np.abs(flat) ** 2)))
    return Summary(length, flat[chosen] * top, chosen)


def radial(w: np.ndarray, g: np.ndarray, axes: Partition) -> Radial:
    """Measures a gradient by the blocks of one partition.

    Re(g w), without a conjugate, is Euler's product for complex leaves too: JAX returns
    the conjugate of the direction of ascent.
    """
    (w, top), (g, steepest) = in_units(w), in_units(g)
    within = tuple(axis for axis in range(w.ndim) if axis not in axes)
    dots, ww, gg = (
        np.sum(x, axis=within, dtype=x.dtype).ravel().astype(np.float64)
        for x in ((g * w).real, np.abs(w) ** 2, np.abs(g) ** 2)
    )
    reference = math.sqrt(np.sum(gg * ww) / block_size(w.shape, axes))
    return Radial(dots * (top * steepest), reference * top * steepest)
