"""The loss and its gradient around the given parameters.

What holds at one point may be chance or a special start: zero biases hide what they
would break. So parameters are moved, every leaf by its own size, and leaves without a
size of their own by as much as changes the loss like the others do.
"""

import collections
import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

from normopt.invariance.evidence import (
    Partition,
    Products,
    Radial,
    Sample,
    partitions,
    rms,
)
from normopt.invariance.losses import Gradient, Value, Weights
from normopt.invariance.moving import Randomness, jittered, moved
from normopt.invariance.pieces import length

# Strengths of the moves, relative to each leaf's size: what holds is to hold near the
# parameters. Leaves without a size are moved by all of the one that they are given.
STRENGTHS = (0.1, 0.2, 0.3, 0.4)
# So many more points are looked at if the first gives leaves other sizes.
CALIBRATIONS = 1
# A gradient is taken twice at so many points; what is rounding there is at the others.
LOOKS = 2
# So many times the loss has the same gradient, times this, but for its rounding.
FACTOR = 3.0
# How often a move is halved that goes too far: the loss is not finite there, or most
# leaves lose their gradient (a saturated network).
HALVINGS = 4
# A measure up to this at one point is worth a look at finer partitions there.
FINER = 0.7
# A gradient with more rounding than this share of its length has no size. Measured:
# 1e-6 in float32, 0.01 to 0.04 with bfloat16, about 1 where the true gradient is zero.
ROUNDING = 0.1
# A leaf that is smaller than this share of the median leaf, and moves the loss by less
# than this share, is too small to show what it would break (biases that start at 1e-6),
# as a leaf of zeros is.
NEGLIGIBLE = 0.01
# Leaves that move the loss by less than this share of what the first does are no
# measure for others: most may be behind a layer scale of 1e-6.
UNSEEN = 1e-3
# A size found for such a leaf holds as long as it moves the loss like the median leaf
# within this factor.
SETTLED = 10.0
# The largest measure of a candidate over the root of its leaf's size; the least and
# the most that it is; 1 is chance. Moves of a large leaf change the loss mostly beyond
# first order, by up to so many times more, and what an epsilon breaks is small or large
# beside that.
CANDIDATE, LEAST, MOST = 0.0015, 0.05, 0.3
# More rounding than this in the measure of one gradient, and it says nothing.
HIDDEN = 0.3
# The size of leaves of zeros where all are, as long as no gradient tells a better one.
FALLBACK_SIZE = 0.1
# No leaf is moved by more than this many times the largest leaf's size.
LARGEST_MOVE = 1e4


class Move(NamedTuple):
    """A way from the given parameters to a point around them."""

    number: int  # the same number is the same direction
    sizes: tuple[float, ...]  # what each leaf is moved by, root mean square


class Sight(NamedTuple):
    """What the gradients at one point say about a leaf's partition."""

    radial: Radial
    rounding: float  # the share of its measure that is rounding

    @property
    def tells(self) -> bool:
        """Tells whether the measure is more than rounding."""
        return self.rounding < HIDDEN

    def is_against(self, shape: tuple[int, ...]) -> bool:
        """Tells whether the gradient sees the length of the blocks of a leaf."""
        return self.tells and self.radial.measure > limit(shape)


def limit(shape: tuple[int, ...]) -> float:
    """Gives the largest measure of a candidate, for a leaf of this shape."""
    return min(max(LEAST, CANDIDATE * math.sqrt(math.prod(shape))), MOST)


class Point(NamedTuple):
    """A point of parameter space, where the gradient was taken."""

    move: Move
    loss: float
    sights: list[dict[Partition, Sight]]  # by leaf


class Rounding:
    """What of a leaf's gradient is rounding, where it was taken twice."""

    def __init__(self) -> None:
        """Know of no point yet."""
        self.shares: list[float] = []  # of the gradient's length
        self._of_measures: dict[Partition, list[float]] = collections.defaultdict(list)

    def add(self, share: float, of_measures: dict[Partition, float]) -> None:
        """Notes what was seen at a point."""
        self.shares.append(share)
        for axes, of_measure in of_measures.items():
            self._of_measures[axes].append(of_measure)

    @property
    def is_small(self) -> bool:
        """Tells whether the last gradient is more than its rounding."""
        return bool(self.shares) and self.shares[-1] < ROUNDING

    def of_measure(self, axes: Partition) -> float:
        """Gives the share of a measure; a partition seen nowhere has the leaf's."""
        seen = self._of_measures.get(axes) or self._of_measures[()]
        return rms(seen[-LOOKS:]) if seen else math.inf


class Probe:
    """One loss around one set of parameters."""

    def __init__(self, value: Value, gradient: Gradient, base: Weights, key: jax.Array):
        """Measure the gradient at `base`, and give every leaf a size.

        Raises:
          ValueError: if the loss or its gradient is not finite there.
        """
        self.value, self._gradient, self.random = value, gradient, Randomness(key)
        self.noises: list[float] = []  # shares of the loss that rounding changed
        self._base = base
        sizes = [length(np.asarray(w)) / math.sqrt(w.size) for w in base]
        self._small = {i for i, size in enumerate(sizes) if not size}
        self._usual = float(np.median([s for s in sizes if s] or [FALLBACK_SIZE]))
        self._sizes = [size or self._usual for size in sizes]
        self._cap = LARGEST_MOVE * max(self._sizes)
        loss, grads = gradient(base, 1.0)
        lengths = [length(np.asarray(g)) for g in grads]
        self._alive = np.count_nonzero(lengths)
        self._rounding = [Rounding() for _ in base]
        self._against: collections.Counter[tuple[int, Partition]] = (
            collections.Counter()
        )
        self._moved: tuple[Move, Weights] | None = None
        if not np.all(np.isfinite([float(loss), *lengths])):
            raise ValueError(
                "`find_scale_invariance` needs a finite loss with finite gradients at "
                f"`params`; the loss is {float(loss):g}"
            )

    def at(self, move: Move) -> Weights:
        """Moves the parameters, and keeps them until another point is asked for."""
        if self._moved is None or self._moved[0] != move:
            self._moved = None  # before others are made
            self._moved = move, self._at(move)
        return list(self._moved[1])

    def _at(self, move: Move) -> Weights:
        return [
            moved(w, self.random(move.number, i), size)
            for i, (w, size) in enumerate(zip(self._base, move.sizes, strict=True))
        ]

    def points(self) -> list[Point]:
        """Looks at points until there are enough at which every leaf has its size."""
        found: list[Point] = []
        number, left = 0, len(STRENGTHS) + CALIBRATIONS
        while left and len(found) < len(STRENGTHS):
            small = len(self._small)
            point, changed = self._look(number, STRENGTHS[len(found)])
            left += len(self._small) > small  # others wait for what turned out small
            if point and (not changed or left <= len(STRENGTHS) - len(found)):
                found.append(point)
            number, left = number + 1, left - 1
        return found

    def _look(self, number: int, strength: float) -> tuple[Point | None, bool]:
        """Takes the gradient at a point, and corrects sizes by it.

        Returns:
          The point, or None if every one goes too far, and whether a size
          was changed, so that the point was not where it should have been.
        """
        for halving in range(HALVINGS + 1):
            move = Move(
                number,
                tuple(
                    size * (1.0 if i in self._small else strength) / 2**halving
                    for i, size in enumerate(self._sizes)
                ),
            )
            weights = self._at(move)
            loss, grads = self._gradient(weights, 1.0)
            lengths = [length(np.asarray(g)) for g in grads]
            finite = np.all(np.isfinite([float(loss), *lengths]))
            if finite and 2 * np.count_nonzero(lengths) >= self._alive:
                break
        else:
            return None, False
        measured = [
            self._by_level(i, np.asarray(w), np.asarray(g))
            for i, (w, g) in enumerate(zip(weights, grads, strict=True))
        ]
        twice = any(
            norm and len(rounding.shares) < LOOKS
            for norm, rounding in zip(lengths, self._rounding, strict=True)
        )
        if twice:
            samples = [Sample.of(np.asarray(g)) for g in grads]
            del grads  # before there are others
            self._look_again(move, weights, float(loss), samples, measured)
        sights = [
            {
                axes: Sight(radial, rounding.of_measure(axes))
                for axes, radial in found.items()
                if not axes or radial.measure < FINER
            }
            for found, rounding in zip(measured, self._rounding, strict=True)
        ]
        # Elsewhere a gradient may have become one of rounding alone.
        changed = twice and self._resize(
            {
                i: norm
                for i, norm in enumerate(lengths)
                if norm and self._rounding[i].is_small
            }
        )
        if not changed:
            self._against.update(
                (i, axes)
                for i, seen in enumerate(sights)
                for axes, sight in seen.items()
                if sight.is_against(self._base[i].shape)
            )
        return Point(move, float(loss), sights), changed

    def _look_again(
        self,
        move: Move,
        weights: Weights,
        loss: float,
        samples: list[Sample],
        measured: list[dict[Partition, Radial]],
    ) -> None:
        """Takes the gradient a second time, and notes what of it is rounding.

        It is that of `FACTOR` times the loss, at weights that differ in their last
        bits: the same in exact arithmetic to a few units of precision.
        """
        for i in range(len(weights)):  # with no name that holds on to a leaf
            weights[i] = jittered(weights[i], self.random(move.number, i, 2))
        again, grads = self._gradient(weights, FACTOR)
        if loss:
            self.noises.append(abs(float(again) - loss) / abs(loss))
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            w, g = np.asarray(w), np.asarray(g)
            if not len(samples[i].chosen):
                continue
            kept = [
                axes for axes, r in measured[i].items() if not axes or r.measure < FINER
            ]
            dots = Products(w, g).dots(kept) if kept else {}
            self._rounding[i].add(
                samples[i].rounding(g, FACTOR),
                {
                    axes: measured[i][axes].rounding(dots[axes] / FACTOR)
                    for axes in kept
                },
            )

    def _by_level(
        self, leaf: int, w: np.ndarray, g: np.ndarray
    ) -> dict[Partition, Radial]:
        """Measures a whole leaf first, and finer partitions where the coarser may hold.

        An invariance of the blocks of some axes is one of the blocks of fewer of them.
        What two points were against is not looked at again.
        """
        found: dict[Partition, Radial] = {}
        products = None

        def is_hopeful(axes: Partition) -> bool:
            coarser = itertools.combinations(axes, len(axes) - 1) if axes else []
            may_hold = all(c in found and found[c].measure < FINER for c in coarser)
            return may_hold and self._against[leaf, axes] < 2

        by_level = sorted(partitions(w.shape), key=len)
        for _, level in itertools.groupby(by_level, len):
            hopeful = [axes for axes in level if is_hopeful(axes)]
            if hopeful:
                products = products or Products(w, g)
                found |= products.radials(hopeful)
        return found

    def _resize(self, lengths: dict[int, float]) -> bool:
        """Sizes small leaves by what they change the loss by; tells if one changed.

        Leaves of zeros wait for those that turn out to be small: behind a layer scale
        of 1e-6 all seem to change nothing.
        """
        sizes = self._sizes
        effects = {i: length * sizes[i] for i, length in lengths.items()}
        rest = [effect for i, effect in effects.items() if i not in self._small]
        rest = rest or list(effects.values()) or [0.0]
        typical = float(np.median([e for e in rest if e >= UNSEEN * max(rest)]))
        smaller = {
            i
            for i, effect in effects.items()
            if effect < NEGLIGIBLE * typical and sizes[i] < NEGLIGIBLE * self._usual
        }
        smaller -= self._small
        self._small |= smaller
        changed = False
        for i in smaller or self._small & effects.keys():
            if not typical / SETTLED <= effects[i] <= typical * SETTLED and lengths[i]:
                size = min(typical / lengths[i], self._cap)
                changed |= size != sizes[i]
                sizes[i] = size or sizes[i]
        return changed
