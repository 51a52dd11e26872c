"""The command line: lists the experiments, or runs one by its name.

An experiment is any module of this package with a `main(args)`. Its name is that of its
file, after its paper's if it is in `papers`. What the list says of it stands in its
docstring, which is read without importing it: the first line, and the sentence after
the command, "takes ... on ...".
"""

import ast
import difflib
import importlib
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import experiments
from experiments.training import interrupting

PAPERS = "papers"  # the folder with one for each paper
RESULTS = "results"  # the folder of what is stored in the repository
# The file in it with the names of what is stored in part, which the report finds out:
# to judge all claims takes seconds.
IN_PART = "in_part.json"
_INDENT = "    "


class Header(NamedTuple):
    """What the file of an experiment says of itself."""

    module: str
    summary: str
    takes: str  # how long it takes, and on what
    results: str  # whether they are in the repository


def discover() -> dict[str, Header]:
    """Return each experiment's name and header."""
    found = {}
    for module, path in _modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        mains = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
        ]
        if mains and mains[0].args.args:
            name = name_of(module)
            found[name] = _header(module, name, ast.get_docstring(tree) or "")
    return dict(sorted(found.items()))


def name_of(module: str) -> str:
    """Return the name by which a command gives a module of this package."""
    folder, *inner = module.removeprefix("experiments.").split(".")
    return ".".join(inner if folder == PAPERS else (folder, *inner)[-1:])


def markdown() -> str:
    """Return the tables of experiments that the site shows, one for each paper."""
    rows: dict[str, list[str]] = {}
    for name, header in discover().items():
        row = f"| `{name}` | {header.summary} | {header.takes} |"
        rows.setdefault(name.rpartition(".")[0], []).append(row)
    lines: list[str] = []
    for folder, cells in sorted(rows.items()):
        title = _paper(folder) if folder else "The library's own"
        lines += [f"### {title}", "", "| command | what it does | time |"]
        lines += ["|---|---|---|", *cells, ""]
    return "\n".join(lines)


def main() -> None:
    """Run the experiment that the command line names, or list them all."""
    # What a terminal has no sign for, such as an odd byte of a sample, ends no run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        _obey()
    except interrupting.Interrupted as error:
        print(error, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise interrupting.Interrupted("interrupted") from None


def listing(known: dict[str, Header], width: int) -> str:
    """Return what a terminal shows of the experiments: a name is never broken.

    Args:
        known: what `discover` returned.
        width: of the terminal.
    """
    lines = ["python -m experiments NAME [--help]"]
    for name, header in known.items():
        takes = f"{header.takes}; results {header.results}".removeprefix("; ")
        lines += ["", name]
        for text in (header.summary, takes):
            lines += textwrap.wrap(
                text,
                max(width, 2 * len(_INDENT)),
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def _obey() -> None:
    known = discover()
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        _show(listing(known, shutil.get_terminal_size().columns))
        _need("tyro")
    elif name not in known:
        sys.exit(_unknown(name, known))
    else:
        _run(known[name].module, args)


def _show(text: str) -> None:
    """Print to somebody who may have seen enough before the end, as `head` has."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(module: str, args: list[str]) -> None:
    try:
        interrupting.install()
        importlib.import_module("experiments.training.devices").quieten_libtpu()
        importlib.import_module(module).main(args)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("experiments", "normopt"):
            raise
        sys.exit(_missing(package))


def _need(package: str) -> None:
    """End the program with one line if a package of the experiments is missing."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        sys.exit(_missing(package))


def _missing(package: str) -> str:
    return (
        f"error: the experiments need the package {package}, which is not installed: "
        "pip install -e '.[experiments]' -c constraints.txt"
    )


def _unknown(name: str, known: Collection[str]) -> str:
    """Return the error for a name that no experiment has, with the nearest that do.

    Names are often given without the folder, or a file's path in the place of a name.
    """
    given = name.removesuffix(".py").replace("/", ".")
    if given.startswith("experiments."):
        given = name_of(given)
    short: dict[str, list[str]] = {}
    for one in known:
        for form in {one, one.rpartition(".")[2]}:
            short.setdefault(form.lower(), []).append(one)
    forms = difflib.get_close_matches(given.lower(), short, n=1)
    near = [one for form in forms for one in short[form]]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"error: unknown experiment {name!r}; known: {', '.join(known)}{hint}"


def _header(module: str, name: str, docstring: str) -> Header:
    takes = re.search(r"\btakes ([^.;,]+? on [^.;,]+?)(?= for |[.;,])", docstring)
    return Header(
        module,
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
    source = (_root() / PAPERS / folder / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").rstrip(".")


def _root() -> Path:
    (root,) = (Path(folder) for folder in experiments.__path__)
    return root


def _modules() -> list[tuple[str, Path]]:
    root = _root()
    return [
        (".".join(path.relative_to(root.parent).with_suffix("").parts), path)
        for path in sorted(root.rglob("*.py"))
    ]


if __name__ == "__main__":
    main()
