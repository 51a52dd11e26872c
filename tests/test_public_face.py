"""What the package promises about its own public names."""

import ast
import inspect
from pathlib import Path

import pytest

import normopt

PUBLIC = {
    name: value for name, value in vars(normopt).items() if inspect.isfunction(value)
}
CLASSES = {
    name: value for name, value in vars(normopt).items() if inspect.isclass(value)
}
STATES = {name: kind for name, kind in CLASSES.items() if issubclass(kind, tuple)}
# What is neither is a schedule that is called with a state.
PUBLIC |= {name: kind for name, kind in CLASSES.items() if name not in STATES}
SECTIONS = ["Args:", "Raises:", "Examples:"]
# Registry look-ups that take nothing.
WITHOUT = {"names": SECTIONS[:2], "norm_names": SECTIONS[:2], "path_of": ["Raises:"]}


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
    rank = {"checks": 0, "paths": 0, "rules": 1, "sharding": 1, "blocks": 2, "norms": 3}
    rank |= {"describing": 3, "transforms": 4, "optimizers": 5, "registry": 6}
    rank |= {"probing": 3, "evidence": 3, "invariance": 3}
    rank |= {"cycles": 1, "schedules": 2, "restarting": 5}
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
