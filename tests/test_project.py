"""The Makefile's targets, and the oldest versions that are declared and tested."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TARGETS = re.findall(
    r"(?m)^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8")
)
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(folder, *arguments):
    """Runs make in a folder that has its files and nothing installed."""
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, folder)
    # Nothing of a make that runs these tests may reach this one.
    alone = {"PATH": os.environ["PATH"]}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=alone, capture_output=True, text=True
    )


def would_run(folder, *arguments):
    """The commands that make would run, and what it says is wrong."""
    done = make(folder, "-n", "PYTHON=python3", *arguments)
    return done.stdout, done.stderr


@needs_make
@pytest.mark.parametrize("target", TARGETS)
def test_each_target_that_help_lists_is_there(target, tmp_path):
    commands, errors = would_run(tmp_path, target)
    assert commands, errors


def test_the_targets_that_readme_names_are_listed():
    assert {"train", "test", "test-all", "check", "install", "clean"} <= {*TARGETS}


@needs_make
def test_train_passes_its_arguments_on(tmp_path):
    arguments = "--dataset mnist --data-dir 'my data'"
    commands, _ = would_run(tmp_path, "train", f"ARGS={arguments}")
    assert f".venv/bin/python -m experiments train {arguments}\n" in commands


@needs_make
def test_an_unknown_jax_stops_with_the_known_ones(tmp_path):
    commands, errors = would_run(tmp_path, "train", "JAX=cuda11")
    assert "JAX=cuda11 is unknown: give one of cpu cuda12 cuda13 tpu" in errors
    assert not commands


@needs_make
def test_another_jax_starts_from_an_empty_venv_and_stays(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed-cuda12").touch()
    assert "'jax[cuda12]'" in would_run(tmp_path, "install")[0]
    commands, _ = would_run(tmp_path, "install", "JAX=cpu")
    assert "jax[" not in commands
    assert commands.index("venv --clear") < commands.index("pip install")


@needs_make
def test_a_failed_install_is_not_taken_for_a_whole_one(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for ends, stamps in [("false", []), ("true", ["installed-cpu"])]:
        python.write_text(f"#!/bin/sh\n{ends}\n")
        python.chmod(0o755)
        # The stand-in for pip fails, then does nothing well.
        done = make(tmp_path, "install", "PYTHON=true")
        assert (done.returncode == 0) == bool(stamps), done.stderr
        assert [path.name for path in tmp_path.glob(".venv/installed-*")] == stamps


@needs_make
@pytest.mark.parametrize(
    ("tag", "owner", "said"),
    [
        ("v0.2.0-rc1", "acme", ""),
        ("v0.2.0", "acme", "the tag wants version 0.2.0"),
        ("v0.2.0-rc1", "OWNER", "want the name of an owner for OWNER"),
    ],
)
def test_a_release_wants_its_tag_s_version_and_an_owner(tag, owner, said, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # It stands in for pip, twine and the build, whose file it leaves.
    build = "mkdir -p dist; touch dist/normopt-0.2.0rc1.tar.gz"
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\n{build}\n'
    )
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text(f'Issues = "https://{owner}/"\n')
    (tmp_path / "constraints.txt").touch()
    command = ["make", "dist", f"TAG={tag}", "PYTHON=true"]
    alone = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, cwd=tmp_path, env=alone, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not said), done.stderr
    assert said in done.stderr


def test_the_oldest_versions_are_the_declared_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    assert len(pinned) == len(pins)
    declared = project["dependencies"] + project["optional-dependencies"]["test"]
    for requirement in map(Requirement, declared):
        (bound,) = requirement.specifier
        (pin,) = pinned[canonicalize_name(requirement.name)]
        assert (bound.operator, pin.operator) == (">=", "=="), requirement
        assert Version(bound.version) == Version(pin.version), requirement
    assert pinned["jaxlib"] == pinned["jax"]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(">=3.11")
