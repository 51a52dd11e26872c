"""When what was measured of a partition, before and after scaling, is invariance."""

import math

import numpy as np

from normopt.invariance.evidence import Evidence

# Root mean square of the measure of a candidate, at most: at its own size, and scaled
# up for the first time. It is 1 for random vectors, 0.6 where the epsilon of a norm is
# as large as the variance.
CANDIDATE = 0.75
CANDIDATE_SCALED = 0.25
# What is left of an invariance at LAST_SCALE, at most. Measured: rounding explains all
# that is left of true ones.
RESIDUE = 1e-5
# So many times smaller has become what was broken at the leaf's own size. The share
# eps / (variance + eps) falls with the square of the scale (measured: to 2e-5);
# saturation, and biases that shrink beside a scaled kernel, fall with the scale itself.
FALL = 2e4
# Below this, nothing is broken at the leaf's own size that would have to fall.
SMALL = 0.01
# The same for what rounding explains. Measured: 0.005 in true ones with bfloat16.
NOISY = 0.05
# Fewer gradients of blocks than this are no evidence, nor are fewer points.
FEWEST = 3

Pair = tuple[Evidence, Evidence]  # at the leaf's own size, and scaled up


def typical(seen: list[Evidence]) -> float:
    """Takes the root mean square of the measure: 1 for random vectors.

    Without the worst point if there are enough, as it may be an outlier.
    """
    squares = sorted(one.square for one in seen)
    return math.sqrt(np.mean(squares[:-1] if len(squares) > FEWEST else squares))


def may_hold(pairs: list[Pair]) -> bool:
    """Tells whether a candidate is worth another look, scaled up further."""
    live = [after for _, after in pairs if after.live]
    return _survives(pairs) and typical(live) < CANDIDATE_SCALED


def holds(pairs: list[Pair]) -> bool:
    """Tells whether all that is left of the measure is rounding.

    At `FEWEST` points at least, and at all but two. Of more than `FEWEST` points one
    may say the opposite: what comes before a block may be nearly dead there, with a
    variance far below any epsilon.
    """
    seen = [_vanishes(*pair) for pair in pairs]
    enough = max(FEWEST, len(seen) - 2)
    unbroken = seen.count(False) <= (len(seen) > FEWEST)
    return _survives(pairs) and unbroken and seen.count(True) >= enough


def _vanishes(before: Evidence, after: Evidence) -> bool | None:
    """Tells whether nothing is left of the measure at one point.

    What was broken at the leaf's own size has to be seen to fall even where rounding
    would explain what is left, which is not little in bfloat16. None if rounding hides
    whether it fell.
    """
    left, limit = after.worst, max(RESIDUE, before.worst / FALL)
    if left > limit:
        return False
    if before.worst < SMALL and before.square < NOISY**2:
        return True
    fell = after.live and math.sqrt(after.square) <= limit
    return True if fell else None


def _survives(pairs: list[Pair]) -> bool:
    """Tells whether at least half of the blocks still have a gradient."""
    before = sum(one.live for one, _ in pairs)
    return 2 * sum(one.live for _, one in pairs) >= before > 0
