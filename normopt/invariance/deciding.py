"""Whether the loss does care about the length of blocks: by scaling them, directly.

An orthogonal gradient is no proof: a `stop_gradient` can make one, and what an epsilon
breaks is small or large only beside what else the leaf does. So blocks are multiplied
by random factors around 1/2 and 2, and the change of the loss is compared with that by
moves of the same blocks, as far in random directions.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from normopt.invariance.evidence import Partition, rms
from normopt.invariance.moving import factors, perturbed, scaled
from normopt.invariance.probing import Point, Probe

# Scaling changes the loss by at most this share of what other moves do.
TOLERANCE = 0.015
# So many times that at two points, and there is no need for more; that over so many is
# clear; so many times the measure of another claim, and one is doubtful beside it.
CLEAR = 4.0
# Each point is scaled by factors, and by one over them: what is nearly linear, and so
# invariant, in one direction need not be in the other.
TURNS = (1, -1)
# So many times what rounding changes in the loss is a change.
NOISE = 3.0
# Rounding that hides less than this share of what other moves change leaves the word
# to the gradient, whose measure then has to be as small but for its own rounding.
HIDDEN = 0.3
# One point of four may say the opposite, if the others are clear: what comes before a
# block may be nearly dead there, with a variance far below any epsilon.
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
        """Keep what the points say about the loss."""
        self._probe, self._points = probe, points
        self._moved: dict[int, float] = {}
        self._scaled: dict[Any, float] = {}
        # No leaf changes the loss by more than all of them.
        losses = [point.loss for point in points]
        self._largest = max(losses) - min(losses)
        self._allowed = len(points) - ENOUGH

    def refuted(self, claims: list[Claim]) -> dict[int, str]:
        """Splits the claims until each is borne out with others, or decided alone.

        Between two splits every point is moved to once, for all groups.

        Returns:
          The reason for each leaf whose claim does not hold.
        """
        reasons: dict[int, str] = {}
        groups = [claims] if claims else []
        while groups:
            failed = self._failed(groups)
            reasons |= self._reasons([group[0] for group in failed if len(group) == 1])
            groups = [
                part for group in failed if len(group) > 1 for part in _split(group)
            ]
        return reasons

    def _failed(self, groups: list[list[Claim]]) -> list[list[Claim]]:
        """Gives the groups that see their lengths, when all are scaled together.

        A point may be against one only if no other leaves a doubt.
        """
        seen: list[list[float]] = [[] for _ in groups]
        failed: dict[int, list[Claim]] = {}
        for point in self._points:
            for i, group in enumerate(groups):
                if i not in failed:
                    seen[i].append(self._share(point, group))
                    against = sum(share > 1 for share in seen[i])
                    doubtful = sum(share > 1 / CLEAR for share in seen[i])
                    if against > self._allowed or (against and doubtful > against):
                        failed[i] = group
        return [failed[i] for i in sorted(failed)]

    def _share(self, point: Point, claims: list[Claim]) -> float:
        """Gives what scaling changes the loss by, as a share of what it may.

        What other moves change is known to first order here; beyond it they mostly
        change more. The loss that came with the gradient is known already, but from
        another program, which rounds otherwise: it is enough where little has changed.
        """
        known = [claim.references.get(point.move.number, 0.0) for claim in claims]
        limit = TOLERANCE * min([*known, self._largest])
        most = 0.0
        for loss in self._losses(point, claims):
            change = abs(loss - point.loss)
            if change > limit / CLEAR:
                change = abs(loss - self._loss_at(point))
            share = change / limit if limit else math.inf
            most = max(most, share if change else 0.0)
            if not 1 / CLEAR < most <= 1:
                break
        return most

    def _reasons(self, claims: list[Claim]) -> dict[int, str]:
        """Decides claims each alone, and says why those do not hold that do not."""
        changes: list[list[tuple[float, float, float]]] = [[] for _ in claims]
        against = [0] * len(claims)
        for point in self._points if claims else []:
            loss = self._loss_at(point)
            for i, claim in enumerate(claims):
                if against[i] > self._allowed:
                    continue
                by_scale, by_others = (
                    rms(x - loss for x in self._losses(point, [claim], elsewhere))
                    for elsewhere in (False, True)
                )
                if by_others > 0:
                    changes[i].append((by_scale, by_others, abs(point.loss)))
                    clear = CLEAR * max(TOLERANCE * by_others, self._noise * abs(loss))
                    against[i] += by_scale > clear
        reasons = {}
        for claim, seen, number in zip(claims, changes, against, strict=True):
            ratios = [
                (by_scale / by_others, self._noise * loss / by_others)
                for by_scale, by_others, loss in seen
            ]
            reasons[claim.leaf] = _reason(claim, ratios, number > self._allowed)
        return {leaf: reason for leaf, reason in reasons.items() if reason}

    @property
    def _noise(self) -> float:
        """Gives the share of the loss that may be rounding.

        The loss alone and the loss with its gradient are two programs: what differs
        between them is rounding too.
        """
        between = (
            abs(self._moved[point.move.number] - point.loss) / abs(point.loss)
            for point in self._points
            if point.move.number in self._moved and point.loss
        )
        share = rms([*self._probe.noises, *between])
        return NOISE * max(share, float(np.finfo(np.float32).eps))

    def _loss_at(self, point: Point) -> float:
        number = point.move.number
        if number not in self._moved:
            self._moved[number] = float(self._probe.value(self._probe.at(point.move)))
        return self._moved[number]

    def _losses(
        self, point: Point, claims: list[Claim], elsewhere: bool = False
    ) -> Iterator[float]:
        """Gives the losses when the blocks of all claims are scaled.

        Args:
          point: where.
          claims: whose blocks.
          elsewhere: moves them as far in random directions instead.
        """
        number, which = point.move.number, tuple((c.leaf, c.axes) for c in claims)
        for turn in TURNS:
            known = number, which, elsewhere, turn
            if known not in self._scaled:
                weights = self._probe.at(point.move)
                for leaf, axes in which:
                    w, random = weights[leaf], self._probe.random
                    by = factors(w, random(number, leaf, 1, 1), axes) ** turn
                    rng = random(number, leaf, 2 + turn, 1)
                    weights[leaf] = (
                        perturbed(w, by, rng, axes) if elsewhere else scaled(w, by)
                    )
                loss = float(self._probe.value(weights))
                self._scaled[known] = loss if math.isfinite(loss) else math.inf
            yield self._scaled[known]


def _split(claims: list[Claim]) -> tuple[list[Claim], list[Claim]]:
    """Parts the doubtful from the others.

    That is where the gradients' measures are furthest apart; without such a gap they
    are halved.
    """
    claims = sorted(claims, key=lambda claim: claim.measure)
    logs = [math.log(max(claim.measure, 1e-9)) for claim in claims]
    gaps = np.diff(logs)
    is_clear = gaps.max() > math.log(CLEAR)
    split = 1 + int(np.argmax(gaps)) if is_clear else len(claims) // 2
    return claims[:split], claims[split:]


def _reason(claim: Claim, ratios: list[tuple[float, float]], is_against: bool) -> str:
    """Says why a claim does not hold, or nothing if it does.

    Args:
      claim: the claim.
      ratios: at each point what scaling changes, and what rounding may, over what other
        moves change.
      is_against: whether too many points are.
    """
    if not is_against and len(ratios) < ENOUGH:
        return "no move of it changes the loss"
    change, noise = (rms(column) for column in zip(*ratios, strict=True))
    if not is_against and change > TOLERANCE:
        close = sorted(ratios)[: max(ENOUGH, len(ratios) - 1)]
        most, noise = (rms(column) for column in zip(*close, strict=True))
        change = most if most <= max(TOLERANCE / CLEAR, noise) else change
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
