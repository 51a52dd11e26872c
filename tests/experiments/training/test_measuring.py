"""What an experiment has measured is kept, and what its user can mend is one line."""

import dataclasses
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from experiments.training import provenance
from experiments.training.loop import TrainingDiverged
from experiments.training.measuring import (
    make_room_for,
    measure_parts,
    one_line_errors,
    reading,
)
from tests.experiments.small_runs import quiet


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    smoke: bool = False
    fresh: bool = False


@pytest.fixture
def measured(tmp_path, committed):
    """Measures parts of one letter; returns which ones, and what all of them are."""

    def run(parts="abc", settings=(), stop=None, console=None, others=(), **changes):
        new = []

        def measure(part):
            if part == stop:
                raise KeyboardInterrupt
            new.append(part)
            return {"numbers": [ord(part) / 3]}

        config = Config(tmp_path, **changes)
        arguments = (config, "letters", dict(settings), parts, measure)
        try:
            found = measure_parts(*arguments, console or quiet(), others=others)
            return new, found
        except KeyboardInterrupt:
            return new, None

    return run


WHOLE = {part: {"numbers": [ord(part) / 3]} for part in "abc"}


def test_an_interrupted_experiment_goes_on_with_the_parts_that_are_left(measured):
    assert measured(stop="c") == (["a", "b"], None)
    assert measured() == (["c"], WHOLE)
    assert measured() == ([], WHOLE)


def test_other_settings_another_program_and_fresh_begin_anew(measured, monkeypatch):
    measured()
    assert measured(settings={"epochs": 3}) == (list("abc"), WHOLE)
    assert measured(smoke=True) == (list("abc"), WHOLE)
    assert measured(fresh=True) == (list("abc"), WHOLE)
    monkeypatch.setattr(provenance, "describe", lambda: {"commit": "another"})
    assert measured() == (list("abc"), WHOLE)


@pytest.mark.parametrize("commit", [None, "0123abc+"])
def test_parts_of_a_program_that_may_have_changed_are_measured_again(
    measured, monkeypatch, commit
):
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "describe", lambda: {"commit": commit})
    measured()
    assert measured() == (list("abc"), WHOLE)


def test_parts_are_counted_in_a_terminal(measured):
    screen = io.StringIO()
    measured(console=Console(file=screen, force_terminal=True, width=60))
    assert "0/3" in screen.getvalue() and "3/3" in screen.getvalue()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError("no cifar10; use --data-dir"), "error: no cifar10; use "),
        (OSError("cannot write file"), "error: cannot write file"),
        (ValueError("`epochs` must be >= 1"), "error: `epochs` must be >= 1"),
        (TrainingDiverged("the loss of step 3"), "error: the loss of step 3"),
        (
            KeyboardInterrupt(),
            "interrupted; the same command, without --fresh, goes on",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise error
    (text,) = stopped.value.args
    assert text.startswith(line) and "\n" not in text


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a")


def test_parts_of_other_commands_are_told_where_they_are_there(measured):
    assert measured("a")[1] == {"a": WHOLE["a"]}
    assert measured("b", others="abc") == (["b"], {one: WHOLE[one] for one in "ba"})


def test_results_that_are_not_what_is_read_are_named():
    words = r"what x holds is not what is read today \(KeyError: 'a'\); run again"
    with pytest.raises(ValueError, match=words), reading("what x holds", "run again"):
        {}["a"]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    make_room_for(None)
    make_room_for(tmp_path / "new" / "records.json")
    (tmp_path / "new" / "file").touch()
    with pytest.raises(OSError, match="cannot write .*records.json: "):
        make_room_for(tmp_path / "new" / "file" / "records.json")
    for other in (tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match=f"cannot write {other}: .* no file"):
            make_room_for(other)
