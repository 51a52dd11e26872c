"""What two programs that take turns took, one over the other, round by round."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """The median over the rounds, and the quartiles on both sides of it."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, ours: Iterable[float], theirs: Iterable[float]) -> "Ratio":
        """Divide the times of the same round: another load on the machine slows both.

        Args:
            ours: seconds, one a round.
            theirs: in the same rounds.
        """
        ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
        # Of a single round the quantiles are not defined, and would be its own.
        several = ratios if len(ratios) > 1 else 2 * ratios
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median, (low, high))


def cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the ratio, the quartiles and the bar of a stored row, as a table has them.

    Args:
        row: `ratio`, `quartiles`, `bar` and `holds`, each None where there is none.
    """
    ratio = quartiles = bar = "-"
    if row["ratio"] is not None:
        ratio = f"{row['ratio']:.2f}"
        quartiles = "{:.2f}-{:.2f}".format(*row["quartiles"])
    if row["bar"] is not None:
        bar = f"{row['bar']:g} {'holds' if row['holds'] else 'missed'}"
    return ratio, quartiles, bar
