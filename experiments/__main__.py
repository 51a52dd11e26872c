"""The command line: lists the experiments, or runs one by its name.

An experiment is any module of this package with a `main(args)`. What the list says of
it stands in its docstring, which is read without importing it: the first line, and the
sentence after the command, "takes ... on ...".
"""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import experiments
from experiments import interrupting

RESULTS = "results"  # the folder of what is stored in the repository
# The file in it with the names of what is stored in part, which the report finds out:
# to judge all claims takes seconds.
IN_PART = "in_part.json"


class Header(NamedTuple):
    """What the file of an experiment says of itself."""

    summary: str
    takes: str  # how long it takes, and on what
    results: str  # whether they are in the repository


def discover() -> dict[str, Header]:
    """Return each experiment's name and header."""
    found = {}
    for name, path in _modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        mains = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
        ]
        if mains and mains[0].args.args:
            found[name] = _header(name, ast.get_docstring(tree) or "")
    return found


def markdown() -> str:
    """Return the table of experiments that README shows, one row for each paper."""
    rows: dict[str, list[str]] = {}
    for name, header in discover().items():
        folder, _, file = name.rpartition(".")
        cell = f"`{'.' * bool(folder)}{file}` {header.summary} *{header.takes}*"
        rows.setdefault(folder, []).append(cell)
    lines = ["| `python -m experiments` | what it does, and *how long that takes* |"]
    lines.append("|---|---|")
    for folder, cells in sorted(rows.items()):
        title = f"`{folder}` {_paper(folder)}" if folder else "ours"
        lines.append(f"| {title} | {'<br>'.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the experiment that the command line names, or list them all."""
    known = discover()
    name, *args = sys.argv[1:] or ["--help"]
    if name in known:
        interrupting.install()
        importlib.import_module(f"experiments.{name}").main(args)
        return
    table = Table(title="python -m experiments NAME [--help]", show_lines=True)
    for column in ("name", "what it does", "takes", "results"):
        table.add_column(column, overflow="fold")
    for experiment, header in known.items():
        table.add_row(experiment, header.summary, header.takes, header.results)
    Console().print(table)
    if name not in ("-h", "--help"):
        sys.exit(f"error: unknown experiment {name!r}; known: {', '.join(known)}")


def _header(name: str, docstring: str) -> Header:
    takes = re.search(r"\btakes ([^.;,]+? on [^.;,]+?)(?= for |[.;,])", docstring)
    return Header(
        docstring.partition("\n")[0],
        " ".join(takes[1].split()) if takes else "",
        _results(name),
    )


def _results(name: str) -> str:
    folder = _root() / RESULTS
    if not (folder / f"{name.replace('.', '/')}.json").exists():
        return "none stored"
    in_part = folder / IN_PART
    known = json.loads(in_part.read_text())["experiments"] if in_part.exists() else []
    return "stored in part" if name in known else "stored"


def _paper(folder: str) -> str:
    source = (_root() / folder / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").rstrip(".")


def _root() -> Path:
    (root,) = (Path(folder) for folder in experiments.__path__)
    return root


def _modules() -> list[tuple[str, Path]]:
    root = _root()
    return [
        (".".join(path.relative_to(root).with_suffix("").parts), path)
        for path in sorted(root.rglob("*.py"))
    ]


if __name__ == "__main__":
    main()
