"""What a report is told: claims, the experiments that test them, and chapters.

A verdict is never written down: it is found in the numbers. Claims of papers are
compared by `judging`; a bar of the library is a function that reads one number.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

NO_VALUE = "no value published"

# A copy of a data set may lack a few images; a part that was chosen is far below this.
WHOLE_SHARE = 0.99

# What an experiment's JSON file holds.
Stored = Mapping[str, Any]


def is_whole(images: int, official: int) -> bool:
    """Say whether a run had all images of a set, but for some that a copy lacks."""
    return images >= WHOLE_SHARE * official


class Verdict(enum.StrEnum):
    """What is known of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTED = "not tested here"


# The same of a bar that a library sets itself, where there is nothing to reproduce.
OF_A_BAR = {
    Verdict.REPRODUCED: "met",
    Verdict.NOT_REPRODUCED: "missed",
    Verdict.INCONCLUSIVE: "unclear",
    Verdict.NOT_TESTED: "not run",
}


class Finding(NamedTuple):
    """What stored results say of a claim.

    Attributes:
        holds: whether they bear it out; None where they cannot tell.
        ours: the numbers that decide.
    """

    holds: bool | None
    ours: str


class Claimed(Protocol):
    """What a report shows of a claim, whatever judges it."""

    text: str
    published: str

    @property
    def if_so(self) -> str:
        """What the numbers have to show."""

    def judge(self, stored: Stored | None) -> "Judged":
        """Return the claim with its verdict; `stored` is None where nothing is."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A bar that this library sets itself.

    Attributes:
        text: what is claimed, in a sentence.
        find: reads it off the stored results.
        if_so: what the numbers have to show, where the text leaves that open.
        published: the bar.
    """

    text: str
    find: Callable[[Stored], Finding]
    if_so: str = ""
    published: str = NO_VALUE

    def judge(self, stored: Stored | None) -> "Judged":
        """Return the claim with its verdict; `stored` is None where nothing is."""
        if stored is None:
            return Judged(self, Verdict.NOT_TESTED, "")
        holds, ours = self.find(stored)
        if holds is None:
            return Judged(self, Verdict.NOT_TESTED, ours)
        verdict = Verdict.REPRODUCED if holds else Verdict.NOT_REPRODUCED
        return Judged(self, verdict, ours)


class Judged(NamedTuple):
    """A claim, its verdict, and the numbers or the reason behind that, if any."""

    claim: Claimed
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


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    claims: tuple[Claimed, ...] = ()
    extent: Callable[[Stored], str]
    tables: tuple[Callable[[Stored], Any], ...] = ()
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
    claimed: str = "claims of papers, and of toy problems of our own"
    verdicts: Mapping[Verdict, str] = dataclasses.field(
        default_factory=lambda: {verdict: str(verdict) for verdict in Verdict}
    )
