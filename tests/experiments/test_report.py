"""The report says what the stored results say, whole and from disk alone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from experiments import report_markdown
from experiments.__main__ import discover
from experiments.claims import Verdict
from experiments.report import FIGURES, FOLDER, gather, main
from experiments.spherical_2020.claims import PUBLISHED

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
def page(written):
    return (written / "index.html").read_text()


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """The report where no results are stored."""
    return gather(tmp_path_factory.mktemp("empty"))


def test_the_repository_has_what_the_stored_results_give(written):
    text = (written / "RESULTS.md").read_text()
    stored = (FOLDER / "RESULTS.md").read_text()
    assert stored == text, "run `python -m experiments report`"
    named = set(re.findall(rf"\]\(({FIGURES}/\w+\.png)\)", text))
    assert named == {f"{FIGURES}/{p.name}" for p in (FOLDER / FIGURES).iterdir()}
    assert named == {f"{FIGURES}/{p.name}" for p in (written / FIGURES).iterdir()}


def test_what_the_repository_holds_of_it_is_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*.*")}
    for ending, most in ((".json", 300e3), (".png", 200e3), (".html", 1e6)):
        assert all(size < most for p, size in sizes.items() if p.suffix == ending)


def test_every_experiment_of_a_paper_appears(page):
    text = (FOLDER / "RESULTS.md").read_text()
    for name in discover():
        assert f"`{name}`" in text
        assert name in page.replace("<wbr>", "")
    of_papers = {name for name in gather(FOLDER).others if "." in name}
    assert of_papers == {"spherical_2020.train"}  # whose runs are cells of table1
    for section in gather(FOLDER).sections:
        # Beside its summary, each has a command that names it, and each claim.
        assert f"python -m experiments {section.name}" in section.command
        assert f'<article id="{section.name}">' in page
        assert page.count(f'href="#{section.name}"') == 1
        for claim in section.exhibit.claims:
            assert text.count(report_markdown.escaped(claim.text)) == 2


def test_without_results_nothing_is_claimed_and_commands_are_shown(nothing, tmp_path):
    main(["--results", str(tmp_path / "none"), "--out", str(tmp_path)])
    text, page = ((tmp_path / f).read_text() for f in ("RESULTS.md", "index.html"))
    claims = [claim for s in nothing.sections for claim in s.exhibit.claims]
    assert nothing.counts == {v: len(claims) * (v == "not run") for v in Verdict}
    assert "<img" not in page and "![" not in text
    assert not list((tmp_path / FIGURES).iterdir())
    for section in nothing.sections:
        assert f"- command: `{section.command}`" in text
    # What was published is there all the same.
    for row in PUBLISHED.values():
        for mean, deviation in row.values():
            assert f"| {mean:.2f} ± {deviation:.2f} |" in text


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
    pictures = [
        p for s in gather(FOLDER).sections if s.stored for p in s.exhibit.pictures
    ]
    assert found.alts == [picture.shows for picture in pictures]
    assert len(found.loaded) == len(pictures) > 0
    assert all(url.startswith("data:image/png;base64,") for url in found.loaded)
    assert all(link.startswith("#") for link in found.links)
    assert "url(" not in page and "@import" not in page and "<script" not in page


PROBE = """<script>
onload = () => {
  const images = [...document.images];
  const table = document.querySelector("#verdicts").getBoundingClientRect();
  parent.postMessage({
    width: innerWidth,
    images: images.filter((one) => one.complete && one.naturalWidth > 0).length,
    badges: document.querySelectorAll("#verdicts .badge").length,
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
    for width in widths:
        frames += f'<iframe src="page.html" width="{width}" frameborder="0"></iframe>'
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"))
    (tmp_path / "frames.html").write_text(frames)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    alone = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}/user",
    ]
    dom = subprocess.run(
        [*command, *alone, (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    lines = re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1].splitlines()
    seen = sorted(map(json.loads, lines), key=lambda one: one["width"])
    report = gather(FOLDER)
    images = sum(len(s.exhibit.pictures) for s in report.sections if s.stored)
    badges = sum(report.counts.values())
    rest = {"images": images, "badges": badges, "shown": True, "inside": True}
    assert seen == [{"width": width, **rest} for width in widths]
