"""What is claimed, what the stored results say of it, and what a report shows.

A verdict is never written down: each claim has a function that finds it in the numbers.
"""

import dataclasses
import enum
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

NO_VALUE = "no value published"

# A mean within so many of its standard errors of zero is within the noise.
ERRORS = 2
# Fewer runs do not tell how far runs differ.
FEWEST_SEEDS = 3
# A copy of a data set may lack a few images; a part that was chosen is far below this.
WHOLE_SHARE = 0.99

# What an experiment's JSON file holds.
Stored = Mapping[str, Any]


def is_whole(images: int, official: int) -> bool:
    """Say whether a run had all images of a set, but for some that a copy lacks."""
    return images >= WHOLE_SHARE * official


def standard_error(values: Sequence[float]) -> float:
    """Return that of a mean; of one value it is infinite, as nothing is known of it."""
    if len(values) < 2:
        return math.inf
    return statistics.stdev(values) / math.sqrt(len(values))


class Paired(NamedTuple):
    """By how much two methods differ, seed by seed.

    Attributes:
        mean: of the differences.
        error: its standard error.
        seeds: that both methods were run with.
    """

    mean: float
    error: float
    seeds: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Paired":
        """Sum up the differences, one a seed."""
        error = standard_error(differences)
        return cls(statistics.mean(differences), error, len(differences))

    @property
    def is_noise(self) -> bool:
        """Whether the difference may be none at all."""
        return abs(self.mean) <= ERRORS * self.error

    def in_words(self, unit: str) -> str:
        """Return mean, standard error, where it has one, and size."""
        if self.seeds == 1:
            return f"{self.mean:+.2f} {unit}, one seed"
        mean = f"{self.mean:+.2f} ± {self.error:.2f} {unit}"
        return f"{mean} over {self.seeds} paired seeds"

    def is_positive(self, unit: str, words: str) -> "Finding":
        """Find whether the difference is above zero by more than its noise.

        Args:
            unit: of the difference.
            words: what it is the difference of.
        """
        words = f"{words}; {self.in_words(unit)}"
        if self.seeds < FEWEST_SEEDS:
            return Finding(None, words)
        if self.is_noise:
            return Finding(False, f"within the noise: {words}")
        return Finding(self.mean > 0, words)


class Verdict(enum.StrEnum):
    """What is known of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    NOT_RUN = "not run"


# The same of a bar that a library sets itself, where there is nothing to reproduce.
OF_A_BAR = {
    Verdict.REPRODUCED: "met",
    Verdict.NOT_REPRODUCED: "missed",
    Verdict.NOT_RUN: "not run",
}


class Finding(NamedTuple):
    """What stored results say of a claim.

    Attributes:
        holds: whether they bear it out; None where they cannot tell.
        ours: the numbers that decide.
    """

    holds: bool | None
    ours: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that a paper, or this library, says.

    Attributes:
        text: what is claimed, in a sentence.
        find: reads it off the stored results.
        if_so: what the numbers have to show, where the text leaves that open.
        published: the value; for a bar of the library, the bar.
    """

    text: str
    find: Callable[[Stored], Finding]
    if_so: str = ""
    published: str = NO_VALUE

    def judge(self, stored: Stored | None) -> "Judged":
        """Return the claim with its verdict; `stored` is None where nothing is."""
        if stored is None:
            return Judged(self, Verdict.NOT_RUN, "")
        holds, ours = self.find(stored)
        if holds is None:
            return Judged(self, Verdict.NOT_RUN, ours)
        verdict = Verdict.REPRODUCED if holds else Verdict.NOT_REPRODUCED
        return Judged(self, verdict, ours)


class Judged(NamedTuple):
    """A claim, its verdict, and the numbers or the reason behind that, if any."""

    claim: Claim
    verdict: Verdict
    ours: str


class Picture(NamedTuple):
    """A figure that is drawn from stored results.

    Attributes:
        name: of its file, without folder and ending.
        shows: what a reader who cannot see it needs to know.
        draw: writes it as a PNG.
    """

    name: str
    shows: str
    draw: Callable[[Path, Stored], None]


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """What a report shows of one experiment.

    Attributes:
        claims: what it decides.
        extent: how much was run, in words: seeds, epochs or steps.
        tables: from the stored results.
        pictures: drawn from them.
        note: what a reader must know beside the verdicts, if anything.
        whole: the options of the commands that make all that the claims ask for.
        stored_by: those of the commands that made what is stored; None: it is `whole`.
        without_results: what tables are made of where nothing is stored, for those that
            hold published values as well; None: there are none then.
    """

    claims: tuple[Claim, ...]
    extent: Callable[[Stored], str]
    tables: tuple[Callable[[Stored], Table], ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""
    whole: tuple[str, ...] = ("",)
    stored_by: Callable[[Stored], tuple[str, ...]] | None = None
    without_results: Stored | None = None


@dataclasses.dataclass(frozen=True)
class Chapter:
    """The experiments of one paper, by the names that the command line knows.

    Attributes:
        title: of the paper.
        source: who, when, where, and what its numbers are.
        exhibits: by name.
        claimed: what their claims are, in the plural.
        verdicts: the words for these.
    """

    title: str
    source: str
    exhibits: Mapping[str, Exhibit]
    claimed: str = "claims of the papers"
    verdicts: Mapping[Verdict, str] = dataclasses.field(
        default_factory=lambda: {verdict: str(verdict) for verdict in Verdict}
    )
