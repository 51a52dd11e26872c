"""The report as a page that has everything inside: style, figures and tables."""

import base64
import io
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from experiments.report.claims import Chapter, Judged, Verdict
from experiments.report.parts import INTRODUCTION, MARKS, OTHERS, Grid, Report, Section

STYLE = Path(__file__).with_name("page.css")


def render(report: Report, images: Mapping[str, bytes]) -> str:
    """Return the whole report as one HTML file that loads no other.

    Args:
        report: what to show.
        images: the PNGs of its pictures, by name.
    """
    return "\n".join(_page(report, images)) + "\n"


def _page(report: Report, images: Mapping[str, bytes]) -> Iterator[str]:
    yield "<!doctype html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield "<title>normopt: results</title>"
    yield f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>"
    yield "</head>"
    yield "<body>"
    yield "<main>"
    yield from _top(report)
    for number, (chapter, sections) in enumerate(report.parts):
        yield f'<section id="chapter-{number}">'
        yield f"<h2>{_text(chapter.title)}</h2>"
        yield f'<p class="source">{_text(chapter.source)}</p>'
        for section in sections:
            yield from _section(section, chapter, images)
        yield "</section>"
    yield from _others(report)
    yield "</main>"
    yield "</body>"
    yield "</html>"


def _top(report: Report) -> Iterator[str]:
    yield "<header>"
    yield "<h1>normopt: results</h1>"
    yield f"<p>{_text(INTRODUCTION)}</p>"
    for tally in report.tallies:
        yield f'<p class="source">{tally.total} {_text(tally.claimed)}</p>'
        yield '<ul class="counts">'
        for verdict, (word, count) in zip(Verdict, tally.counts.items(), strict=True):
            yield f'<li class="{_kind(verdict)}"><b>{count}</b> {word}</li>'
        yield "</ul>"
    yield '<nav aria-label="chapters"><ul>'
    for number, (chapter, _) in enumerate(report.parts):
        yield f'<li><a href="#chapter-{number}">{_text(chapter.title)}</a></li>'
    yield "</ul></nav>"
    yield "</header>"
    yield "<section>"
    yield "<h2>Verdicts</h2>"
    yield '<div class="scroll" role="region" aria-label="Verdicts" tabindex="0">'
    yield '<table id="verdicts">'
    yield '<thead><tr><th scope="col">claim</th>'
    yield '<th scope="col">verdict</th></tr></thead>'
    for chapter, sections in report.parts:
        for section in sections:
            yield from _verdicts(section, chapter)
    yield "</table></div>"
    yield "</section>"


def _verdicts(section: Section, chapter: Chapter) -> Iterator[str]:
    yield "<tbody>"
    name = f'<a href="#{section.name}"><code>{_breakable(section.name)}</code></a>'
    yield f'<tr><th colspan="2" scope="rowgroup">{name}</th></tr>'
    for claim, verdict, _ in section.judged:
        badge = _badge(verdict, chapter)
        yield f"<tr><td>{_text(claim.text)}</td><td>{badge}</td></tr>"
    yield "</tbody>"


def _section(
    section: Section, chapter: Chapter, images: Mapping[str, bytes]
) -> Iterator[str]:
    yield f'<article id="{section.name}">'
    yield f"<h3><code>{_breakable(section.name)}</code></h3>"
    yield f"<p>{_text(section.summary)}</p>"
    yield '<dl class="origin">'
    yield from (f"<dt>{k}</dt><dd>{_text(v)}</dd>" for k, v in section.origin.items())
    yield "</dl>"
    yield '<ul class="claims">'
    yield from (_claim(judged, chapter) for judged in section.judged)
    yield "</ul>"
    if section.exhibit.note:
        yield f'<p class="note">{_text(section.exhibit.note)}</p>'
    if section.stored is not None:
        for picture in section.exhibit.pictures:
            data = base64.b64encode(_smaller(images[picture.name])).decode()
            shows = _text(picture.shows)
            yield f'<figure><div class="picture" tabindex="0"><img alt="{shows}" '
            yield f'src="data:image/webp;base64,{data}"></div>'
            # The alternative text again, for those who see the picture.
            yield f'<figcaption aria-hidden="true">{shows}</figcaption></figure>'
    for grid in section.grids:
        yield from _grid(grid)
    yield "</article>"


def _smaller(png: bytes) -> bytes:
    """Return the same pixels as a WebP, which takes four fifths of the bytes."""
    image = io.BytesIO()
    with Image.open(io.BytesIO(png)) as pixels:
        pixels.convert("RGB").save(image, format="webp", lossless=True)
    return image.getvalue()


def _claim(judged: Judged, chapter: Chapter) -> str:
    claim, verdict, ours = judged
    said = {"holds if": claim.if_so, "published": claim.published, "here": ours}
    return (
        f"<li>{_badge(verdict, chapter)}<div><p>{_text(claim.text)}</p><dl>"
        + "".join(f"<dt>{k}</dt><dd>{_text(v)}</dd>" for k, v in said.items() if v)
        + "</dl></div></li>"
    )


def _grid(grid: Grid) -> Iterator[str]:
    # Outside of what scrolls, so that a narrow page shows all of it.
    yield f'<p class="note">{_text(grid.title)}</p>'
    label = escape(grid.title)
    yield f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
    yield "<table>"
    columns = list(zip(grid.header, grid.right, strict=True))
    head = (f'<th scope="col"{_side(r)}>{_breakable(cell)}</th>' for cell, r in columns)
    yield f"<thead><tr>{''.join(head)}</tr></thead>"
    yield "<tbody>"
    for row in grid.rows:
        cells = (
            f"<td{_side(r)}>{_text(cell)}</td>"
            for cell, r in zip(row, grid.right, strict=True)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    yield from (f'<p class="note">{_text(x)}</p>' for x in grid.caption.splitlines())


def _others(report: Report) -> Iterator[str]:
    yield "<section>"
    yield f"<h2>{OTHERS}</h2>"
    yield '<dl class="origin" id="others">'
    for name, summary in report.others.items():
        yield f"<dt><code>{_breakable(name)}</code></dt><dd>{_text(summary)}</dd>"
    yield "</dl>"
    yield "</section>"


def _badge(verdict: Verdict, chapter: Chapter) -> str:
    word = f"{MARKS[verdict]} {chapter.verdicts[verdict]}"
    return f'<span class="badge {_kind(verdict)}">{word}</span>'


def _kind(verdict: Verdict) -> str:
    return verdict.replace(" ", "-")


def _side(right: bool) -> str:
    return ' class="right"' if right else ""


def _breakable(name: str) -> str:
    """Let a long name go on in the next line where there is no room."""
    return re.sub(r"([._/])", r"\1<wbr>", escape(name))


def _text(text: str) -> str:
    """Escape a text, whose parts between backquotes are code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
