"""The same command again: quick where it is finished, true where it was interrupted."""

import json
import signal
import subprocess
import sys
import time

import pytest

from experiments.train import main
from experiments.training import axes, preparation
from experiments.training.loop import Loop
from tests.experiments.small_runs import (
    CONVOLUTIONS,
    ROOT,
    arguments,
    assert_same_run,
    config,
    saved,
)

# Blocks that nobody named, in a run of nine steps.
SEARCHED = {"optimizer": "adamsrt", "epochs": 1}


@pytest.fixture
def searches(monkeypatch):
    """How often axes were looked for, which takes no time here."""
    made = []

    def find(*_):
        made.append(True)
        return {rule: tuple(found) for rule, found in CONVOLUTIONS.items()}

    monkeypatch.setattr(axes, "find", find)
    return made


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.slow("trains a run to its end")
def test_a_run_is_searched_once_and_told_from_the_start_when_it_is_finished(
    tmp_path, monkeypatch, capsys, searches
):
    given = arguments(tmp_path / "cut", **SEARCHED)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", interrupted)
        words = "interrupted before the first checkpoint, .* starts anew"
        with pytest.raises(SystemExit, match=words) as error:
            main(given)
    assert error.value.code == 130
    (folder,) = (tmp_path / "cut").iterdir()
    assert json.loads((folder / "axes.json").read_text()) == CONVOLUTIONS
    assert len(searches) == 1

    capsys.readouterr()
    main(given)
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("training into")
    ]
    assert line.endswith("what was begun there left no checkpoint, so it starts anew")
    assert len(searches) == 1
    stored = json.loads((folder / "config.json").read_text())
    assert stored["optimizer"]["channel_axes"] == CONVOLUTIONS

    main(arguments(tmp_path / "whole", **SEARCHED))
    assert len(searches) == 2
    assert "starts anew" not in capsys.readouterr().out
    assert_same_run(folder, tmp_path / "whole" / folder.name)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "complete", interrupted)
        main(given)
    lines = capsys.readouterr().out.splitlines()
    assert "is finished" in lines[-2] and lines[-1].startswith("test accuracy ")


def test_an_interrupt_after_a_checkpoint_names_it(tmp_path, monkeypatch):
    run = Loop.run

    def run_and_stop(*given):
        run(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "run", run_and_stop)
    words = "goes on from the last checkpoint, that of step 9$"
    with pytest.raises(SystemExit, match=words) as error:
        main(arguments(tmp_path, epochs=1))
    assert error.value.code == 130


def asked(tmp_path, **changes):
    return preparation.ask(config(tmp_path, **{**SEARCHED, **changes}))


def test_the_name_follows_from_what_was_asked(tmp_path, searches):
    before = asked(tmp_path).run.folder
    assert not searches
    prepared = preparation.prepare(config(tmp_path, **SEARCHED))
    assert prepared.run.folder == before and len(searches) == 1
    named = {"name": "adamsrt", "channel_axes": None}
    others = [
        asked(tmp_path, optimizer=json.dumps(named)).run.folder,
        asked(tmp_path, seed=1).run.folder,
    ]
    assert len({before, *others}) == 3


DAMAGED = {
    "cut short": '{"stem',
    "empty": "",
    "of another kind": "[]",
    "without axes": '{"stem/conv/kernel$": "all"}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_axes_are_named(tmp_path, searches, text):
    run = asked(tmp_path).run
    run.open()
    (run.folder / "axes.json").write_text(text)
    words = f"{run.folder}/axes.json is damaged: .*; --fresh begins anew"
    with pytest.raises(SystemExit, match=words):
        main(arguments(tmp_path, **SEARCHED))
    assert not searches
    # As --fresh does, which reads nothing of it.
    preparation.prepare(config(tmp_path, **SEARCHED, fresh=True))
    assert len(searches) == 1


def test_axes_that_are_not_those_of_the_run_are_refused(tmp_path, searches):
    run = preparation.prepare(config(tmp_path, **SEARCHED)).run
    run.open()
    run.keep_axes(CONVOLUTIONS)
    assert preparation.prepare(config(tmp_path, **SEARCHED)).found_axes == CONVOLUTIONS
    run.keep_axes({"head/kernel$": [-1]})
    with pytest.raises(OSError, match="what it holds is not what .*config.json has"):
        preparation.prepare(config(tmp_path, **SEARCHED))


@pytest.mark.parametrize("name", ["result", "provenance"])
def test_other_damaged_files_are_named(tmp_path, name):
    run = preparation.ask(config(tmp_path)).run
    run.open()
    (run.folder / f"{name}.json").write_text("{")
    with pytest.raises(SystemExit, match=f"{name}.json is damaged: .*--fresh"):
        main(arguments(tmp_path))


# What begins in the background of a shell ignores interrupts, and so do its children.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("experiments", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
    ],
)
@pytest.mark.slow("real runs that are interrupted")
def test_the_status_tells_of_the_signal(tmp_path, number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *arguments(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not list(tmp_path.glob("*/config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == status
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("interrupted")]
    (folder,) = tmp_path.iterdir()
    if number == signal.SIGINT:
        kept = "from the last" if saved(folder) else "before the first"
        assert len(said) == 1 and f"{kept} checkpoint" in said[0]
