"""How wide the valley of a curve of errors is, and without each seed in turn."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MARGIN = 0.01  # what is near: an error of one point more


@dataclasses.dataclass(frozen=True)
class Valley:
    """Where a curve over powers of a base is at most as high as a bound.

    Attributes:
        low: the exponent where it begins.
        high: that where it ends.
        cut: whether it reaches an end of the grid, and so perhaps further.
    """

    low: float
    high: float
    cut: bool

    @property
    def width(self) -> float:
        """How many powers it spans: decades of 10, octaves of 2."""
        return self.high - self.low

    def in_words(self, decimals: int = 2) -> str:
        """Return the width, which is a bound where the valley is cut."""
        return f"{'≥' if self.cut else ''}{self.width:.{decimals}f}"


def near_best(errors: np.ndarray, exponents: Sequence[float]) -> Valley:
    """Measure how wide a curve is at `MARGIN` above its lowest error.

    Args:
        errors: one for each exponent.
        exponents: rising.
    """
    return valley(errors, exponents, int(errors.argmin()), errors.min() + MARGIN)


def valley(
    errors: np.ndarray, exponents: Sequence[float], middle: int, bound: float
) -> Valley:
    """Measure how wide a curve is.

    Its sides are straight lines between the exponents of the grid.

    Args:
        errors: one for each exponent.
        exponents: rising.
        middle: the index of an exponent inside. If its own error is above the bound,
            there is no valley, and so one of no width.
        bound: the largest error.
    """
    if errors[middle] > bound:
        return Valley(float(exponents[middle]), float(exponents[middle]), cut=False)
    ends, cut = [], False
    for side in (range(middle, -1, -1), range(middle, len(errors))):
        beyond = next((i for i in side if errors[i] > bound), None)
        if beyond is None:
            ends.append(exponents[side[-1]])
            cut = True
            continue
        inside = beyond - side.step
        share = (bound - errors[inside]) / (errors[beyond] - errors[inside])
        step = exponents[beyond] - exponents[inside]
        ends.append(exponents[inside] + share * step)
    return Valley(float(ends[0]), float(ends[1]), cut)


def leaving_out(of: Callable[[list[int]], Valley], seeds: int) -> list[Valley]:
    """Return the valley of all seeds, then that of all but each of them.

    Args:
        of: from the seeds that count to the valley.
        seeds: how many there are.
    """
    everyone = list(range(seeds))
    return [of(everyone), *(of([k for k in everyone if k != out]) for out in everyone)]


def in_words(valleys: list[Valley], decimals: int = 2) -> str:
    """Return the width with all seeds, and from where to where it is without one.

    Args:
        valleys: what `leaving_out` returns.
        decimals: of each number.
    """
    everyone, *without = valleys
    widths = [one.width for one in without]
    ends = (f"{width:.{decimals}f}" for width in (min(widths), max(widths)))
    return f"{everyone.in_words(decimals)} ({', '.join(ends)})"


def cut_in_words(valleys: Mapping[str, Valley]) -> str:
    """Name an optimizer whose valley may be wider than its grid, or return nothing.

    Args:
        valleys: by name.
    """
    cut = next((name for name, one in valleys.items() if one.cut), None)
    return "" if cut is None else f"what was tried ends inside the valley of {cut}"
