"""The speed that is shown leaves compiling out."""

import pytest
from rich.console import Console

from experiments import progress
from experiments.progress import TrainingProgress


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
        speeds.append(shown.images_per_second())
    assert speeds == [None, 8.0, None, 8.0, 12.0]


def test_speed_is_printed_where_it_is_known(clock, capsys):
    shown = TrainingProgress(Console(), 20, batch_size=1000)
    for at, step in ((1, 10), (3, 20)):
        show(shown, clock, at, step, validated=True)
    first, last = capsys.readouterr().out.splitlines()
    assert "images/s" not in first and last.endswith("5,000 images/s")
