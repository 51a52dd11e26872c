"""Pages of what stands elsewhere: recipes, results, figures, changes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
# The pages that are files of the root, and the one of the results.
PAGES = {
    "recipes.md": ROOT / "RECIPES.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "report.md": RESULTS / "RESULTS.md",
}
_NARROW = "-narrow"


def figures() -> list[Path]:
    """Return the stored figures, without those for narrow screens."""
    found = sorted((RESULTS / "figures").glob("*.png"))
    return [path for path in found if not path.stem.endswith(_NARROW)]


def gallery() -> str:
    """Return the page of all figures, each with the command that makes its numbers."""
    text = (
        "# Gallery\n\nEvery figure that is stored, with the command that computed what "
        "it shows. `python -m experiments report` draws them again from the numbers in "
        "`experiments/results`.\n"
    )
    sections = re.split(
        r"(?m)^### `(.+)`$", (RESULTS / "RESULTS.md").read_text("utf-8")
    )
    for name, section in zip(sections[1::2], sections[2::2], strict=True):
        drawn = re.findall(r"(?m)^!\[.*\]\(figures/.*\)$", section)
        command = re.search(r"(?m)^- (?:command|stored by): `(.+)`$", section)
        if drawn and command:
            title = section.strip().partition("\n")[0]
            text += f"\n## {name}\n\n{title}\n\n" + "\n\n".join(drawn)
            text += f"\n\n```bash\n{command[1]}\n```\n"
    return text


def with_page_links(text: str) -> str:
    """Return a file of the root with its links as the site has them."""
    text = re.sub(r"\]\(docs/", "](", text)
    for page, source in PAGES.items():
        text = re.sub(rf"\]\((?:\S*/)?{source.name}", f"]({page}", text)
    return text.replace("](README.md", "](index.md")


def with_site_links(text: str, path: str) -> str:
    """Return a page of `docs` with its links to files beside it as the site has them.

    So they lead somewhere in the repository, too. There the gallery is the folder.
    """
    up = "../" * path.count("/")
    text = text.replace(f"]({up}../experiments/results/figures)", f"]({up}gallery.md)")
    for page, source in PAGES.items():
        file = source.relative_to(ROOT).as_posix()
        text = text.replace(f"]({up}../{file}", f"]({up}{page}")
    return text.replace(f"]({up}../experiments/results/figures/", f"]({up}figures/")


def on_page_markdown(markdown, page, config, files):
    """Rewrite links as mkdocs reads a page."""
    return with_site_links(markdown, page.file.src_uri)


def on_files(files, config):
    """Give these pages and the figures to mkdocs."""
    from mkdocs.structure.files import File

    made = {
        page: with_page_links(path.read_text("utf-8")) for page, path in PAGES.items()
    }
    made["gallery.md"] = gallery()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for path in figures():
        at = f"figures/{path.name}"
        files.append(File.generated(config, at, abs_src_path=str(path)))
    return files


def on_config(config):
    """Take the addresses from the one place that has them, pyproject.toml."""
    import tomllib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    urls = tomllib.loads(text)["project"]["urls"]
    config.site_url = urls["Documentation"]
    # A link in the footer: as `repo_url` the theme would ask that host at each view.
    icon = {"icon": "fontawesome/brands/git-alt", "name": "Repository"}
    config.extra["social"] = [icon | {"link": urls["Repository"]}]
    return config
