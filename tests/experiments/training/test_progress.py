"""What is shown of a run: its speed leaves compiling out, and a bar times nothing."""

import io
import threading

import pytest
from rich.console import Console

from experiments.training import progress
from experiments.training.progress import TrainingProgress, counted


def show(shown, clock, at, step, validated):
    clock.append(at)
    loss = 0.5 if validated else None
    shown.show({"step": step, "epoch": step / 10, "validation_loss": loss})


@pytest.fixture
def clock(monkeypatch):
    ticks = []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: ticks[-1])
    return ticks


def test_speed_counts_from_the_first_validation(clock):
    shown = TrainingProgress(Console(quiet=True), 40, done=0, batch_size=8)
    speeds = []
    # The first step compiles for 100 s, the first validation for 50 s.
    times = [(100, 5), (105, 10), (160, 15), (165, 20), (170, 30)]
    for at, step in times:
        show(shown, clock, at, step, validated=step == 15)
        speeds.append(shown.counted_per_second())
    assert speeds == [None, 8.0, None, 8.0, 12.0]


def test_speed_is_printed_where_it_is_known(clock, capsys):
    shown = TrainingProgress(Console(), 20, batch_size=1000)
    for at, step in ((1, 10), (3, 20)):
        show(shown, clock, at, step, validated=True)
    first, last = capsys.readouterr().out.splitlines()
    assert "images/s" not in first and last.endswith("5,000 images/s")


def test_items_are_counted_in_a_terminal_and_by_no_thread():
    screen, threads = io.StringIO(), threading.active_count()
    console = Console(file=screen, force_terminal=True, width=60)
    # As many of three are done when each is worked on.
    for done, item in enumerate(counted("abc", console, "letters")):
        assert item == "abc"[done]
        assert threading.active_count() == threads
        assert f"{done}/3" in screen.getvalue()
        assert f"{done + 1}/3" not in screen.getvalue()
    assert "letters" in screen.getvalue() and "3/3" in screen.getvalue()


def test_where_there_is_no_terminal_there_is_no_bar():
    screen = io.StringIO()
    assert list(counted("abc", Console(file=screen), "letters")) == ["a", "b", "c"]
    assert not screen.getvalue()
