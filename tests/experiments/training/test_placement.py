"""Runs on many devices and in several processes, beside those of one device."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from experiments.train import train
from experiments.training.placement import AXIS, Gathering, PlacementConfig
from experiments.training.preparation import prepare
from experiments.training.runs import read_records
from tests.experiments.small_runs import ROOT, arguments, config, quiet
from tests.multidevice.running import EIGHT, finish, free_address, start

EPOCHS = 2
# What compiles quickly.
SETTINGS = {"model": "vgg6", "optimizer": "sgd", "epochs": EPOCHS}


@pytest.mark.slow("tests/test_sharding.py has eight devices in each run")
def test_eight_devices_and_four_of_them_follow_one(tmp_path):
    printed = finish(
        start("tests.experiments.training.placed_training", tmp_path, flags=EIGHT)
    )
    assert "ways of placing followed: 2" in printed.splitlines()


def start_two_processes(runs_dir):
    command = [
        *("experiments", "train", "--distributed", "--fsdp"),
        *("--coordinator-address", free_address(), "--num-processes", "2"),
        *arguments(runs_dir, **SETTINGS),
    ]
    return [start(*command, "--process-id", index) for index in range(2)]


def train_in_two_processes(runs_dir):
    """What each of both has printed."""
    return [finish(process) for process in start_two_processes(runs_dir)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of a run in two processes, and what each of them has printed."""
    runs_dir = tmp_path_factory.mktemp("together")
    printed = train_in_two_processes(runs_dir)
    (folder,) = runs_dir.iterdir()
    return folder, printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run in one process."""
    prepared = prepare(config(tmp_path_factory.mktemp("alone"), **SETTINGS))
    train(prepared, fresh=False, console=quiet())
    return prepared.run.folder


@pytest.mark.slow("trains in two processes, and in one")
def test_two_processes_train_to_the_numbers_of_one(together, alone):
    folder, _ = together
    assert folder.name == alone.name
    ours, theirs = (read_records(f / "metrics.jsonl") for f in (folder, alone))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    # Sums of other parts are rounded otherwise, which training soon makes larger.
    for record, other in zip(ours, theirs, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-5)


@pytest.mark.slow("trains in two processes")
def test_the_first_process_alone_writes_and_prints(together):
    folder, (first, second) = together
    assert any(line.startswith("test accuracy") for line in first.splitlines())
    assert "training into" not in second and "accuracy" not in second
    (provenance,) = json.loads((folder / "provenance.json").read_text())
    assert list(provenance["devices"].values()) == [2]
    timing = read_records(folder / "timing.jsonl")
    assert len(timing) == len(read_records(folder / "metrics.jsonl")) + 1


def unfinished(finished, runs_dir):
    """A copy of the run without its end, and its newest checkpoint."""
    folder = shutil.copytree(finished, runs_dir / finished.name)
    (folder / "result.json").unlink()
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda f: int(f.name))
    return folder, newest


@pytest.mark.slow("two more processes")
def test_two_processes_go_on_from_their_checkpoint(together, tmp_path):
    finished, _ = together
    folder, newest = unfinished(finished, tmp_path)
    shutil.rmtree(newest)
    first, _ = train_in_two_processes(tmp_path)
    assert f"resuming after step {int(newest.name) // EPOCHS} of" in first
    for name in ("metrics.jsonl", "result.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def ends_of(processes):
    """How each has ended, and what it said of that."""
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow("two more processes")
def test_what_one_process_cannot_read_stops_both(together, tmp_path):
    _, newest = unfinished(together[0], tmp_path)
    for part in (newest / "default" / "ocdbt.process_1").rglob("*"):
        if part.is_file():
            os.truncate(part, part.stat().st_size // 2)
    (first, second), (_, words) = ends_of(start_two_processes(tmp_path))
    assert first != 0 and second == 1
    assert f"error: the checkpoint of step {newest.name} in" in words
    assert "delete it and they go on from the one before" in words


@pytest.mark.slow("two more processes")
def test_what_one_process_cannot_write_stops_both(together, tmp_path):
    # A folder where the first process wants to write a file, while the other waits.
    (tmp_path / together[0].name / "config.json").mkdir(parents=True)
    (first, second), (words, _) = ends_of(start_two_processes(tmp_path))
    assert first == 1 and second != 0
    assert "error: cannot write" in words


def test_a_process_that_is_told_to_end_ends():
    alone = {"num_processes": 1, "process_id": 0}
    options = {"distributed": True, "coordinator_address": free_address(), **alone}
    script = (
        "import os, signal\n"
        "from experiments.training.placement import PlacementConfig\n"
        f"PlacementConfig(**{options!r}).initialize()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.sigtimedwait((), 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=600,
        check=False,
    )
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 2}, "`num_processes` needs --distributed"),
        ({"mesh": "8"}, "`mesh` must be data=N .* or data for all, got 8"),
        ({"mesh": "data=0"}, "`mesh` must be data=N .* got data=0"),
        ({"mesh": "data=4096"}, "`mesh` must take at most .* devices, got 4096"),
        ({"fsdp": True}, "`fsdp` needs a mesh: add --mesh data"),
    ],
)
def test_what_is_no_mesh_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PlacementConfig(**options).placement()


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PlacementConfig, "placement", lambda *_: Three())
    with pytest.raises(ValueError, match="a multiple of the 3 devices .* got 128"):
        prepare(config(tmp_path))


def test_all_devices_train_where_a_single_process_is_told_of_others():
    assert PlacementConfig(distributed=True).placement().devices == len(jax.devices())
    assert PlacementConfig(distributed=True).placement().everywhere is not None


class Three:
    devices = 3


@pytest.mark.slow("prepares two networks")
def test_one_device_in_a_mesh_is_that_device(tmp_path):
    lone, meshed = (
        prepare(config(tmp_path, devices=PlacementConfig(mesh=mesh)))
        for mesh in (None, "data=1")
    )
    assert lone.run.folder == meshed.run.folder
    np.testing.assert_array_equal(
        lone.state.params["stem"]["conv"]["kernel"],
        meshed.state.params["stem"]["conv"]["kernel"],
    )


def test_kernels_travel_in_the_layers_dtype_and_norms_in_their_own():
    class Whole:
        def evaluate(self, params, model_state, images):
            return params

    leaf = jnp.ones((2, 3))
    params = {"dense": {"kernel": leaf}, "query_norm": {"scale": leaf}, "bias": leaf[0]}
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,))
    gathered = Gathering(Whole(), mesh, jnp.bfloat16).evaluate(params, None, leaf)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, gathered)
    assert dtypes == {
        "dense": {"kernel": jnp.bfloat16},
        "query_norm": {"scale": jnp.float32},
        "bias": jnp.float32,
    }
