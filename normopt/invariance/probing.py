"""The loss and its gradient around the given parameters.

What holds at one point may be chance or a special start: zero biases hide what they
would break. So parameters are moved, every leaf by its own size, and leaves without a
size of their own by as much as changes the loss like the others do.
"""

import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

from normopt.invariance.evidence import (
    Partition,
    Radial,
    Summary,
    partitions,
    radials,
    summaries,
)
from normopt.invariance.losses import Gradient, Value, Weights
from normopt.invariance.moving import moved, seed_of
from normopt.numerics import widened

# Strengths of the moves, relative to each leaf's size.
STRENGTHS = (0.25, 0.5, 0.75, 0.5)
# So many more points are looked at, at most, until every leaf has a size.
CALIBRATIONS = 3
# How often a move that goes too far is halved.
HALVINGS = 4
# A measure up to this at one point is worth a look at finer partitions there.
FINER = 0.7
# A gradient with more rounding than this share of its length has no size. Measured:
# 1e-6 in float32, 0.01 to 0.04 with bfloat16, about 1 where the true gradient is zero.
ROUNDING = 0.1
# A leaf that moves the loss by less than this share of the median leaf is too small to
# show what it would break (biases that start at 1e-6), as a leaf of zeros is.
NEGLIGIBLE = 0.01
# A size found for such a leaf holds as long as it moves the loss like the median leaf
# within this factor.
SETTLED = 10.0
# The size of leaves of zeros where all are, as long as no gradient tells a better one.
FALLBACK_SIZE = 0.1
# No leaf is moved by more than this many times the largest leaf's size.
LARGEST_MOVE = 1e4

class Sight(NamedTuple):
    """What the gradients at one point say about a leaf's partition."""

    radial: Radial
    rounding: float  # the share of its measure that is rounding


class Point(NamedTuple):
    """A point of parameter space, where the gradient was taken twice."""

    number: int
    strength: float
    loss: float
    noise: float  # what rounding changes the loss by
    sights: list[dict[Partition, Sight]]  # by leaf


class Probe:
    """One loss around one set of parameters."""

    def __init__(
        self, value: Value, gradient: Gradient, base: Weights, key: jax.Array
    ):
        """Measure the gradient at `base`, and give every leaf a size.

        Raises:
          ValueError: if the loss or its gradient is not finite there.
        """
        self.value, self._gradient = value, gradient
        self._base, self._key = base, key
        wide = [widened(w) for w in base]
        self._sizes = [
            summary.length / math.sqrt(w.size)
            for summary, w in zip(self._summaries(wide, wide), base, strict=True)
        ]
        self._small = {i for i, size in enumerate(self._sizes) if not size}
        usual = float(np.median([s for s in self._sizes if s] or [FALLBACK_SIZE]))
        self._sizes = [size or usual for size in self._sizes]
        self._cap = LARGEST_MOVE * max(self._sizes)
        loss, grads = gradient(base, 1.0)
        if not _is_finite(loss, self._summaries(base, grads)):
            raise ValueError(
                "`find_scale_invariance` needs a finite loss with finite gradients at "
                f"`params`; the loss is {float(loss):g}"
            )

    def seed(self, *numbers: int) -> np.ndarray:
        """Derives a seed from the key of the search."""
        return seed_of(self._key, *numbers)

    def at(self, number: int, strength: float, jitter: float = 0.0) -> Weights:
        """Moves the parameters; the same number is the same direction."""
        return [
            moved(w, self.seed(number, i), strength * size, jitter)
            for i, (w, size) in enumerate(zip(self._base, self._sizes, strict=True))
        ]

    def points(self) -> list[Point]:
        """Looks at points until there are enough at which every leaf has its size."""
        found: list[Point] = []
        for number in range(len(STRENGTHS) + CALIBRATIONS):
            if len(found) == len(STRENGTHS):
                break
            point, changed = self._look(number, STRENGTHS[len(found)])
            left = len(STRENGTHS) + CALIBRATIONS - number
            if point and (not changed or left <= len(STRENGTHS) - len(found)):
                found.append(point)
        return found

    def _look(self, number: int, most: float) -> tuple[Point | None, bool]:
        """Takes the gradient at a point twice, and corrects sizes by it.

        The second is that of three times the loss, at weights that differ in their last
        bits: the same in exact arithmetic to a few units of precision.

        Returns:
          The point, or None if there is none with finite gradients, and whether a size
          was changed, so that the point was not where it should have been.
        """
        for halving in range(HALVINGS + 1):
            strength = most / 2**halving
            weights = self.at(number, strength)
            loss, grads = self._gradient(weights, 1.0)
            first = self._summaries(weights, grads)
            if _is_finite(loss, first):
                break
        else:
            return None, False
        measured = _by_level(weights, grads, first)
        chosen = {
            i: tuple(axes for axes, one in of_leaf.items() if axes and one.measure < 1)
            for i, of_leaf in enumerate(measured)
        }
        del weights, grads
        weights = self.at(number, strength, jitter=1.0)
        again, grads = self._gradient(weights, 3.0)
        second = self._summaries(weights, grads)
        others = radials(weights, grads, {i: c for i, c in chosen.items() if c})
        sights = []
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            sight = {(): Sight(one.whole, one.whole.rounding(other.whole))}
            for axes in chosen[i]:
                radial = measured[i][axes]
                sight[axes] = Sight(radial, radial.rounding(others[i][axes]))
            sights.append(sight)
        lengths = {
            i: one.length
            for i, (one, other) in enumerate(zip(first, second, strict=True))
            if one.rounding(other) < ROUNDING
        }
        noise = abs(float(loss) - float(again))
        point = Point(number, strength, float(loss), noise, sights)
        return point, self._resize(lengths)

    def _summaries(self, weights: Weights, grads: Weights) -> list[Summary]:
        return summaries(weights, grads, [self.seed(i) for i in range(len(weights))])

    def _resize(self, lengths: dict[int, float]) -> bool:
        """Sizes small leaves by what they change the loss by; tells if one changed."""
        sizes = self._sizes
        effects = {i: length * sizes[i] for i, length in lengths.items()}
        rest = [effect for i, effect in effects.items() if i not in self._small]
        typical = float(np.median(rest or list(effects.values()) or [0.0]))
        self._small |= {i for i, e in effects.items() if e < NEGLIGIBLE * typical}
        changed = False
        for i in self._small & effects.keys():
            if not typical / SETTLED <= effects[i] <= typical * SETTLED and lengths[i]:
                size = min(typical / lengths[i], self._cap)
                changed |= size != sizes[i]
                sizes[i] = size or sizes[i]
        return changed


def _by_level(
    weights: Weights, grads: Weights, whole: list[Summary]
) -> list[dict[Partition, Radial]]:
    """Measures whole leaves first, and finer partitions where the coarser may hold.

    An invariance of the blocks of some axes is one of the blocks of fewer of them.
    """
    found: list[dict[Partition, Radial]] = [{(): one.whole} for one in whole]
    for level in range(1, max(w.ndim for w in weights)):
        chosen = {}
        for i, known in enumerate(found):
            hopeful = {axes for axes, one in known.items() if one.measure < FINER}
            axes = tuple(
                axes
                for axes in partitions(weights[i].shape)
                if len(axes) == level
                and hopeful.issuperset(itertools.combinations(axes, level - 1))
            )
            if axes:
                chosen[i] = axes
        for i, measured in radials(weights, grads, chosen).items():
            found[i].update(measured)
    return found


def _is_finite(loss: jax.Array, found: list[Summary]) -> bool:
    return bool(np.all(np.isfinite([float(loss), *(one.length for one in found)])))
