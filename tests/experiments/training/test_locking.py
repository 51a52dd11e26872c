"""One command at a time in a run's folder, whatever becomes of the process."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.papers.block_normalized_2017 import convex
from experiments.train import main
from experiments.training import locking, processes
from experiments.training.locking import alone_in, check_free
from tests.experiments.small_runs import ROOT, arguments, saved

# Enters the folder that a line of its input names, and leaves it at the next line.
VISITOR = """
import sys
from pathlib import Path
from experiments.training.locking import alone_in
print("ready", flush=True)
for line in sys.stdin:
    try:
        with alone_in(Path(line.strip())):
            print("in", flush=True)
            sys.stdin.readline()
    except OSError as error:
        print(error, flush=True)
        sys.stdin.readline()
"""
ROUNDS = 5


def tell(process, line):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


@contextlib.contextmanager
def visitors(count):
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", VISITOR],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            started.append(process)
        assert [process.stdout.readline() for process in started] == ["ready\n"] * count
        yield started


def test_of_two_at_the_same_moment_one_is_told_who_the_other_is(tmp_path):
    with visitors(2) as both:
        for attempt in range(ROUNDS):
            folder = tmp_path / str(attempt)
            for process in both:
                tell(process, folder)
            said = [process.stdout.readline().strip() for process in both]
            first = said.index("in")
            words = f"{folder}: process {both[first].pid} on "
            assert said[1 - first].startswith(words)
            assert said[1 - first].endswith("is training there; wait for it or end it")
            for process in both:
                tell(process, "leave")


def test_a_killed_process_keeps_nobody_out(tmp_path):
    folder = tmp_path / "run"
    with visitors(1) as (process,):
        tell(process, folder)
        assert process.stdout.readline() == "in\n"
        with pytest.raises(OSError, match=f"process {process.pid} on "):
            check_free(folder)
        process.kill()
        process.wait()
    assert (folder / locking.LOCK).exists()
    check_free(folder)
    with alone_in(folder):
        (folder / "written").touch()
    assert [path.name for path in folder.iterdir()] == ["written"]


def test_a_holder_that_was_killed_is_not_named_for_the_next(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(locking, "_LOOKS", 1)
    with alone_in(tmp_path):
        name = tmp_path / locking.HOLDER
        name.write_text(name.read_text().replace(str(os.getpid()), str(dead.pid)))
        with pytest.raises(OSError, match="another process is training there"):
            check_free(tmp_path)


def test_looking_makes_no_folder_and_one_without_content_goes(tmp_path):
    folder = tmp_path / "a" / "run"
    check_free(folder)
    assert not folder.parent.exists()
    with alone_in(folder):
        assert folder.exists()
    assert not folder.exists()


def test_the_first_of_several_processes_locks_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    answers = iter([True, False])
    monkeypatch.setattr(processes, "first_says", lambda question: next(answers))
    with alone_in(tmp_path):
        assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="the first process says why"), alone_in(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/run: cannot be locked: "):
        with alone_in(tmp_path / "file" / "run"):
            pass


@pytest.mark.slow("waits for a run")
def test_the_same_command_beside_a_run_says_who_trains_and_harms_nothing(tmp_path):
    settings = arguments(tmp_path, epochs=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "train", *settings],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (begun := list(tmp_path.glob("*/config.json"))):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        folder = begun[0].parent
        before = sorted(folder.rglob("*"))
        for more in ([], ["--fresh"]):
            words = f"^error: {folder}: process {process.pid} on .* is training there"
            with pytest.raises(SystemExit, match=words):
                main([*settings, *more])
        assert sorted(folder.rglob("*")) == before
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    assert saved(folder) == {9} and (folder / "result.json").exists()


def test_an_experiment_of_parts_locks_its_folder_too(tmp_path, monkeypatch):
    tried = []

    def measured_twice(name, measure):
        (folder,) = (tmp_path / "smoke").iterdir()
        with pytest.raises(OSError, match=f"process {os.getpid()} on "):
            check_free(folder)
        tried.append(name)
        return {"gaps": [[1.0]], "arrived_after": [[None]]}

    monkeypatch.setattr(
        "experiments.training.runs.Run.part",
        lambda run, name, do: measured_twice(name, do),
    )
    monkeypatch.setattr(convex, "draw", lambda *_: None)
    monkeypatch.setattr(convex, "table", lambda _: "")
    convex.main(["--smoke", "--out", str(tmp_path)])
    assert len(tried) == len(convex.METHODS)
