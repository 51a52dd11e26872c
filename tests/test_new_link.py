"""A new link is its file, its export, its `Case` and its row in a table, no more."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = '''"""A link that warms its blocks up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.checks import check_number
from normopt.leafwise import leafwise
from normopt.rules import PerLeaf


class WarmUpState(NamedTuple):
    """State of `warm_up_blocks`."""

    count: jax.Array  # int32 scalar: updates done


def warm_up_blocks(
    b1: float = 0.9, channel_axes: PerLeaf = ()
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the blocks of the updates by 1 - b1^t.

    Args:
      b1: in [0, 1).
      channel_axes: the axes that index a leaf's blocks, per leaf.

    Raises:
      ValueError: when built, for a number out of its range.

    Examples:
      >>> normopt.warm_up_blocks(0.5).init(1.0).count.item()
      0
    """
    check_number("b1", b1, 0, below=1)
    return leafwise(
        "warm_up_blocks",
        lambda g, w, axes, option, kept, shared: (g * shared[0], kept),
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
        state=WarmUpState,
        start=lambda: {"count": jnp.zeros([], jnp.int32)},
        share=lambda state: (1 - b1**state.count,),
    )
'''
EDITS = {
    "file": ("normopt/transforms/warming.py", None, LINK),
    "export": (
        "normopt/transforms/__init__.py",
        r"\Z",
        "from normopt.transforms.warming import WarmUpState as WarmUpState\n"
        "from normopt.transforms.warming import warm_up_blocks as warm_up_blocks\n",
    ),
    "public export": (
        "normopt/__init__.py",
        r"(?<=trace_on_tangent as trace_on_tangent\n)",
        "from normopt.transforms import WarmUpState as WarmUpState\n"
        "from normopt.transforms import warm_up_blocks as warm_up_blocks\n",
    ),
    "case": (
        "tests/contract_cases.py",
        r"(?<=\n)\](?=\n\n\ndef of_each)",
        'Case("warm_up_blocks", {"b1": 0.5, **BY_COLUMN}, **FIRST, linear=True)]',
    ),
    "row": (
        "docs/links.md",
        r"(?=\| `compensate_rounding)",
        "| `warm_up_blocks(b1, channel_axes)` | times 1 - b1^t | first | last |\n",
    ),
}
OF_CASES = [
    f"tests/test_{name}.py"
    for name in ("contract", "contract_of_leaves", "properties", "leafwise")
]
OF_ALL = [
    f"tests/test_{name}.py" for name in ("contract", "readme", "public_face", "site")
]
# Those of `OF_ALL` that look at every link and every public name.
LOOKING = "has_a_case or in_a_table or public or states_tell or one_way or tables_name"


def with_edits(folder, *edits):
    for name in ("normopt", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "experiments", "reference")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "RECIPES.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    for name, pattern, text in edits:
        file = folder / name
        old = file.read_text(encoding="utf-8") if pattern else ""
        (at,) = re.finditer(pattern or r"\A", old)
        new = old[: at.start()] + text + old[at.end() :]
        file.write_text(new, encoding="utf-8")


def outcome(folder, *args):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
    found = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True)
    counts = re.findall(r"(\d+) (passed|failed|error)", run.stdout[-200:])
    return {kind: int(number) for number, kind in counts}, run.stdout


@pytest.mark.slow
def test_four_edits_make_a_new_link_that_all_shared_tests_run_on(tmp_path):
    with_edits(tmp_path, *EDITS.values())
    counts, told = outcome(tmp_path, "-k", "warm_up_blocks", *OF_CASES)
    assert set(counts) == {"passed"}, told
    _, alike = outcome(
        tmp_path, "--collect-only", "-k", "scale_by_block_size", *OF_CASES
    )
    assert counts["passed"] >= alike.count("::test_") > 30
    counts, told = outcome(tmp_path, "-k", LOOKING, *OF_ALL)
    assert set(counts) == {"passed"}, told


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["export", "public export", "case", "row"])
def test_a_forgotten_edit_is_found(forgotten, tmp_path):
    with_edits(tmp_path, *(EDITS[name] for name in EDITS if name != forgotten))
    counts, told = outcome(tmp_path, "-x", "-k", LOOKING, *OF_ALL)
    assert "failed" in counts or "error" in counts, told
    if forgotten == "row":
        assert "warm_up_blocks has no row in docs/links.md" in told
