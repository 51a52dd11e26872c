"""What a report is made of, whatever it is written as."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.claims import Chapter, Exhibit, Judged, Stored, Verdict
from experiments.report.tables import Table

PROVENANCE = "provenance"

# What `provenance.describe` returned.
Source = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment, its results and what they say.

    Attributes:
        name: that the command line knows.
        summary: what the experiment does.
        command: runs it, if need be with some of its options.
        exhibit: what is shown of it.
        stored: its results; None where there are none.
    """

    name: str
    summary: str
    command: str
    exhibit: Exhibit
    stored: Stored | None

    @functools.cached_property
    def judged(self) -> list[Judged]:
        """Its claims with their verdicts."""
        return [claim.judge(self.stored) for claim in self.exhibit.claims]

    @property
    def tables(self) -> list[Table]:
        """Its tables, but those that have no rows."""
        stored = self.exhibit.without_results if self.stored is None else self.stored
        if stored is None:
            return []
        tables = [Table.of(table(stored)) for table in self.exhibit.tables]
        return [table for table in tables if table.rows]

    @property
    def origin(self) -> dict[str, str]:
        """How much was run, on what, with what and how."""
        if self.stored is None:
            return {
                "results": "none are stored: not run",
                "command": self._commands(self.exhibit.whole),
            }
        sources = sources_of(self.stored)
        return {
            "extent": self.exhibit.extent(self.stored),
            "device": _each("; ", (_devices(source) for source in sources)),
            "commit": _each(", ", (_short(source["commit"]) for source in sources)),
            "versions": _each("; ", (_versions(source) for source in sources)),
            **self._made_by(self.stored),
        }

    @property
    def would_test(self) -> str:
        """The commands that make what claims wait for, if they are not the stored's."""
        waits = any(one.verdict is Verdict.NOT_TESTED for one in self.judged)
        return self.origin.get("the whole run", "") if waits else ""

    @property
    def is_in_part(self) -> bool:
        """Whether some of its results are stored, and some claims wait for others."""
        return self.stored is not None and any(
            verdict is Verdict.NOT_TESTED for _, verdict, _ in self.judged
        )

    def _made_by(self, stored: Stored) -> dict[str, str]:
        whole, stored_by = self.exhibit.whole, self.exhibit.stored_by
        ran = whole if stored_by is None else stored_by(stored)
        if set(whole) <= set(ran):
            return {"command": self._commands(ran)}
        return {
            "stored by": self._commands(ran),
            "the whole run": self._commands(whole),
        }

    def _commands(self, options: Sequence[str]) -> str:
        return ", ".join(f"`{f'{self.command} {one}'.strip()}`" for one in options)


class Part(NamedTuple):
    """A chapter and its experiments' sections."""

    chapter: Chapter
    sections: Sequence[Section]

    @property
    def counts(self) -> Counter[Verdict]:
        """How many of its claims have each verdict."""
        return Counter(j.verdict for section in self.sections for j in section.judged)


class Tally(NamedTuple):
    """How claims of one sort turned out.

    Attributes:
        claimed: what they are, in the plural.
        words: for the verdicts.
        counts: by verdict.
    """

    claimed: str
    words: Mapping[Verdict, str]
    counts: Counter[Verdict]

    @property
    def total(self) -> int:
        """The number of all."""
        return sum(self.counts.values())

    def in_words(self) -> str:
        """Return how many have each verdict that some have."""
        counts = ((self.counts[verdict], self.words[verdict]) for verdict in Verdict)
        return ", ".join(f"{count} {word}" for count, word in counts if count)


class Report(NamedTuple):
    """All parts, and the commands that no claim hangs on.

    Attributes:
        parts: in the order of the page.
        others: summaries by name.
    """

    parts: Sequence[Part]
    others: dict[str, str]

    @property
    def sections(self) -> list[Section]:
        """Those of all parts."""
        return [section for part in self.parts for section in part.sections]

    @property
    def tallies(self) -> list[Tally]:
        """One for each sort of claims: those of papers, and the library's own bars."""
        tallies: dict[str, Tally] = {}
        for part in self.parts:
            chapter = part.chapter
            empty = Tally(chapter.claimed, chapter.verdicts, Counter())
            tallies.setdefault(chapter.claimed, empty).counts.update(part.counts)
        return list(tallies.values())

    @property
    def by_verdict(self) -> dict[Verdict, list[tuple[Section, Judged]]]:
        """The claims of papers, with their experiments, by how they turned out."""
        found: dict[Verdict, list[tuple[Section, Judged]]] = {v: [] for v in Verdict}
        for part in self.parts:
            if part.chapter.verdicts[Verdict.REPRODUCED] == Verdict.REPRODUCED:
                for section in part.sections:
                    for judged in section.judged:
                        found[judged.verdict].append((section, judged))
        return found


INTRODUCTION = (
    "What the papers behind this library claim, and what was seen here; apart from "
    "that, the bars that the library sets itself. Every verdict, figure and table is "
    "made from the stored results by `python -m experiments report`, which trains "
    "nothing."
)
HOW_JUDGED = (
    "A claim is reproduced where the 95 % interval of a difference, over paired seeds, "
    "lies inside what the claim allows, not reproduced where it lies outside, and "
    "inconclusive where it holds both. Intervals are Student's t of paired means, the "
    "sign test's of a median where spreads are skewed, or those of seeds drawn again. "
    "A rate or decay that was tuned is chosen for each seed by the other seeds. What "
    "nothing stored can tell is not tested here, with what it would take. Published "
    "values stand where there are some; for most claims there are words alone. A "
    "commit with a + had changed files."
)
MARKS = {
    Verdict.REPRODUCED: "✓",
    Verdict.NOT_REPRODUCED: "✗",
    Verdict.INCONCLUSIVE: "~",
    Verdict.NOT_TESTED: "–",
}


def sources_of(stored: Stored) -> list[Source]:
    """Return where the numbers of stored results come from, in their order.

    Those are the entries beside the runs that a result is made of, where there are any:
    its own is then that of the last command, which may only have read finished runs.
    """
    nested = [source for part in stored.values() for source in _nested(part)]
    return nested or [stored[PROVENANCE]]


def _nested(part: Any) -> Iterator[Source]:
    if isinstance(part, list):
        for item in part:
            yield from _nested(item)
    elif isinstance(part, Mapping):
        for name, item in part.items():
            if name == PROVENANCE:
                # A run that was resumed has a list.
                yield from item if isinstance(item, list) else [item]
            else:
                yield from _nested(item)


def _each(between: str, texts: Iterator[str]) -> str:
    return between.join(dict.fromkeys(texts))


def _devices(source: Source) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in source["devices"].items())


def _versions(source: Source) -> str:
    return ", ".join(f"{name} {at}" for name, at in source["versions"].items())


def _short(commit: str | None) -> str:
    if commit is None:
        return "not known"
    return commit[:10] + ("+" if commit.endswith("+") else "")
