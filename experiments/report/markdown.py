"""The report as GitHub shows it."""

from collections.abc import Iterator, Sequence

from experiments.report.claims import Chapter, Judged, Verdict
from experiments.report.parts import (
    INTRODUCTION,
    MARKS,
    OTHERS,
    Grid,
    Report,
    Section,
    Tally,
)


def render(report: Report, figures: str) -> str:
    """Return the whole report as Markdown.

    Args:
        report: what to show.
        figures: the folder with the figures, beside the file.
    """
    blocks = ["# Results", INTRODUCTION, *map(_total, report.tallies)]
    blocks += ["## Verdicts", _verdicts(report)]
    for chapter, sections in report.parts:
        blocks += [f"## {chapter.title}", escaped(chapter.source)]
        for section in sections:
            blocks += _section(section, chapter, figures)
    rows = [(f"`{name}`", text) for name, text in report.others.items()]
    blocks += [
        f"## {OTHERS}",
        _table(("`python -m experiments`", "what it does"), rows),
    ]
    return "\n\n".join(blocks) + "\n"


def _total(tally: Tally) -> str:
    counts = ", ".join(f"**{n}** {word}" for word, n in tally.counts.items())
    return f"Of {tally.total} {tally.claimed}: {counts}."


def _verdicts(report: Report) -> str:
    rows = [
        (_link(section.name), escaped(claim.text), _marked(verdict, chapter))
        for chapter, sections in report.parts
        for section in sections
        for claim, verdict, _ in section.judged
    ]
    return _table(("experiment", "claim", "verdict"), rows)


def _section(section: Section, chapter: Chapter, figures: str) -> Iterator[str]:
    yield f"### `{section.name}`"
    yield escaped(section.summary)
    yield "\n".join(f"- {k}: {escaped(v)}" for k, v in section.origin.items())
    rows = [_claim(judged, chapter) for judged in section.judged]
    yield _table(("claim", "holds if", "published", "here", "verdict"), rows)
    if section.exhibit.note:
        yield escaped(section.exhibit.note)
    if section.stored is not None:
        for picture in section.exhibit.pictures:
            yield f"![{picture.shows}]({figures}/{picture.name}.png)"
    for grid in section.grids:
        yield from _grid(grid)


def _claim(judged: Judged, chapter: Chapter) -> tuple[str, ...]:
    claim, verdict, ours = judged
    words = (claim.text, claim.if_so, claim.published, ours)
    return (*(escaped(text) for text in words), _marked(verdict, chapter))


def _grid(grid: Grid) -> Iterator[str]:
    yield f"**{escaped(grid.title)}**"
    rows = [[escaped(cell) for cell in row] for row in grid.rows]
    yield _table([escaped(cell) for cell in grid.header], rows, grid.right)
    yield from (escaped(line) for line in grid.caption.splitlines())


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()
) -> str:
    rules = ["--:" if r else "---" for r in right] or ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rules, *rows))


def _marked(verdict: Verdict, chapter: Chapter) -> str:
    # On one line, however narrow the column is.
    return f"{MARKS[verdict]} {chapter.verdicts[verdict]}".replace(" ", "&nbsp;")


def _link(name: str) -> str:
    # GitHub leaves the points out of a heading's address.
    return f"[`{name}`](#{name.replace('.', '')})"


def escaped(text: str) -> str:
    """Keep Markdown from reading anything into a text, but code between backquotes."""
    for character in "*|<":
        text = text.replace(character, f"\\{character}")
    return text
