"""Report what the stored results say: a verdict for every claim, tables and figures.

It reads the JSON files under `experiments/results`, each named as its experiment, and
trains nothing: figures and tables are made again by the experiments' own functions, and
each verdict is found in the numbers. What has no file is reported as not run, with the
command that runs it.

    python -m experiments report

takes ten seconds on two CPU cores. It writes `RESULTS.md` with the figures in a folder
beside it, and `index.html`, which has them inside and opens without a network; and, for
the list of experiments, the names of those that are stored in part.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from experiments.__main__ import IN_PART, PAPERS, RESULTS, discover
from experiments.benchmarks import bars
from experiments.report import figures, pages
from experiments.report.claims import Chapter, Exhibit, Picture, Stored
from experiments.report.parts import Part, Report, Section
from experiments.training.measuring import one_line_errors, reading
from experiments.training.runs import read_json, write_bytes, write_json, write_text

FOLDER = Path(__file__).parents[1] / RESULTS
FIGURES = "figures"
# The text that matplotlib writes into a PNG.
DRAWN_BY = "Software"


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What to read, and where to write."""

    results: Path = FOLDER
    """The folder with the stored results."""
    out: Path = FOLDER
    """The folder for all that is written."""


def main(args: Sequence[str]) -> None:
    """Write the report that the command line asks for, and say how it turned out."""
    config = tyro.cli(ReportConfig, args=args, prog="python -m experiments report")
    with one_line_errors():
        write(config)


def write(config: ReportConfig) -> None:
    """Write the report and say how it turned out.

    Raises:
        OSError: the results or their folder cannot be read, or the report not written.
        ValueError: a file of results is not what its experiment writes.
    """
    report = gather(config.results)
    for section in report.sections:
        with _naming(section):
            _ = section.judged, section.tables, section.origin
    images = draw_all(report)
    folder = config.out / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        write_bytes(folder / f"{name}.png", image)
    write_text(config.out / "RESULTS.md", pages.markdown(report, FIGURES))
    write_text(config.out / "index.html", pages.html(report, images, FIGURES))
    in_part = [section.name for section in report.sections if section.is_in_part]
    write_json(config.out / IN_PART, {"experiments": in_part})
    console = Console(highlight=False, soft_wrap=True)
    for tally in report.tallies:
        console.print(f"{tally.claimed}: {tally.in_words()}")
    console.print(f"{config.out / 'RESULTS.md'}\n{config.out / 'index.html'}")


@functools.cache
def chapters() -> tuple[Chapter, ...]:
    """Return one for each paper, of every experiment in its folder, and the bars."""
    papers: dict[str, dict[str, Exhibit]] = {}
    for name, header in discover().items():
        module = importlib.import_module(header.module)
        if header.module.startswith(f"experiments.{PAPERS}.") and hasattr(
            module, "EXHIBIT"
        ):
            papers.setdefault(name.partition(".")[0], {})[name] = module.EXHIBIT
    packages = {
        paper: importlib.import_module(f"experiments.{PAPERS}.{paper}")
        for paper in papers
    }
    return (
        *(
            Chapter(packages[paper].TITLE, packages[paper].SOURCE, exhibits)
            for paper, exhibits in papers.items()
        ),
        bars.CHAPTER,
    )


def gather(results: Path) -> Report:
    """Return what is shown of every experiment, with the results that are there.

    Args:
        results: the folder with the stored results.

    Raises:
        OSError: there is no such folder, or a file in it is no JSON.
    """
    if not results.is_dir():
        raise OSError(f"--results {results} is no folder")
    headers, parts = discover(), []
    for chapter in chapters():
        sections = [
            Section(
                name,
                headers[name].summary,
                command_of(name, headers[name].module),
                exhibit,
                stored,
            )
            for name, exhibit in chapter.exhibits.items()
            for stored in [_read(results / f"{name.replace('.', '/')}.json")]
        ]
        parts.append(Part(chapter, sections))
    shown = {section.name for part in parts for section in part.sections}
    others = {name: h.summary for name, h in headers.items() if name not in shown}
    return Report(parts, others)


def command_of(name: str, module: str) -> str:
    """Return the command that the head of an experiment's file gives for it."""
    start = re.escape(f"python -m experiments {name}")
    text = importlib.import_module(module).__doc__ or ""
    found = re.search(rf"^ +({start}\b.*)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"the head of {module} has no command")
    return " ".join(found[1].split())


def draw_all(report: Report) -> dict[str, bytes]:
    """Return the PNGs of each picture whose results are stored, by its name.

    That for phones has `-narrow` after its name.
    """
    images: dict[str, bytes] = {}
    for section in report.sections:
        pictures = () if section.stored is None else section.exhibit.pictures
        with _naming(section):
            for picture in pictures:
                images |= draw(picture, section.stored)
    return images


def draw(picture: Picture, stored: Stored) -> dict[str, bytes]:
    """Return a picture as small PNGs, the wide one and that for phones."""
    with tempfile.TemporaryDirectory() as folder, figures.for_phones_too():
        path = Path(folder) / f"{picture.name}.png"
        picture.draw(path, stored)
        return {one.stem: _small(one) for one in (path, figures.narrow(path))}


def _small(path: Path) -> bytes:
    """Return an image with 256 colours, which lines need no more than."""
    with Image.open(path) as full:
        small = full.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        about = PngInfo()
        # By which matplotlib it was drawn: another one draws other pixels.
        about.add_text(DRAWN_BY, full.info[DRAWN_BY])
        about.add_text(figures.CONTENTS, full.info[figures.CONTENTS], zip=True)
    image = io.BytesIO()
    small.save(image, format="png", optimize=True, pnginfo=about)
    return image.getvalue()


def _naming(section: Section) -> contextlib.AbstractContextManager[None]:
    what = f"what is stored of {section.name}"
    return reading(what, f"to make it anew: {section.command}")


def _read(path: Path) -> Stored | None:
    return read_json(path, "take it away or make it anew") if path.exists() else None
