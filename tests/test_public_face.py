"""What the package promises about its own public names."""

import ast
import inspect
import pydoc
import re
import runpy
from importlib import metadata
from pathlib import Path

import pytest

import normopt

NAMES = {name: getattr(normopt, name) for name in normopt.__all__}
PUBLIC = {name: value for name, value in NAMES.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}
STATES = {name: kind for name, kind in CLASSES.items() if issubclass(kind, tuple)}
WARNINGS = {name for name, kind in CLASSES.items() if issubclass(kind, UserWarning)}
# What is neither is a schedule that is called with a state.
PUBLIC |= {k: kind for k, kind in CLASSES.items() if k not in {*STATES, *WARNINGS}}
SECTIONS = ["Args:", "Raises:", "Examples:"]
# Registry look-ups that take nothing.
WITHOUT = {"names": SECTIONS[:2], "norm_names": SECTIONS[:2], "path_of": ["Raises:"]}


def test_the_public_names_are_the_explicit_imports_and_nothing_else():
    tree = ast.parse(Path(normopt.__file__).read_text())
    imported = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("normopt.")
        for alias in node.names
        if alias.asname == alias.name
    }
    assert set(normopt.__all__) == imported == set(PUBLIC) | set(CLASSES)
    assert dir(normopt) == sorted([*imported, "__version__"])
    space: dict[str, object] = {}
    exec("from normopt import *", space)
    assert set(space) - {"__builtins__"} == imported
    text = pydoc.render_doc(normopt, renderer=pydoc.plaintext)
    assert "DATA" not in text and "_metadata" not in text
    listed = re.findall(r"^    (?:class )?(\w+)\(", text, re.MULTILINE)
    assert set(listed) == imported


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    assert normopt.__version__ == metadata.version("normopt")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert runpy.run_path(normopt.__file__)["__version__"] == "0+unknown"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstrings_are_complete(name):
    doc = inspect.getdoc(PUBLIC[name])
    for section in SECTIONS:
        assert section in doc or section in WITHOUT.get(name, [])
    assert ">>> " in doc
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        assert f"{parameter}: " in doc, parameter


@pytest.mark.parametrize("name", STATES)
def test_states_tell_what_their_fields_hold(name):
    lines = inspect.getsource(STATES[name]).splitlines()
    assert inspect.getdoc(STATES[name]) and STATES[name]._fields
    for field in STATES[name]._fields:
        (line,) = (one for one in lines if one.strip().startswith(f"{field}:"))
        assert "  # " in line, line


def test_imports_point_one_way():
    """optimizers -> transforms -> blocks, norms, paths; nothing private."""
    rank = {
        "checks": 1,
        "copies": 0,
        "decays": 2,
        "mapping": 0,
        "numerics": 0,
        "paths": 0,
        "rules": 1,
    }
    rank |= {
        "sharding": 1,
        "spreading": 1,
        "blocks": 2,
        "norms": 3,
        "keeping": 3,
    }
    rank |= {"matrices": 3, "orthogonal": 3, "invariance": 3, "leafwise": 4}
    rank |= {
        "transforms": 5,
        "schedules": 6,
        "starting": 6,
        "observing": 6,
        "equilibria": 8,
    }
    rank |= {"optimizers": 6, "observing": 6, "registry": 7, "describing": 8}
    root = Path(normopt.__file__).parent
    for file in root.rglob("*.py"):
        own = file.relative_to(root).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                assert "optax._src" not in module
                assert module.split(".")[0] not in ("experiments", "flax", "chex")
                if module.startswith("normopt.") and own != "__init__":
                    assert rank[module.split(".")[1]] <= rank[own], (file, module)
