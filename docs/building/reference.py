"""A page for each public name, made from its docstring and its line in a table.

`docs/optimizers.md` and `docs/links.md` have one line for each optimizer and link: what
it does, when to take it, when not. All else stands in the docstring.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The folders of pages, by the module that a name comes from; the rest is `functions`.
_FOLDERS = {"normopt.optimizers": "optimizers", "normopt.transforms": "links"}
# What the rest is for, by its module.
GROUPS = {
    "Which leaf, which slice": ("paths", "rules", "matrices", "describing"),
    "Measuring and seeing": ("norms", "invariance", "observing"),
    "Decay, and what it comes to": ("decays", "equilibria"),
    "Weights before the first step": ("starting",),
    "Schedules": ("schedules",),
    "Optimizers by name": ("registry",),
    "Many devices": ("sharding",),
    "Warnings": ("checks", "leafwise"),
}
STATES = "states.md"
_FORMULA = re.compile(r"(?m)^\.\. math::.*(?:\n +\S.*)*")
_ELSEWHERE = sorted((ROOT / "normopt").glob("*.py"))  # what a package passes on


def public() -> dict[str, str]:
    """Return the modules that the public names are imported from, by name."""
    tree = ast.parse((ROOT / "normopt" / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("normopt")
        for alias in node.names
    }


def page_of(name: str, module: str) -> str:
    """Return the page that has a public name's docstring."""
    folder = _FOLDERS.get(module, "functions")
    if name.endswith("State") or (folder == "links" and name[0].isupper()):
        return STATES
    return f"{folder}/{name}.md"


def lines_of(table: str) -> dict[str, list[str]]:
    """Return the cells of each name's line in a page; of several the last one."""
    text = (ROOT / "docs" / table).read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (`(\w+)[(`].*) \|$", text)
    return {name: re.split(r" \| ", row) for row, name in rows}


def pages() -> dict[str, str]:
    """Return the text of each generated page, by its path."""
    names = public()
    written: dict[str, str] = {STATES: _STATES}
    for name, module in sorted(names.items()):
        path = page_of(name, module)
        if path == STATES:
            written[path] += (
                f"\n::: normopt.{name}\n    options: {{heading_level: 2}}\n"
            )
            written[path] += f"\n{_fields(name, module)}\n"
        else:
            written[path] = (
                f"# {name}\n{_advice(name, path)}\n::: normopt.{name}\n"
                "    options: {heading: Reference, toc_label: Reference}\n"
                f"\n{_fields(name, module)}\n{_formulas(name, names)}{_uses(name)}"
            )
    written["functions.md"] = _functions(names)
    return written


_STATES = """# States

What an optimizer keeps from step to step. `init` makes these, a checkpoint holds them;
a training loop has no need to look inside.
"""


def _advice(name: str, path: str) -> str:
    table = f"{path.partition('/')[0]}.md"
    if table == "functions.md":
        return ""
    lines = lines_of(table)
    if name not in lines:
        raise ValueError(f"{name} has no row in docs/{table}")
    *_, when, not_when = lines[name]
    text = f"\n**Use it** {when}.\n\n**Avoid it** {not_when}.\n"
    return text.replace("](", "](../")  # a page of the folder beside the table


def _uses(name: str) -> str:
    """Return links to the pages and recipes whose examples have this name."""
    titled = re.compile(r"(?ms)^## (?P<title>[^\n]+)\n(?P<text>.*?)(?=^## |\Z)")
    found = []
    for page in sorted((ROOT / "docs" / "coming_from").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found.append((f"coming_from/{page.name}", text.partition("\n")[0][2:], text))
    recipes = (ROOT / "RECIPES.md").read_text(encoding="utf-8")
    for section in titled.finditer(recipes):
        words = re.sub(r"[^\w\s-]", "", section["title"].lower())
        anchor = re.sub(r"\s+", "-", words)
        found.append((f"recipes.md#{anchor}", section["title"], section["text"]))
    shown = [
        f"- [{title}](../{target})\n"
        for target, title, text in found
        if re.search(rf"normopt\.{name}\(", text)
    ]
    return f"\n## More examples\n\n{''.join(shown)}" if shown else ""


def _functions(names: dict[str, str]) -> str:
    text = "# Everything else\n"
    for title, modules in GROUPS.items():
        own = [
            name
            for name, module in names.items()
            if module.split(".")[1] in modules
            and page_of(name, module).startswith("functions/")
        ]
        listed = "\n".join(f"- `{name}`: {_summary(name, names[name])}" for name in own)
        text += f"\n## {title}\n\n{listed}\n" if own else ""
    return text


def _formulas(name: str, names: dict[str, str]) -> str:
    """Return the formulas of an optimizer's links, where it has none of its own."""
    text = _docstring(name, names[name]).partition("\nArgs:")[0]
    if names[name] != "normopt.optimizers" or _FORMULA.search(text):
        return ""
    links = [
        word
        for word in dict.fromkeys(re.findall(r"\w+", text))
        if page_of(word, names.get(word, "")).startswith("links/")
    ]
    lines = ["## Formulas", "The formulas are those of its links."]
    for link in links:
        found = _FORMULA.finditer(_docstring(link, names[link]))
        lines += [f"`{link}`:", *(formula[0] for formula in found)]
    return "\n\n".join(lines) + "\n"


def _fields(name: str, module: str) -> str:
    """Return a class' fields with what the comments behind them say."""
    source, node = _definition(name, module)
    lines = source.splitlines()
    comments = {
        ast.unparse(field.target): lines[field.lineno - 1].partition("  # ")[2]
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    }
    return "\n".join(f"- `{name}`: {text}" for name, text in comments.items() if text)


def _summary(name: str, module: str) -> str:
    return _docstring(name, module).partition("\n")[0]


def _docstring(name: str, module: str) -> str:
    return ast.get_docstring(_definition(name, module)[1]) or ""


def _definition(name: str, module: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """Return the source and the tree of a definition, wherever below the module."""
    place = ROOT / module.replace(".", "/")
    inside = sorted(place.rglob("*.py")) if place.is_dir() else []
    for file in [place.with_suffix(".py"), *inside, *_ELSEWHERE]:
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        for node in ast.parse(source).body:
            if getattr(node, "name", "") == name:
                return source, node
    raise ValueError(f"no definition of {name} was found in {module}")


def on_files(files, config):
    """Give the generated pages to mkdocs, and their places to the navigation."""
    from mkdocs.structure.files import File

    made = pages()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for section in config.nav:
        for entries in section.values():
            index = entries[0] if isinstance(entries, list) else ""
            folder = f"{str(index).removesuffix('.md')}/"
            entries += sorted(p for p in made if p.startswith(folder)) if index else []
    return files
