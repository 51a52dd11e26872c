"""A run names every program that trained a part of it, and whether it was changed."""

import json
import os
import shutil
import subprocess

import pytest

from experiments.training import processes, provenance
from experiments.training.runs import Run

MORNING, EVENING = ({"commit": name, "devices": {"cpu": 2}} for name in ("a", "b"))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "line", {})


def open_as(monkeypatch, run, origin):
    monkeypatch.setattr(provenance, "describe", lambda: origin)
    run.open()


def stored(run):
    return json.loads((run.folder / "provenance.json").read_text())


def test_each_program_that_resumes_a_run_is_added(monkeypatch, run):
    assert run.provenance() == []
    for origin, known in (
        (MORNING, [MORNING]),
        (MORNING, [MORNING]),
        (EVENING, [MORNING, EVENING]),
        (MORNING, [MORNING, EVENING, MORNING]),
    ):
        open_as(monkeypatch, run, origin)
        assert run.provenance() == known == stored(run)


def test_a_fresh_run_begins_with_one(monkeypatch, run):
    open_as(monkeypatch, run, MORNING)
    run.remove()
    open_as(monkeypatch, run, EVENING)
    assert run.provenance() == [EVENING]


def test_only_the_first_process_writes_it(monkeypatch, run):
    open_as(monkeypatch, run, MORNING)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    open_as(monkeypatch, run, EVENING)
    assert run.provenance() == [MORNING]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_commit_is_changed_by_programs_and_not_by_their_results(
    monkeypatch, tmp_path
):
    # What a hook of git leaves there leads to the repository of the hook.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)

    def git(*arguments):
        me = ("-c", "user.name=n", "-c", "user.email=n@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *me, *arguments], check=True)

    results = tmp_path / "experiments" / "results"
    results.mkdir(parents=True)
    program, result = results.parent / "train.py", results / "train.json"
    git("init", "--quiet")
    for path in (program, result):
        path.write_text("first")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    commit = provenance.describe()["commit"]
    assert len(commit) == 40
    result.write_text("second")
    (results / "other.json").write_text("first")
    assert provenance.describe()["commit"] == commit
    program.write_text("second")
    assert provenance.describe()["commit"] == f"{commit}+"
