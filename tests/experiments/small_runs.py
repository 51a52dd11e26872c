"""Runs of a small network that take seconds, and a network that takes none."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from experiments.data import Dataset, Split
from experiments.data.augment import Augmentation
from experiments.train import TrainConfig
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import Job, Loop, Plan
from experiments.training.runs import Run, read_records
from experiments.training.steps import initial_state

ROOT = Path(__file__).parents[2]
CONVOLUTIONS = {r"conv\d?/kernel$": [-1]}
# Blocks that are named need not be found, which takes longer than such a run.
NAMED = json.dumps({"name": "adamsrt", "channel_axes": CONVOLUTIONS})
SMALL = {
    "model": "resnet8",
    "optimizer": NAMED,
    "epochs": 4,
    "batch_size": 128,
    "log_every": 5,
}


def config(runs_dir, **changes):
    return TrainConfig(runs_dir=runs_dir, **{**SMALL, **changes})


def arguments(runs_dir, **changes):
    pairs = {**SMALL, "runs_dir": runs_dir, **changes}.items()
    return [str(part) for k, v in pairs for part in (f"--{k.replace('_', '-')}", v)]


def quiet():
    return Console(quiet=True)


def in_a_plain_terminal(table):
    """The lines of a table, none of whose cells is cut."""
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    assert "…" not in captured.get()
    return [line.strip() for line in captured.get().splitlines()]


def calls_until_it_goes_on(monkeypatch, owner, name, command):
    """Stop a command before its third call of a function, then give it again.

    Returns what the first command called the function with, then what the second did.
    """
    function, calls = getattr(owner, name), []

    def counted(*arguments):
        if len(calls) == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        calls.append(arguments)
        return function(*arguments)

    stopped = []
    monkeypatch.setattr(owner, name, counted)
    with pytest.raises(SystemExit, match="the same command, without --fresh, goes on"):
        command()
    before = len(calls)
    command()
    return calls[:before], calls[before:]


def assert_same_run(folder, other):
    for name in ("config.json", "metrics.jsonl", "result.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def copy_of(finished, tmp_path, *, steps):
    """The folder as if the run had been interrupted after `steps`."""
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    (folder / "result.json").unlink()
    for checkpoint in (folder / "checkpoints").glob("[0-9]*"):
        if int(checkpoint.name) > steps:
            shutil.rmtree(checkpoint)
    return folder


class Line:
    """The smallest network: one matrix over the pixels, and a count of the batches."""

    def train(self, params, model_state, images):
        return self.evaluate(params, model_state, images), model_state + 1

    def evaluate(self, params, model_state, images):
        return images.reshape(len(images), -1) @ params

    def penalty(self, params, model_state):
        return 0.0


def line_data(n):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, 2, 2, 1)).astype(np.float32)
    return Split(images, rng.integers(0, 3, n).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Damaged(Augmentation):
    """Gives images of NaN at some steps, by the random key that is theirs alone."""

    steps: tuple[int, ...] = ()

    def __call__(self, key, images):
        _, step_key = jax.random.split(jax.random.key(0))
        keys = [jax.random.fold_in(step_key, step - 1) for step in self.steps]
        hit = jnp.any(jnp.stack([jnp.all(key == own) for own in keys]))
        whole = super().__call__(key, images).astype(jnp.float32)
        return jnp.where(hit, jnp.nan, whole)


class Steps:
    """In the place of the progress bar: how far the host was at each record."""

    def __init__(self, on_record=lambda record: None):
        self.dispatched, self.shown, self._on_record = 0, {}, on_record

    def advance(self, steps):
        self.dispatched += steps

    def show(self, record):
        self.shown[record["step"]] = self.dispatched
        self._on_record(record)


def train_line(folder, *, bad_steps=(), progress=None, **changes):
    """Train a `Line` for three epochs of nine steps as `train` would, or go on."""
    split = line_data(36)
    augmentation = Damaged(steps=bad_steps) if bad_steps else Augmentation()
    job = Job(
        **{
            "network": Line(),
            "optimizer": optax.sgd(0.1),
            "optimizer_name": "sgd",
            "schedule": optax.constant_schedule(0.1),
            "data": Dataset("lines", 3, *[split] * 3, np.zeros(1), np.ones(1)),
            "augmentation": augmentation,
            "plan": Plan(images=36, batch_size=4, epochs=3, log_every=5),
            "seed": 0,
            "scan": False,
            **changes,
        }
    )
    start = initial_state(jnp.zeros((4, 3)), jnp.zeros(()), job.optimizer)
    start = job.placement.put_state(start, job.optimizer)
    run = Run(folder, "line", {})
    run.open()
    with Checkpoints(run.checkpoints_folder) as checkpoints:
        state = checkpoints.restore(start) or start
        run.cut_metrics(int(state.step))
        progress = progress(checkpoints) if progress else Steps()
        return run, Loop(job).run(state, run, checkpoints, progress)


def line_folder(folder):
    return Run(folder, "line", {}).folder


def restored(folder, template):
    """The newest state in a run's folder."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(template)


def saved(folder):
    """The steps whose checkpoints are whole, by their names."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return {int(name) for name in names if name.isdigit()}


def recorded(folder):
    """The steps that have a record."""
    return [record["step"] for record in read_records(folder / "metrics.jsonl")]
