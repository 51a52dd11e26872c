"""What is claimed, what the stored results say of it, and what a report shows.

A verdict is never written down: each claim has a function that finds it in the numbers.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

NO_VALUE = "no value published"

# What an experiment's JSON file holds.
Stored = Mapping[str, Any]


class Verdict(enum.StrEnum):
    """What is known of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    NOT_RUN = "not run"


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
        find: reads it off the stored results; None where no experiment measures it.
        if_so: what the numbers have to show, where the text leaves that open.
        published: the value; for a bar of the library, the bar.
    """

    text: str
    find: Callable[[Stored], Finding] | None
    if_so: str = ""
    published: str = NO_VALUE

    def judge(self, stored: Stored | None) -> "Judged":
        """Return the claim with its verdict; `stored` is None where nothing is."""
        if self.find is None:
            return Judged(self, Verdict.NOT_RUN, "no experiment here measures it")
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
        without_results: what tables are made of where nothing is stored, for those that
            hold published values as well; None: there are none then.
    """

    claims: tuple[Claim, ...]
    extent: Callable[[Stored], str]
    tables: tuple[Callable[[Stored], Table], ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""
    without_results: Stored | None = None


@dataclasses.dataclass(frozen=True)
class Chapter:
    """The experiments of one paper, by the names that the command line knows.

    Attributes:
        title: of the paper.
        source: who, when, where, and what its numbers are.
        exhibits: by name.
    """

    title: str
    source: str
    exhibits: Mapping[str, Exhibit]
