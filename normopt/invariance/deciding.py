"""Whether the loss does care about the length of blocks: by scaling them, directly.

An orthogonal gradient is no proof: a `stop_gradient` can make one, and what an epsilon
breaks is small or large only beside what else the leaf does. So blocks are multiplied
by random factors around 1/2 and 2, and the change of the loss is compared with that by
moves of the same blocks, as far in random directions.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from normopt.invariance.evidence import Partition
from normopt.invariance.moving import like, perturbed, scaled
from normopt.invariance.probing import Point, Probe

# Scaling changes the loss by at most this share of what other moves do.
TOLERANCE = 0.015
# So many times that at two points, and there is no need for more; so many times the
# measure of another claim, and one is doubtful beside it.
CLEAR = 4.0
# How often each point is scaled.
DRAWS = 2
# So many times what rounding changes in the loss is a change.
NOISE = 3.0
# Rounding that hides less than this share of what other moves change leaves the word
# to the gradient, whose measure then has to be as small but for its own rounding.
HIDDEN = 0.3
# One point of four may say the opposite: what comes before a block may be nearly dead
# there, with a variance far below any epsilon.
ENOUGH = 3


class Claim(NamedTuple):
    """That the loss is invariant in the blocks of one leaf."""

    leaf: int
    axes: Partition
    measure: float  # of the gradient, root mean square over the points
    rounding: float  # in that measure
    references: dict[int, float]  # by point: what other moves change, to first order


class Decider:
    """Decides claims, those that hold all at once."""

    def __init__(self, probe: Probe, points: list[Point]):
        """Keep what the points say about the rounding of the loss."""
        self._probe, self._points = probe, points
        self._losses: dict[int, float] = {}
        self._known: dict[Any, float] = {}
        relative = [p.noise / abs(p.loss) for p in points if p.loss]
        self._noise = max(_size(relative), float(np.finfo(np.float32).eps))
        # No leaf changes the loss by more than all of them.
        all_losses = [p.loss for p in points]
        self._largest = max(all_losses) - min(all_losses)

    def refuted(self, claims: list[Claim]) -> dict[int, str]:
        """Splits the claims until each is borne out with others, or decided alone.

        The doubtful are parted from the others, where the gradients' measures are
        furthest apart; without such a gap they are halved.

        Returns:
          The reason for each leaf whose claim does not hold.
        """
        if not claims or self._hold_together(claims):
            return {}
        if len(claims) == 1:
            reason = self._reason(claims[0])
            return {claims[0].leaf: reason} if reason else {}
        claims = sorted(claims, key=lambda claim: claim.measure)
        logs = [math.log(max(claim.measure, 1e-9)) for claim in claims]
        gaps = np.diff(logs)
        is_clear = gaps.max() > math.log(CLEAR)
        split = 1 + int(np.argmax(gaps)) if is_clear else len(claims) // 2
        return self.refuted(claims[:split]) | self.refuted(claims[split:])

    def _hold_together(self, claims: list[Claim]) -> bool:
        """Tells whether scaling them all changes less than a share of any other move.

        What other moves change is known to first order here; beyond it they mostly
        change more.
        """
        against = 0
        for point in self._points:
            known = [claim.references.get(point.move.number, 0.0) for claim in claims]
            limit = TOLERANCE * min([*known, self._largest])
            changes = (
                abs(change) <= limit for change in self._changes(point, claims, scaled)
            )
            against += not all(changes)
            if len(self._points) - against < ENOUGH:
                return False
        return True

    def _reason(self, claim: Claim) -> str:
        """Says why one claim does not hold, or nothing if it does."""
        ratios, against = [], 0
        for point in self._points:
            by_scale = _size(list(self._changes(point, [claim], scaled)))
            by_others = _size(list(self._changes(point, [claim], perturbed)))
            noise = NOISE * self._noise * abs(point.loss)
            if by_others > 0:
                ratios.append((by_scale / by_others, noise / by_others))
                against += by_scale > CLEAR * max(TOLERANCE * by_others, noise)
            if len(self._points) - against < ENOUGH:
                break
        else:
            ratios = sorted(ratios)[: max(ENOUGH, len(ratios) - 1)]
            if len(ratios) < ENOUGH:
                return "no move of it changes the loss"
        change, noise = (_size(list(column)) for column in zip(*ratios, strict=True))
        if change <= TOLERANCE:
            return ""
        if change <= noise:
            is_small = claim.measure <= TOLERANCE + NOISE * claim.rounding
            if noise <= HIDDEN and is_small:
                return ""
            return "rounding of the loss hides whether it cares"
        return (
            f"scaling its blocks by {claim.axes} changes the loss by "
            f"{100 * change:.2g} % of what other moves as far do"
        )

    def _changes(
        self, point: Point, claims: list[Claim], change: Callable[..., np.ndarray]
    ) -> Iterator[float]:
        """Gives the changes of the loss when the blocks of all claims are changed."""
        for draw in range(DRAWS):
            which = tuple((claim.leaf, claim.axes) for claim in claims)
            known = point.move.number, which, change, draw
            if known not in self._known:
                self._known[known] = self._change(point, claims, change, draw)
            yield self._known[known]

    def _change(
        self,
        point: Point,
        claims: list[Claim],
        change: Callable[..., np.ndarray],
        draw: int,
    ) -> float:
        weights = self._probe.at(point.move)
        if point.move.number not in self._losses:
            self._losses[point.move.number] = float(self._probe.value(weights))
        for claim in claims:
            rng = self._probe.random(point.move.number, claim.leaf, draw, 1)
            w = weights[claim.leaf]
            weights[claim.leaf] = like(change(w, rng, claim.axes), w)
        loss = float(self._probe.value(weights)) - self._losses[point.move.number]
        return loss if math.isfinite(loss) else math.inf


def _size(changes: list[float]) -> float:
    return math.sqrt(sum(change**2 for change in changes) / max(len(changes), 1))
