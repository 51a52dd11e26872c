"""An interrupt that Python forgets ends a run all the same."""

import signal
import subprocess
import sys

import pytest

from experiments import __main__
from experiments.training import interrupting

# Interrupts itself inside a callback of the garbage collector, then goes on.
PROGRAM = """
import gc, os, signal
from rich.console import Console
from experiments.training import interrupting
from experiments.training.progress import TrainingProgress, counted

# What begins in the background of a shell ignores interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupting.install()

def interrupt(phase, info):
    gc.callbacks.remove(interrupt)
    os.kill(os.getpid(), signal.SIGINT)

gc.collect()
gc.callbacks.append(interrupt)
gc.collect()
print("forgotten", flush=True)
{rest}
print("went on")
"""
STEPS = "TrainingProgress(Console(quiet=True), 2).advance(1)"
ITEMS = "for _ in counted([1, 2], Console(quiet=True), 'items'): pass"


def ran(rest):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(rest=rest)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_steps_and_items_end_with_an_interrupt_that_was_forgotten():
    for rest in (STEPS, ITEMS):
        done = ran(rest)
        said = done.stdout.splitlines()
        assert "forgotten" in said and "went on" not in said, done.stderr
        assert "KeyboardInterrupt" in done.stderr
        assert done.returncode in (-signal.SIGINT, 130)


def test_it_is_raised_once(monkeypatch):
    monkeypatch.setattr(interrupting, "_seen", True)
    with pytest.raises(KeyboardInterrupt):
        interrupting.check()
    interrupting.check()


def test_every_experiment_of_the_command_line_has_it(monkeypatch):
    installed = []
    monkeypatch.setattr(interrupting, "install", lambda: installed.append(True))
    experiment = "block_normalized_2017.convex"
    monkeypatch.setattr(sys, "argv", ["experiments", experiment, "--steps", "0"])
    with pytest.raises(SystemExit, match="`steps` must be"):
        __main__.main()
    assert installed == [True]


def test_a_program_with_a_handler_of_its_own_keeps_it():
    def own(number, frame):
        del number, frame

    before = signal.signal(signal.SIGINT, own)
    try:
        interrupting.install()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
