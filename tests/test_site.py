"""The site: a page for each public name, links that lead somewhere, make's targets."""

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import normopt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = sorted(DOCS.rglob("*.md"))
BESIDE = [ROOT / f"{n}.md" for n in ("README", "RECIPES", "CHANGELOG", "CONTRIBUTING")]


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = loaded(DOCS / "building" / "reference.py")
stored = loaded(DOCS / "building" / "stored.py")
GENERATED = reference.pages()


def anchors(text):
    """The headings of a page, as links name them."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    words = [
        re.sub(r"[^\w\s-]", "", h).strip() for h in re.findall(r"(?m)^#+ (.+)$", text)
    ]
    return {re.sub(r"\s+", "-", word).lower() for word in words}


def texts_of_the_site():
    """The Markdown of each page, written or made."""
    written = {p.relative_to(DOCS).as_posix(): p.read_text("utf-8") for p in WRITTEN}
    pages = {path: stored.with_site_links(text, path) for path, text in written.items()}
    root = {
        name: stored.with_page_links(path.read_text("utf-8"))
        for name, path in stored.PAGES.items()
    }
    return pages | root | GENERATED | {"gallery.md": stored.gallery()}


def links(text):
    """The targets of links and pictures, code left out."""
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]


def test_every_public_name_has_a_page():
    for name in normopt.__all__:
        path = reference.page_of(name, reference.public()[name])
        assert f"\n::: normopt.{name}\n" in GENERATED[path]
        if path.startswith("functions/"):
            assert f"- `{name}`: " in GENERATED["functions.md"], "in no group"
        text = GENERATED[path].partition(f"::: normopt.{name}\n")[2]
        own = text.partition("\n:::")[0]
        for field in getattr(getattr(normopt, name), "_fields", ()):
            assert re.search(rf"(?m)^- `{field}`: \S", own), (name, field)


def test_a_missing_row_is_called_by_its_name():
    with pytest.raises(ValueError, match=r"no_link has no row in docs/links\.md"):
        reference._advice("no_link", "links/no_link.md")


@pytest.mark.parametrize("name", normopt.names())
def test_every_optimizer_s_page_has_a_formula_and_a_source(name):
    text = inspect.getdoc(getattr(normopt, name)) + GENERATED[f"optimizers/{name}.md"]
    assert ".. math::" in text and "References:" in text


def test_the_tables_name_the_links_and_optimizers_and_no_other():
    for folder in ("links", "optimizers"):
        pages = {Path(page).stem for page in GENERATED if page.startswith(f"{folder}/")}
        lines = reference.lines_of(f"{folder}.md")
        assert set(lines) == pages
        # A name, what it does where no table above says so, when, and when not.
        wanted = 4 if folder == "links" else 3
        assert {
            name: len(cells) for name, cells in lines.items() if len(cells) != wanted
        } == {}
        assert all(cell.strip() for cells in lines.values() for cell in cells)


def test_a_name_s_page_leads_to_the_guides_and_recipes_that_use_it():
    for target in ("coming_from/muon.md", "recipes.md#muon-by-rules"):
        assert f"](../{target})" in GENERATED["optimizers/muon.md"]
        assert target not in GENERATED["optimizers/adamg.md"]


def test_no_link_of_the_site_is_dead():
    pages = texts_of_the_site()
    figures = {f"figures/{path.name}" for path in stored.figures()}
    dead = []
    for page, text in pages.items():
        for target in links(text):
            path, _, anchor = target.partition("#")
            at = (Path("/") / page).parent / path if path else Path("/") / page
            name = at.resolve().relative_to("/").as_posix()
            if (
                name not in pages
                and name not in figures
                and not (DOCS / name).is_file()
            ):
                dead.append((page, target))
            elif anchor and name in pages and anchor not in anchors(pages[name]):
                dead.append((page, target))
    assert not dead


def test_no_link_of_docs_is_dead_in_the_repository():
    dead = []
    for file in WRITTEN:
        for target in links(file.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            at = file.parent / path if path else file
            if not at.exists() or (
                anchor and anchor not in anchors(at.read_text("utf-8"))
            ):
                dead.append((file.name, target))
    assert not dead


@pytest.mark.parametrize("file", BESIDE, ids=lambda path: path.name)
def test_no_link_of_the_repository_s_pages_is_dead(file):
    for target in links(file.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        at = file.parent / path if path else file
        assert at.exists(), target
        assert not anchor or anchor in anchors(at.read_text("utf-8")), target


def test_every_stored_figure_is_in_the_gallery_with_a_command():
    for section in re.split(r"(?m)^## ", stored.gallery())[1:]:
        assert "```bash\npython -m experiments" in section
    for figure in stored.figures():
        assert f"](figures/{figure.name})" in stored.gallery()


def test_the_owner_s_name_is_wanted_in_one_file():
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    if len(files) < 50:
        pytest.skip("no checkout of git")
    kinds = (".md", ".toml", ".yml", ".py", ".cff", ".txt")
    found = [
        name
        for name in files
        if name.endswith(kinds)
        and not name.startswith("tests/")
        and (ROOT / name).is_file()
        and re.search(r"\bOWNER\b", (ROOT / name).read_text("utf-8"))
    ]
    assert set(found) <= {"pyproject.toml", "CONTRIBUTING.md"}


def test_workflows_run_make_and_nothing_else():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(" ".join(re.findall(r"(?m)^\.PHONY: (.+)$", makefile)).split())
    runs = []
    for file in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = file.read_text("utf-8")
        runs += re.findall(r"(?m)- run: (.+)$", text)
        runs += [f"make {t}" for t in re.findall(r"\{target: ([a-z-]+),", text)]
    wanted = {run.removeprefix("make ") for run in runs} - {"${{ matrix.target }}"}
    assert all(run.startswith("make ") for run in runs)
    assert wanted <= targets
    assert {"test", "test-all", "test-oldest", "test-newest", "docs", "dist"} <= wanted


def test_a_page_shown_elsewhere_has_full_addresses():
    pytest.importorskip("hatchling")
    full = loaded(ROOT / "hatch_build.py").with_full_links
    urls = {"Repository": "https://host/o/r", "Documentation": "https://site/"}
    text = "[a](docs/links.md) [b](docs/index.md#x) [c](LICENSE) ![d](e/f.png) [g](#h)"
    assert full(text, urls) == (
        "[a](https://site/links/) [b](https://site/#x) "
        "[c](https://host/o/r/blob/HEAD/LICENSE) "
        "![d](https://host/o/r/raw/HEAD/e/f.png) [g](#h)"
    )


@pytest.mark.slow
def test_the_site_builds_without_a_network_or_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    # No address can be looked up where `socket` cannot open one.
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **kwargs): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    text = (tmp_path / "site/optimizers/adams/index.html").read_text("utf-8")
    assert "<math" in text
    page = (tmp_path / "site/coming_from/keras_adamw/index.html").read_text("utf-8")
    assert "<code>normopt.restart(state, t_cur=k)</code></a>" in page
    for page in (tmp_path / "site").rglob("*.html"):
        left = re.search(r"\.\. math::|:math:|=====", page.read_text("utf-8"))
        assert not left, (page, left)
    assert not re.search(r'<(?:script|img|iframe)[^>]+src="https?://', text)
    assert not re.search(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]*://', text)
    assert max(p.stat().st_size for p in (tmp_path / "site").rglob("*.html")) < 500_000


@pytest.mark.slow
def test_wheel_and_sdist_pass_the_check_and_hold_what_they_should(tmp_path):
    pytest.importorskip("twine")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "normopt", tmp_path / "normopt")
    build = [sys.executable, "-m", "build", "--no-isolation", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    made = sorted(map(str, (tmp_path / "dist").iterdir()))
    check = [sys.executable, "-m", "twine", "check", "--strict", *made]
    told = subprocess.run(check, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout.count("PASSED") == 2, told.stdout
    with zipfile.ZipFile(next(path for path in made if path.endswith(".whl"))) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
        text = wheel.read(name).decode()
    assert "Project-URL: Repository, https://" in text
    assert not links(text.partition("\n\n")[2]) and "](https://" in text
