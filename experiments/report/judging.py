"""The engine that judges claims: from arms and a metric to a verdict and a sentence.

A claim is data. What is compared has one number a seed, or is one number of all seeds
together, and an interval of 95 % says how well it is known: by Student's t of paired
differences, by the signs of skewed ones, or by seeds drawn again where it is no mean.
Inside what the claim allows, the claim is reproduced; outside of it, it is not; an
interval that holds both is inconclusive. A setting that was tuned is chosen, for each
seed, by the other seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments.report.claims import NO_VALUE, Judged, Stored, Verdict

CONFIDENCE = 0.95
# How often seeds are drawn again, and from how many on.
RESAMPLES, FEWEST_TO_DRAW = 400, 5


class Interval(NamedTuple):
    """What is known of a number: both ends, and the best guess between them."""

    low: float
    middle: float
    high: float


class Statistic(NamedTuple):
    """A number of all seeds together.

    Attributes:
        seeds: how many there are.
        of: from their indices, some of them several times, to the number.
    """

    seeds: int
    of: Callable[[np.ndarray], float]


# One number a seed, (seeds,), one of them all, or one that is known as it stands.
Sample = np.ndarray | Statistic | float


@dataclasses.dataclass(frozen=True)
class Metric:
    """What arms are compared by.

    Attributes:
        name: of the number.
        read: from the stored results and the name of an arm; None: that arm was not
            run, or not so that it could tell.
        better: the word for one that is better.
        unit: of a difference.
        less_is_better: which way that is.
        scale: of a difference in that unit.
        form: how the number of one arm is written.
        skewed: whether differences are judged by their signs: their median.
        over: what differences are taken over.
    """

    name: str
    read: Callable[[Stored, str], Sample | None]
    better: str = "lower"
    unit: str = "points"
    less_is_better: bool = True
    scale: float = 100.0
    form: str = "{:.2%}"
    skewed: bool = False
    over: str = "paired seeds"


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison, or one number that has to lie in a range.

    Attributes:
        metric: what is compared.
        arm: of which it is claimed.
        against: the other arm; empty: none, and the number itself is judged.
        low: what the advantage of the arm, or the number, has to exceed, in the unit of
            the metric: 0 is better, less than 0 is on par.
        high: what it has to stay below.
    """

    metric: Metric
    arm: str
    against: str = ""
    low: float = 0.0
    high: float = math.inf

    def in_words(self) -> str:
        """Return what has to show."""
        metric = self.metric
        if not self.against:
            ends = (("above", self.low), ("below", self.high))
            bounds = [f"{side} {end:g}" for side, end in ends if math.isfinite(end)]
            return f"{metric.name} {' and '.join(bounds)}"
        if self.low == 0:
            return f"{metric.name} {metric.better} than {self.against}'s"
        return (
            f"{metric.name} {metric.better} than {self.against}'s, or worse by less "
            f"than {-self.low:g} {metric.unit}"
        )

    def judge(self, stored: Stored) -> tuple[Verdict, str]:
        """Return the verdict of the stored numbers, and these."""
        metric = self.metric
        names = [name for name in (self.arm, self.against) if name]
        samples = [metric.read(stored, name) for name in names]
        if any(sample is None for sample in samples):
            return Verdict.NOT_TESTED, ""
        found, seeds = _interval(metric, samples)
        values = ", ".join(
            f"{name} {metric.form.format(_middle(sample))}"
            for name, sample in zip(names, samples, strict=True)
        )
        span = f" ({CONFIDENCE:.0%}: {found.low:.2f} to {found.high:.2f})"
        if math.isinf(found.low):
            span = " (no interval)"
        elif found.low == found.high:
            span = ""
        verdict = verdict_of(found, self.low, self.high)
        if not self.against:
            what = metric.over.split()[-1]
            return verdict, f"{metric.name}: {values}{span}, n = {seeds} {what}"
        ahead = f"ahead by {found.middle:+.2f} {metric.unit}".strip()
        words = f"{ahead}{span}, n = {seeds} {metric.over}"
        return verdict, f"{metric.name}: {values}; {words}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that a paper says, as data.

    Attributes:
        text: what is claimed, in a sentence.
        tests: all of which have to show it.
        needs: says what the stored results lack to be a test of it, or nothing.
        published: the value.
    """

    text: str
    tests: tuple[Check, ...]
    needs: Callable[[Stored], str] = lambda stored: ""
    published: str = NO_VALUE

    @property
    def if_so(self) -> str:
        """What the numbers have to show."""
        return "; ".join(dict.fromkeys(test.in_words() for test in self.tests))

    def judge(self, stored: Stored | None) -> Judged:
        """Return the claim with its verdict; `stored` is None where nothing is."""
        lacks = "" if stored is None else self.needs(stored)
        if stored is None or lacks:
            return Judged(self, Verdict.NOT_TESTED, lacks)
        verdicts, words = zip(*(test.judge(stored) for test in self.tests), strict=True)
        return Judged(self, together(verdicts), "; ".join(filter(None, words)))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return that of a claim which holds if all of several do, as far as are tested."""
    for verdict in (Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE, Verdict.REPRODUCED):
        if verdict in verdicts:
            return verdict
    return Verdict.NOT_TESTED


def verdict_of(found: Interval, low: float, high: float = math.inf) -> Verdict:
    """Return where an interval lies to the range that a claim allows."""
    if low < found.low and found.high < high:
        return Verdict.REPRODUCED
    if found.high <= low or high <= found.low:
        return Verdict.NOT_REPRODUCED
    return Verdict.INCONCLUSIVE


def of_mean(values: np.ndarray) -> Interval:
    """Return Student's interval of a mean."""
    middle = float(values.mean())
    if len(values) < 2:
        return Interval(-math.inf, middle, math.inf)
    error = values.std(ddof=1) / math.sqrt(len(values))
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
    return Interval(middle - reach, middle, middle + reach)


def of_median(values: np.ndarray) -> Interval:
    """Return that of the sign test: whatever the shape of the spread."""
    size, ordered = len(values), np.sort(values)
    tails = scipy.stats.binom.cdf(np.arange(size), size, 0.5)
    # The rank of the ends, counted from 1: 0 where even the extremes are too near.
    rank = int(np.sum(tails <= (1 - CONFIDENCE) / 2))
    if rank == 0:
        return Interval(-math.inf, float(np.median(values)), math.inf)
    low, high = ordered[rank - 1], ordered[size - rank]
    return Interval(float(low), float(np.median(values)), float(high))


def of_statistic(statistic: Statistic) -> Interval:
    """Return that of the statistic over seeds that are drawn again (the bootstrap)."""
    middle = statistic.of(np.arange(statistic.seeds))
    if statistic.seeds < FEWEST_TO_DRAW:
        return Interval(-math.inf, middle, math.inf)
    random = np.random.default_rng(0)
    draws = random.integers(0, statistic.seeds, (RESAMPLES, statistic.seeds))
    values = [statistic.of(draw) for draw in draws]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), middle, float(high))


def by_others(values: np.ndarray, judged: np.ndarray | None = None) -> np.ndarray:
    """Return each seed's value at the setting that is best for the other seeds.

    Args:
        values: seeds x settings, along one axis or several; less is better.
        judged: likewise, of other data, the values that are returned.

    Returns:
        (seeds,).
    """
    flat, judged = (
        each.reshape(len(values), -1)
        for each in (values, values if judged is None else judged)
    )
    others = flat.sum(axis=0) - flat
    return judged[np.arange(len(flat)), others.argmin(axis=1)]


def _interval(metric: Metric, samples: list[Sample]) -> tuple[Interval, int]:
    """Return that of the advantage of the first arm, and over how many seeds it is."""
    sign = -metric.scale if metric.less_is_better else metric.scale
    if isinstance(samples[0], Statistic):
        seeds = samples[0].seeds

        def of(drawn: np.ndarray) -> float:
            values = [sample.of(drawn) for sample in samples]
            return values[0] if len(values) == 1 else sign * (values[0] - values[1])

        return of_statistic(Statistic(seeds, of)), seeds
    if isinstance(samples[0], float):
        return Interval(*[samples[0]] * 3), 1
    if len(samples) == 1:
        return of_mean(samples[0]), len(samples[0])
    differences = sign * (samples[0] - samples[1])
    of_differences = of_median if metric.skewed else of_mean
    return of_differences(differences), len(differences)


def _middle(sample: Sample) -> float:
    if isinstance(sample, Statistic):
        return sample.of(np.arange(sample.seeds))
    return float(np.mean(sample))
