"""A run that is killed, or finds the disk full, goes on as if nothing had happened."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from experiments.report import figures
from experiments.train import main, prepare, train
from experiments.training.checkpoints import Checkpoints
from experiments.training.runs import append_record, read_records, write_json
from experiments.training.steps import initial_state
from tests.experiments.small_runs import (
    ROOT,
    Steps,
    arguments,
    assert_same_run,
    config,
    copy_of,
    line_folder,
    quiet,
    recorded,
    restored,
    saved,
    train_line,
)

# Three epochs of nine steps, over cycles of seven, fourteen and more: the middle of an
# epoch is the middle of a cycle that is not the first.
RESTARTS = {"name": "WarmRestarts", "cycle_steps": 7, "t_mult": 2}
DECOUPLED = {"name": "adamw", "weight_decay": 0.001, "schedule": RESTARTS}
SETTINGS = {"optimizer": json.dumps(DECOUPLED), "epochs": 3}
COMMAND = [sys.executable, "-m", "experiments", "train"]
# More than any record, less than any checkpoint.
SMALL_FILES = 16 * 1024


@pytest.fixture(scope="module", autouse=True)
def _programs_of_this_module():
    """Forget those that other tests compiled, for a child process has them optimized.

    JAX does not compile anew what it has compiled with other optimizations.
    """
    jax.clear_caches()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(config(tmp_path_factory.mktemp("uninterrupted"), **SETTINGS))


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    train(prepared, fresh=False, console=quiet())
    return prepared.run.folder


def is_schedule(node):
    return isinstance(node, normopt.WarmRestartsState)


def unfinished(folder):
    """The steps whose checkpoints are being written."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return {int(name.partition(".")[0]) for name in names if not name.isdigit()}


@contextlib.contextmanager
def stopped(runs_dir, folder, landed):
    """A run that stands still where `landed` recognises what is on the disk.

    A run that was past that point before it stood still is killed and begun again.
    """
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            [*COMMAND, *arguments(runs_dir, **SETTINGS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 600
        try:
            while process.poll() is None and not landed(folder):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                _, status = os.waitpid(process.pid, os.WUNTRACED)
                if os.WIFSTOPPED(status) and landed(folder):
                    yield process
                    return
        finally:
            process.kill()
            _, errors = process.communicate()
        assert not process.returncode or process.returncode == -signal.SIGKILL, errors
    pytest.fail("no run stood still where it was to")


def before_the_first_checkpoint(folder):
    return recorded(folder) == [4] and not saved(folder) | unfinished(folder)


def during_a_save(folder):
    return bool(unfinished(folder) - saved(folder))


def in_the_middle_of_the_second_epoch(folder):
    # Where steps are fast and disks slow, the first checkpoint is still being written.
    return recorded(folder) == [4, 9, 13]


def the_same_command(runs_dir):
    done = subprocess.run(
        [*COMMAND, *arguments(runs_dir, **SETTINGS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def in_this_process(runs_dir):
    """What the command does, without the seconds that a process takes to begin."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(arguments(runs_dir, **SETTINGS))
    return printed.getvalue()


ANOTHER = pytest.mark.slow("another real run that is killed")


@pytest.mark.parametrize(
    ("landed", "resume"),
    [
        (in_the_middle_of_the_second_epoch, in_this_process),
        pytest.param(during_a_save, the_same_command, marks=ANOTHER),
        pytest.param(before_the_first_checkpoint, in_this_process, marks=ANOTHER),
    ],
)
def test_killed_run_goes_on_bit_for_bit(tmp_path, uninterrupted, landed, resume):
    """The process is killed, so nothing of it gets a chance to tidy up."""
    folder = tmp_path / uninterrupted.name
    with stopped(tmp_path, folder, landed) as process:
        process.kill()
        process.wait()
    assert landed(folder)
    assert not (folder / "result.json").exists()
    last = max(saved(folder), default=None)

    lines = resume(tmp_path).splitlines()
    begin = "training into" if last is None else f"resuming after step {last} of"
    assert any(line.startswith(begin) for line in lines)
    assert any(line.startswith("test accuracy ") for line in lines)
    assert_same_run(folder, uninterrupted)
    assert saved(folder) == saved(uninterrupted) == {9, 18, 27}
    assert not unfinished(folder)


def test_checkpoint_holds_the_position_in_the_restarts(
    tmp_path, prepared, uninterrupted
):
    folder = copy_of(uninterrupted, tmp_path, steps=18)
    state = restored(folder, prepared.state).opt_state
    nodes = jax.tree.leaves(state, is_leaf=is_schedule)
    (schedule,) = (node for node in nodes if is_schedule(node))
    # Eighteen updates are one cycle of 7 and 11 updates of the next one.
    assert (schedule.count, schedule.cycle) == (18, 1)
    assert (schedule.t_cur, schedule.cycle_steps) == (11, 14)


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own if mounting is allowed, else one like any other."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder]
    own = (
        bool(shutil.which("mount"))
        and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
    )
    yield folder
    if own:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk, process):
    """Leave a process room for records and not for checkpoints; say what it will see.

    Python ignores the signal that a file-size limit sends, and gets the error.
    """
    if os.path.ismount(disk):
        room = shutil.disk_usage(disk).free - SMALL_FILES
        (disk / "filler").write_bytes(bytes(room))
        return "No space left on device"
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL_FILES, hard))
    return "File too large"


@pytest.mark.slow("a second real run that is stopped")
def test_full_disk_stops_with_one_line_and_loses_no_checkpoint(
    disk, uninterrupted, capsys
):
    folder = disk / uninterrupted.name
    with stopped(disk, folder, in_the_middle_of_the_second_epoch) as process:
        cause = fill(disk, process)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 1
    # Other libraries may have lines of their own on this stream.
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        f"error: cannot save the checkpoint of step 18 in {folder / 'checkpoints'}: "
        f"{cause}; the last good checkpoint is that of step 9"
    ]
    assert saved(folder) == {9} and not (folder / "result.json").exists()

    (disk / "filler").unlink(missing_ok=True)
    main(arguments(disk, **SETTINGS))
    assert "resuming after step 9 of" in capsys.readouterr().out
    assert_same_run(folder, uninterrupted)
    assert saved(folder) == {9, 18, 27} and not unfinished(folder)


@contextlib.contextmanager
def largest_file(size):
    """What a full disk is to this process while no other disk can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def until_it_fails(checkpoints):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.001)


NOTICED = {
    "while training": until_it_fails,
    "at the next save": lambda checkpoints: checkpoints.save(3, STATE),
    "at the end": lambda checkpoints: checkpoints.__exit__(None),
}
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(100, 100)), jnp.float32)
STATE = initial_state(WEIGHTS, jnp.zeros(()), optax.sgd(0.1))


@pytest.mark.parametrize("notice", NOTICED.values(), ids=NOTICED)
def test_save_that_fails_in_the_background_is_noticed(tmp_path, notice):
    cause = "step 2 in .*File too large; the last good checkpoint is that of step 1$"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, STATE)
        checkpoints.wait()
        with largest_file(SMALL_FILES):
            checkpoints.save(2, STATE)
            with pytest.raises(OSError, match=cause):
                notice(checkpoints)
    assert saved(tmp_path) == {1}
    np.testing.assert_array_equal(restored(tmp_path, STATE).params, STATE.params)


def test_failed_save_is_no_good_checkpoint_and_hides_no_error_before_it(tmp_path):
    with (
        pytest.raises(ValueError, match="something else"),
        largest_file(SMALL_FILES),
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
    ):
        checkpoints.save(1, STATE)
        assert checkpoints.last_good() == "there is no checkpoint before it"
        checkpoints.save(2, STATE)
        raise ValueError("something else")
    assert not saved(tmp_path)


@pytest.mark.parametrize("bound", [False, True])
def test_restored_arrays_are_bound_to_a_device_as_the_template_s_are(tmp_path, bound):
    """Else a resumed run compiles its step twice, and nothing that is cached fits."""
    template = jax.device_put(STATE, jax.devices()[0]) if bound else STATE
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, STATE)
        checkpoints.wait()
        state = checkpoints.restore(template)
    assert {leaf.committed for leaf in jax.tree.leaves(state)} == {bound}
    jax.tree.map(np.testing.assert_array_equal, state, STATE)


def test_checkpoint_that_is_still_being_saved_is_waited_for(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, STATE)
        assert checkpoints.last_good() == "the last good checkpoint is that of step 1"
        assert saved(tmp_path) == {1}


def test_other_reports_still_reach_the_hook(tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    hook = sys.unraisablehook
    with Checkpoints(tmp_path / "checkpoints"):
        for error in (RuntimeError("Event loop is closed"), RuntimeError("other")):
            sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [str(report.exc_value) for report in reports] == ["other"]
    assert sys.unraisablehook == hook


def test_records_on_a_full_disk_stop_the_run_and_are_written_again(tmp_path):
    whole, _ = train_line(tmp_path / "whole")
    metrics = line_folder(tmp_path / "cut") / "metrics.jsonl"

    def fill_after_step_13(checkpoints):
        def on_record(record):
            if record["step"] == 13:
                checkpoints.wait()
                # Room for the first words of the next record.
                stack.enter_context(largest_file(metrics.stat().st_size + 20))

        return Steps(on_record)

    with (
        contextlib.ExitStack() as stack,
        pytest.raises(OSError, match=f"^cannot write {metrics}: File too large$"),
    ):
        train_line(tmp_path / "cut", progress=fill_after_step_13)
    assert metrics.read_text().splitlines()[-1].startswith('{"step": 18, "epoch"')
    assert saved(metrics.parent) == {9}
    train_line(tmp_path / "cut")
    assert metrics.read_bytes() == whole.metrics_file.read_bytes()


RECORD = {"epoch": 1.0, "train_loss": 1.0, "train_accuracy": 0.5}
RECORD |= {"validation_loss": None, "validation_accuracy": None}
WRITERS = {
    "record": lambda path: append_record(path, {"step": 100}),
    "json": lambda path: write_json(path, {"step": 100}),
    "figure": lambda path: figures.learning_curve(path, [RECORD], "title"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_on_a_full_disk_are_named_and_stay_whole(tmp_path, name):
    path = tmp_path / "file"
    path.write_text('{"step": 1}\n')
    with (
        largest_file(path.stat().st_size + 2),
        pytest.raises(OSError, match=f"^cannot write {path}: File too large$"),
    ):
        WRITERS[name](path)
    assert read_records(path) == [{"step": 1}]
    assert list(tmp_path.iterdir()) == [path]
