"""The command line: lists the experiments, or runs one by its name.

An experiment is any module of this package with a `main(args)`; its line in the list is
the first line of its docstring, read without importing it.
"""

import ast
import importlib
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import experiments


def discover() -> dict[str, str]:
    """Return each experiment's name and the first line of its docstring."""
    found = {}
    for name, path in _modules():
        tree = ast.parse(path.read_text())
        mains = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
        ]
        if mains and mains[0].args.args:
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> None:
    """Run the experiment that the command line names, or list them all."""
    known = discover()
    name, *args = sys.argv[1:] or ["--help"]
    if name in known:
        importlib.import_module(f"experiments.{name}").main(args)
        return
    table = Table("name", "what it does", title="python -m experiments NAME [--help]")
    for row in known.items():
        table.add_row(*row)
    Console().print(table)
    if name not in ("-h", "--help"):
        sys.exit(f"error: unknown experiment {name!r}; known: {', '.join(known)}")


def _modules() -> list[tuple[str, Path]]:
    (root,) = (Path(folder) for folder in experiments.__path__)
    return [
        (".".join(path.relative_to(root).with_suffix("").parts), path)
        for path in sorted(root.rglob("*.py"))
    ]


if __name__ == "__main__":
    main()
