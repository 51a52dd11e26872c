"""The report says what the stored results say, whole and from disk alone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from experiments.__main__ import IN_PART, discover
from experiments.papers.spherical_2020.table1_claims import PUBLISHED
from experiments.report import pages
from experiments.report.claims import NO_VALUE, Claim, Exhibit, Finding
from experiments.report.parts import Section, sources_of
from experiments.report.report import DRAWN_BY, FIGURES, FOLDER, gather, main
from tests.experiments.drawings import assert_same_figure, assert_same_text

# Of the results in the repository; judged once.
REPORT = gather(FOLDER)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes of the results in the repository."""
    out = tmp_path_factory.mktemp("report")
    main(["--out", str(out)])
    return out


@pytest.fixture(scope="module")
def page():
    """The page beside the figures in the repository."""
    stored = {path.stem: path.read_bytes() for path in (FOLDER / FIGURES).iterdir()}
    return pages.html(REPORT, stored, FIGURES)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """The report where no results are stored."""
    return gather(tmp_path_factory.mktemp("empty"))


def test_the_repository_says_what_the_stored_results_give(page):
    """If it does not, run `python -m experiments report`."""
    text, stored = (
        (FOLDER / name).read_text(encoding="utf-8")
        for name in ("RESULTS.md", "index.html")
    )
    assert_same_text(text, pages.markdown(REPORT, FIGURES))
    assert_same_text(stored, page)


@pytest.mark.slow("draws every figure")
def test_the_repository_has_what_the_stored_results_give(written):
    text, page, in_part = (
        [(folder / name).read_text(encoding="utf-8") for folder in (FOLDER, written)]
        for name in ("RESULTS.md", "index.html", IN_PART)
    )
    assert_same_text(*text)
    assert_same_text(*page)
    assert in_part[0] == in_part[1]
    named = set(_Loads(page[0]).loaded)
    assert named > set(re.findall(rf"\]\(({FIGURES}/\w+\.png)\)", text[0]))
    for folder in (FOLDER, written):
        assert named == {f"{FIGURES}/{p.name}" for p in (folder / FIGURES).iterdir()}
    for name in named:
        assert_same_figure(FOLDER / name, written / name)


def test_an_image_says_what_drew_it():
    figures = list((FOLDER / FIGURES).iterdir())
    for path in figures:
        with Image.open(path) as image:
            assert "matplotlib" in image.info[DRAWN_BY].lower()
    assert figures


def test_both_forms_say_how_many_claims_there_are_and_what_to_know(page):
    report, text = REPORT, pages.markdown(REPORT, FIGURES)
    papers, bars = report.tallies
    claims = sum(len(section.judged) for section in report.sections)
    assert papers.total + bars.total == claims
    assert sum(map(len, report.by_verdict.values())) == papers.total
    for tally in (papers, bars):
        assert f"Of {tally.total} {tally.claimed}: {tally.in_words()}." in text
        assert f"{tally.total} {tally.claimed}:</b> {tally.in_words()}</p>" in page
        for verdict, count in tally.counts.items():
            badges = re.findall(
                rf'<span class="badge [a-z-]+">. {tally.words[verdict]}</span><div>',
                page,
            )
            assert len(badges) == count
    notes = [s.exhibit.note for s in report.sections if s.exhibit.note]
    assert any("Without it" in note for note in notes)
    for note in notes:
        assert text.count(pages.escaped(note)) == 1
        assert page.count(f'<p class="note">{pages.coded(note)}</p>') == 1
    # What is true of nearly all claims is said once.
    assert NO_VALUE not in text and NO_VALUE not in page


# How many numbers the tables of stored results hold, and their sum. Who stores others
# changes them here; who only reports otherwise does not.
NUMBERS = {
    "block_normalized_2017.cifar_cnn": (16, 581.49),
    "block_normalized_2017.deep_mlp": (32, 711.203),
    "block_normalized_2017.deep_mlp_tuned": (24, 345.845),
    "block_normalized_2017.recurrent": (24, 94.563),
    "decoupled_decay_2019.anytime": (48, 657.03),
    "decoupled_decay_2019.decay_grid": (40, 4.66),
    "decoupled_decay_2019.pretrained_layers": (59, 140.092),
    "decoupled_decay_2019.warm_restarts": (30, 477.627),
    "novograd_2019.large_batches": (30, 9035.1296),
    "novograd_2019.memory": (60, 140.56),
    "novograd_2019.modes": (48, 60.27505),
    "novograd_2019.robustness": (48, 578.4101),
    "rotational_2024.equilibrium": (36, 33.653),
    "spherical_2020.effective_learning_rate": (24, 14.127512),
    "spherical_2020.table1": (168, 5491.99),
    "transformers.best_rates": (85, 992.95963),
    "transformers.language_model": (63, 798.8349),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_tables_hold_the_numbers_that_were_measured(name):
    (section,) = (s for s in REPORT.sections if s.name == name)
    cells = " ".join(c for t in section.tables for row in t.rows for c in row)
    numbers = re.findall(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e-?\d+)?", cells)
    total = sum(float(number.replace(",", "")) for number in numbers)
    assert (len(numbers), total) == pytest.approx(NUMBERS[name])


def test_what_the_repository_holds_of_it_is_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*.*")}
    for ending, most in ((".json", 300e3), (".png", 200e3), (".html", 300e3)):
        assert all(size < most for p, size in sizes.items() if p.suffix == ending)


def test_every_experiment_of_a_paper_appears(page):
    text = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    for name in discover():
        assert f"`{name}`" in text
        assert name in page.replace("<wbr>", "")
    of_papers = {name for name in REPORT.others if "." in name}
    assert of_papers == {"spherical_2020.train"}  # whose runs are cells of table1
    for section in REPORT.sections:
        # Beside its summary, each has a command that names it, and each claim.
        assert f"python -m experiments {section.name}" in section.command
        assert f'<article id="{section.name}">' in page
        for claim in section.exhibit.claims:
            assert pages.escaped(claim.text) in text


def test_without_results_nothing_is_claimed_and_commands_are_shown(nothing, tmp_path):
    (none := tmp_path / "none").mkdir()
    main(["--results", str(none), "--out", str(tmp_path)])
    text, page = (
        (tmp_path / f).read_text(encoding="utf-8") for f in ("RESULTS.md", "index.html")
    )
    claims = [claim for s in nothing.sections for claim in s.exhibit.claims]
    counts = {w: n for tally in nothing.tallies for w, n in tally.counts.items() if n}
    assert set(counts) == {"not tested here"}
    assert sum(tally.total for tally in nothing.tallies) == len(claims)
    assert "<img" not in page and "![" not in text
    assert not list((tmp_path / FIGURES).iterdir())
    for section in nothing.sections:
        assert f"- command: `{section.command}`" in text
    assert json.loads((tmp_path / IN_PART).read_text(encoding="utf-8")) == {
        "experiments": []
    }
    # What was published is there all the same.
    for row in PUBLISHED.values():
        for mean, deviation in row.values():
            assert f"| {mean:.2f} ± {deviation:.2f} |" in text


def source(commit, devices):
    return {"commit": commit, "versions": {"jax": "0.9"}, "devices": devices}


MORNING, EVENING, LAST = (
    source("a" * 40, {"cpu": 2}),
    source("b" * 40 + "+", {"TPU v5": 4}),
    source(None, {"cpu": 1}),
)


def test_a_result_comes_from_where_its_runs_were_trained():
    once, again = {"provenance": MORNING}, {"provenance": [MORNING, EVENING]}
    runs = {"runs": {"SGD": once, "Adam": again}, "provenance": LAST}
    assert sources_of(runs) == [MORNING, MORNING, EVENING]
    cells = {"provenance": LAST, "cells": [{"seeds": [again]}, once, {"of": "none"}]}
    assert sources_of(cells) == [MORNING, EVENING, MORNING]
    origin = Section("a", "", "", Exhibit(extent=str), runs).origin
    assert origin["commit"] == f"{'a' * 10}, {'b' * 10}+"
    assert origin["device"] == "2 × cpu; 4 × TPU v5"
    assert origin["versions"] == "jax 0.9"


def test_a_result_without_runs_of_its_own_comes_from_its_command():
    stored = {"rows": [{"optimizer": "sgd"}], "provenance": LAST}
    assert sources_of(stored) == [LAST]
    origin = Section("a", "", "", Exhibit(extent=str), stored).origin
    assert origin["commit"] == "not known"


def shown_commands(exhibit, stored):
    origin = Section("a", "", "run", exhibit, stored).origin
    return {k: v for k, v in origin.items() if k not in ("extent", *STORED_BY_ALL)}


STORED_BY_ALL = ("device", "commit", "versions", "results")


def test_commands_of_what_is_stored_and_of_the_whole_are_told_apart():
    whole, stored = ("", "--seed 1"), {"provenance": LAST}

    def exhibit(*stored_by):
        return Exhibit(extent=str, whole=whole, stored_by=lambda _: stored_by)

    both = "`run`, `run --seed 1`"
    assert shown_commands(exhibit("--epochs 1"), None) == {"command": both}
    assert shown_commands(exhibit("--epochs 1"), stored) == {
        "stored by": "`run --epochs 1`",
        "the whole run": both,
    }
    assert shown_commands(exhibit(*whole), stored) == {"command": both}
    more = shown_commands(exhibit(*whole, "--seed 2"), stored)
    assert more == {"command": f"{both}, `run --seed 2`"}
    assert shown_commands(Exhibit(extent=str), stored) == {"command": "`run`"}


def test_results_are_stored_in_part_where_claims_wait_for_others():
    def in_part(stored, *finds):
        claims = tuple(Claim("", find) for find in finds)
        return Section(
            "a", "", "", Exhibit(claims=claims, extent=str), stored
        ).is_in_part

    def judged(_):
        return Finding(False, "")

    def waits(_):
        return Finding(None, "")

    assert in_part({}, judged, waits)
    assert not in_part({}, judged, judged)
    assert not in_part(None, judged, waits)


class _Loads(HTMLParser):
    """Collects what a page would load, and the places that it links to."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.links, self.alts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.loaded += [named[k] for k in ("src", "srcset", "data") if k in named]
        if "href" in named:
            (self.links if tag == "a" else self.loaded).append(named["href"])
        if tag == "img":
            self.alts.append(named["alt"])


def test_the_page_loads_nothing_from_elsewhere(page):
    found = _Loads(page)
    pictures = [p for s in REPORT.sections if s.stored for p in s.exhibit.pictures]
    assert found.alts == [picture.shows for picture in pictures]
    assert len(found.loaded) == 2 * len(pictures) > 0
    # That for phones comes before the wide one.
    names = [f"{p.name}{end}" for p in pictures for end in ("-narrow", "")]
    assert found.loaded == [f"{FIGURES}/{name}.png" for name in names]
    assert all((FOLDER / url).is_file() for url in found.loaded)
    assert all(link.startswith("#") for link in found.links)
    assert "url(" not in page and "@import" not in page and "<script" not in page


PROBE = """<script>
onload = () => {
  const images = [...document.images];
  const table = document.querySelector("#verdicts").getBoundingClientRect();
  parent.postMessage({
    width: innerWidth,
    images: images.filter((one) => one.complete && one.naturalWidth > 0).length,
    badges: document.querySelectorAll(".claims .badge").length,
    shown: table.width > 0 && table.height > 0,
    inside: document.documentElement.scrollWidth <= innerWidth,
  }, "*");
};
</script>"""
# A frame is as narrow as it is told to be, a window is not.
FRAMES = """<!doctype html><pre></pre><script>
onmessage = (message) => {
  document.querySelector("pre").append(JSON.stringify(message.data) + "\\n");
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_shows_the_page_without_a_network(page, tmp_path):
    widths, frames = [390, 1280], FRAMES
    shutil.copytree(FOLDER / FIGURES, tmp_path / FIGURES)
    for width in widths:
        frames += f'<iframe src="page.html" width="{width}" frameborder="0"></iframe>'
    (tmp_path / "page.html").write_text(
        page.replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    (tmp_path / "frames.html").write_text(frames, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    alone = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}/user",
    ]
    dom = subprocess.run(
        [*command, *alone, (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout
    lines = re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1].splitlines()
    seen = sorted(map(json.loads, lines), key=lambda one: one["width"])
    images = sum(len(s.exhibit.pictures) for s in REPORT.sections if s.stored)
    badges = sum(tally.total for tally in REPORT.tallies)
    rest = {"images": images, "badges": badges, "shown": True, "inside": True}
    assert seen == [{"width": width, **rest} for width in widths]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"steps": 1', "toy_problems.json is damaged: .* take it away"),
        ('{"steps": 1}', r"transformers.toy_problems is not what is read today \(Key"),
        ("[]", r"transformers.toy_problems is not what is read today \(Type"),
    ],
)
def test_results_that_cannot_be_read_are_named(content, said, tmp_path):
    results, out = tmp_path / "results", tmp_path / "out"
    (results / "transformers").mkdir(parents=True)
    (results / "transformers/toy_problems.json").write_text(content)
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        main(["--results", str(results), "--out", str(out)])
    assert not out.exists()


def test_a_folder_of_results_that_is_not_there_is_no_empty_one(tmp_path):
    absent = tmp_path / "absent"
    with pytest.raises(SystemExit, match="absent is no folder"):
        main(["--results", str(absent), "--out", str(absent)])
    assert not absent.exists()
