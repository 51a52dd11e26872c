"""Runs on many devices and in several processes, beside those of one device."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.placement import PlacementConfig
from experiments.preparation import prepare
from experiments.runs import read_records
from tests.experiments.small_runs import ROOT, arguments, config

EPOCHS = 2


def start(*command, flags=""):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed_by(process):
    try:
        printed, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return printed


def test_four_of_eight_devices_follow_one(tmp_path):
    eight = "--xla_force_host_platform_device_count=8"
    printed = printed_by(start("tests.multidevice.training", tmp_path, flags=eight))
    assert printed == "ways of placing followed: 2\n"


def train_in_two_processes(runs_dir):
    """What each of both has printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*probe.getsockname())
    command = [
        *("experiments", "train", "--distributed", "--fsdp"),
        *("--coordinator-address", address, "--num-processes", "2"),
        *arguments(runs_dir, epochs=EPOCHS),
    ]
    processes = [start(*command, "--process-id", index) for index in range(2)]
    return [printed_by(process) for process in processes]


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
    runs_dir = tmp_path_factory.mktemp("alone")
    printed_by(start("experiments", "train", *arguments(runs_dir, epochs=EPOCHS)))
    (folder,) = runs_dir.iterdir()
    return folder


def test_two_processes_train_to_the_numbers_of_one(together, alone):
    folder, _ = together
    assert folder.name == alone.name
    ours, theirs = (read_records(f / "metrics.jsonl") for f in (folder, alone))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    # Sums of other parts are rounded otherwise, which training soon makes larger.
    for record, other in zip(ours, theirs, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-5)


def test_the_first_process_alone_writes_and_prints(together):
    folder, (first, second) = together
    assert first.splitlines()[-1].startswith("test accuracy")
    assert "training into" not in second and "accuracy" not in second
    provenance = json.loads((folder / "provenance.json").read_text())
    assert list(provenance["devices"].values()) == [2]
    timing = read_records(folder / "timing.jsonl")
    assert len(timing) == len(read_records(folder / "metrics.jsonl")) + 1


def test_two_processes_go_on_from_their_checkpoint(together, tmp_path):
    finished, _ = together
    runs_dir = tmp_path / "runs"
    folder = shutil.copytree(finished, runs_dir / finished.name)
    (folder / "result.json").unlink()
    last = max((folder / "checkpoints").glob("[0-9]*"), key=lambda f: int(f.name))
    shutil.rmtree(last)
    first, _ = train_in_two_processes(runs_dir)
    assert f"resuming after step {int(last.name) // EPOCHS} of" in first
    for name in ("metrics.jsonl", "result.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
    monkeypatch.setattr(PlacementConfig, "placement", lambda _: Three())
    with pytest.raises(ValueError, match="a multiple of the 3 devices .* got 128"):
        prepare(config(tmp_path))


class Three:
    devices = 3


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
