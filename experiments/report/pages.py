"""The report's two pages, from templates: GitHub's, and one with all inside."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from experiments.report import parts
from experiments.report.claims import NO_VALUE, Verdict

TEMPLATES = Path(__file__).with_name("templates")


def markdown(report: parts.Report, figures: str) -> str:
    """Return the whole report as Markdown.

    Args:
        report: what to show.
        figures: the folder with the figures, beside the file.
    """
    return _render("RESULTS.md.jinja", report=report, figures=figures)


def html(report: parts.Report, images: Mapping[str, bytes], figures: str) -> str:
    """Return the whole report as an HTML page that loads nothing but its figures.

    Args:
        report: what to show.
        images: the PNGs of its pictures, by name.
        figures: the folder with them, beside the file.
    """
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return _render(
        "index.html.jinja", report=report, images=images, figures=figures, style=style
    )


def escaped(text: str) -> str:
    """Keep Markdown from reading anything into a text, but code between backquotes."""
    for character in "*|<":
        text = text.replace(character, f"\\{character}")
    return text


def published(text: str) -> str:
    """Return a published value, or nothing: that there is none is said once."""
    return text.removeprefix(NO_VALUE).removeprefix("; ")


def breakable(name: str) -> Markup:
    """Let a long name go on in the next line where there is no room."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(name))))


def coded(text: str) -> Markup:
    """Escape a text, whose parts between backquotes are code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def size(png: bytes) -> tuple[int, int]:
    """Return width and height of an image, which keep its place before it is there."""
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def _render(name: str, **shown: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (escaped, published, breakable, coded, size)
    environment.filters |= {one.__name__: one for one in filters}
    environment.globals |= {
        "introduction": parts.INTRODUCTION,
        "how_judged": parts.HOW_JUDGED,
        "marks": parts.MARKS,
        "verdicts": list(Verdict),
    }
    return environment.get_template(name).render(**shown)
