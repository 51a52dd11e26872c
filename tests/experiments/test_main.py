"""What the list of experiments says, on the site and in the terminal."""

import io
import json
import sys
from pathlib import Path

import pytest

from experiments import __main__ as command_line
from experiments.__main__ import IN_PART, RESULTS, discover, markdown

PAGE = (Path(__file__).parents[2] / "docs/experiments.md").read_text(encoding="utf-8")


def test_the_site_s_table_is_that_of_the_headers():
    assert markdown() in PAGE


@pytest.mark.parametrize(("name", "header"), discover().items())
def test_every_experiment_says_what_it_does_and_how_long_it_takes(name, header):
    assert header.summary.endswith(".")
    assert " on " in header.takes
    assert f"| `{name}` |" in markdown()


def test_the_list_says_of_what_a_part_is_stored(monkeypatch, tmp_path):
    (tmp_path / RESULTS / "paper").mkdir(parents=True)
    for name in ("whole", "part"):
        (tmp_path / f"{name}.py").write_text('"""Do it."""\ndef main(args): ...\n')
        (tmp_path / RESULTS / f"{name}.json").write_text("{}")
    (tmp_path / "paper.py").write_text('"""Do it."""\ndef main(args): ...\n')
    monkeypatch.setattr(command_line.experiments, "__path__", [str(tmp_path)])

    def results():
        return {name: header.results for name, header in discover().items()}

    nothing = {"part": "stored", "whole": "stored", "paper": "none stored"}
    assert results() == nothing
    in_part = {"experiments": ["part"]}
    (tmp_path / RESULTS / IN_PART).write_text(json.dumps(in_part))
    assert results() == nothing | {"part": "stored in part"}


def test_what_a_terminal_has_no_sign_for_ends_no_run(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(command_line, "_obey", lambda: print("a \ufffd", flush=True))
    command_line.main()
    assert written.getvalue() == b"a ?\n"
