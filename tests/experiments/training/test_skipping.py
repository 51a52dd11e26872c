"""What is not finite stops a run, or with `--skip-nonfinite` costs it a step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from experiments.data.augment import AUGMENTATIONS, Augmentation
from experiments.train import main, prepare
from experiments.training import loop
from experiments.training.images import on_device
from experiments.training.loop import TrainingDiverged
from experiments.training.progress import TrainingProgress
from experiments.training.runs import read_records
from experiments.training.skipping import MOST_IN_A_ROW, skip_nonfinite
from experiments.training.steps import (
    NEVER,
    Sums,
    initial_state,
    make_train_step,
    repeat,
)
from tests.experiments.small_runs import (
    Damaged,
    Line,
    Steps,
    arguments,
    assert_same_run,
    config,
    copy_of,
    line_data,
    line_folder,
    recorded,
    restored,
    saved,
    train_line,
)


class Outlier(Line):
    """The loss of the second batch overflows, its gradient does not."""

    def train(self, params, model_state, images):
        logits, after = super().train(params, model_state, images)
        largest = jnp.asarray([3e38, -3e38, -3e38])
        return logits + jnp.where(model_state == 1, largest, 0), after


class Overflowing(Line):
    """Only a statistic of the second batch is not finite."""

    def train(self, params, model_state, images):
        logits, after = super().train(params, model_state, images)
        return logits, jnp.where(model_state == 1, jnp.inf, after)


def line_steps(count, *, network=None, bad_steps=(), scan=False):
    optimizer = skip_nonfinite(optax.adam(0.1))
    augmentation = Damaged(steps=bad_steps) if bad_steps else Augmentation()
    step = make_train_step(network or Line(), optimizer, augmentation, batch_size=4)
    state = initial_state(jnp.zeros((4, 3)), jnp.zeros(()), optimizer)
    # The key that a run with the seed 0 has.
    _, key = jax.random.split(jax.random.key(0))
    carry = (state, Sums.zeros())
    data = on_device(line_data(30))
    return repeat(step, scan=scan)(carry, count, key, jnp.arange(30), data)


@pytest.mark.parametrize(
    "scan", [True, pytest.param(False, marks=pytest.mark.slow("compiles all again"))]
)
@pytest.mark.parametrize(
    "bad",
    [
        {"bad_steps": (2,)},
        {"network": Outlier()},
        {"network": Overflowing()},
    ],
    ids=["gradient", "loss", "statistic"],
)
def test_skipped_step_leaves_all_but_the_counts_as_it_was(bad, scan):
    (before, sums), (after, sums_after) = (
        line_steps(count, scan=scan, **bad) for count in (1, 2)
    )
    assert int(after.opt_state.total_notfinite) == 1
    assert int(after.step) == 2 and int(after.first_bad_step) == NEVER
    kept = [(s.params, s.model_state, s.opt_state.inner_state) for s in (before, after)]
    jax.tree.map(
        np.testing.assert_array_equal, (*kept[0], sums), (*kept[1], sums_after)
    )


def test_steps_after_a_skipped_one_go_on():
    (two, _), (three, sums) = (line_steps(n, bad_steps=(2,)) for n in (2, 3))
    assert int(three.model_state) == 2 and int(sums.images) == 8
    assert not np.array_equal(two.params, three.params)
    assert jnp.isfinite(three.params).all()


def test_without_the_flag_the_first_bad_step_stops_the_run(tmp_path):
    with pytest.raises(TrainingDiverged) as error:
        train_line(tmp_path, bad_steps=(12, 13))
    assert "the loss of step 12 is not finite with the optimizer sgd" in str(
        error.value
    )
    assert "last good checkpoint is that of step 9" in str(error.value)
    assert "--skip-nonfinite" in str(error.value)


@pytest.mark.parametrize("bad_step", [10, 18])
def test_first_bad_step_is_read_before_a_save_although_late(
    tmp_path, monkeypatch, bad_step
):
    """Neither the weights nor the device's readiness tell that a loss was not finite.

    Step 10 lies in the interval before the one that ends with the save, 18 in that one.
    """
    monkeypatch.setattr(loop._Pending, "is_ready", lambda self: False)
    progress = Steps()
    with pytest.raises(TrainingDiverged, match=f"the loss of step {bad_step} is not"):
        train_line(
            tmp_path,
            bad_steps=(bad_step,),
            optimizer=optax.chain(optax.zero_nans(), optax.sgd(0.1)),
            progress=lambda _: progress,
        )
    folder = line_folder(tmp_path)
    # Each record came when the interval after it was on its way.
    late = {4: 9, 9: 13, 13: 18}
    assert progress.shown == {step: late[step] for step in recorded(folder)}
    assert recorded(folder) == [step for step in late if step < bad_step]
    assert saved(folder) == {9}


SKIPPING = skip_nonfinite(optax.sgd(0.1))


def test_as_many_bad_steps_in_a_row_as_are_allowed_are_skipped(tmp_path):
    bad_steps = tuple(range(5, 5 + MOST_IN_A_ROW))
    run, state = train_line(tmp_path, bad_steps=bad_steps, optimizer=SKIPPING)
    records = read_records(run.metrics_file)
    # The steps 5 to 14 are bad, and with them all between the records of 4, 9 and 13.
    assert [r["skipped"] for r in records] == [0, 5, 9, 10, 10, 10]
    unknown = [r["step"] for r in records if r["train_loss"] is None]
    assert unknown == [9, 13]
    assert [r["train_accuracy"] is None for r in records] == [
        r["train_loss"] is None for r in records
    ]
    assert int(state.model_state) == 27 - MOST_IN_A_ROW


def test_bad_steps_without_end_stop_the_run_and_spoil_no_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged) as error:
        train_line(tmp_path, bad_steps=tuple(range(5, 28)), optimizer=SKIPPING)
    assert str(error.value) == (
        "the loss or a gradient of step 15, after 10 steps skipped in a row, is not "
        "finite with the optimizer sgd; the last good checkpoint is that of step 9; "
        "a smaller learning rate may help"
    )
    folder = line_folder(tmp_path)
    assert saved(folder) == {9} and recorded(folder) == [4, 9, 13]
    template = initial_state(jnp.zeros((4, 3)), jnp.zeros(()), SKIPPING)
    state = restored(folder, template)
    assert int(state.step) == 9 and int(state.opt_state.notfinite_count) == 5
    assert jnp.isfinite(state.params).all() and state.params.any()


def test_recorded_learning_rate_is_that_of_the_last_update(tmp_path):
    def schedule(count):
        return jnp.asarray(count) * 1.0

    optimizer = optax.chain(optax.scale_by_schedule(schedule), optax.sgd(0.1))
    run, state = train_line(
        tmp_path,
        bad_steps=(2, 8, 13),
        schedule=schedule,
        optimizer=skip_nonfinite(optimizer),
    )
    rates = [record["learning_rate"] for record in read_records(run.metrics_file)]
    # Of 4, 9, ... steps 1, 2, ... were skipped; the update of number n has count n - 1.
    assert rates == [2.0, 6.0, 9.0, 14.0, 18.0, 23.0]
    scaling, _ = state.opt_state.inner_state
    assert int(scaling.count) == 24


# The last four are a whole interval, between the records of the steps 9 and 13.
BAD_STEPS = (2, 10, 11, 12, 13)
SETTINGS = {"optimizer": '{"name": "sgd", "momentum": 0.9}', "epochs": 3}


@pytest.fixture
def damaged(monkeypatch):
    damaged = Damaged(**vars(AUGMENTATIONS["digits"]), steps=BAD_STEPS)
    monkeypatch.setitem(AUGMENTATIONS, "digits", damaged)


@pytest.mark.slow("two real runs")
def test_flag_skips_bad_steps_of_a_real_run_and_says_so(tmp_path, damaged, capsys):
    command = [*arguments(tmp_path, **SETTINGS), "--skip-nonfinite"]
    main(command)
    said = "skipped 5 of 27 steps, where the loss or a gradient was not finite"
    assert capsys.readouterr().out.splitlines()[-2] == said
    (folder,) = tmp_path.iterdir()
    records = read_records(folder / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [1, 1, 5, 5, 5, 5]
    assert [r["train_loss"] is None for r in records] == [False, False, True] + [
        False
    ] * 3
    # The statistics of the damaged batches are NaN, and evaluation uses them.
    assert records[-1]["validation_loss"] < records[1]["validation_loss"]
    assert json.loads((folder / "result.json").read_text())["skipped"] == 5

    main(command)
    assert capsys.readouterr().out.splitlines()[-2] == said

    resumed = copy_of(folder, tmp_path / "resumed", steps=18)
    main([*arguments(tmp_path / "resumed", **SETTINGS), "--skip-nonfinite"])
    assert "resuming after step 18 of" in capsys.readouterr().out
    assert_same_run(resumed, folder)


@pytest.mark.slow("prepares two networks")
def test_only_the_flag_gives_a_run_another_folder(tmp_path):
    plain, skipping = (
        prepare(config(tmp_path, **SETTINGS, skip_nonfinite=flag)).run
        for flag in (False, True)
    )
    assert skipping.config == {**plain.config, "skip_nonfinite": True}
    assert skipping.folder != plain.folder


def test_progress_shows_what_is_known(capsys):
    unknown = {"train_loss": None, "train_accuracy": None, "validation_accuracy": None}
    with TrainingProgress(Console(), 10) as progress:
        progress.show({"step": 5, "epoch": 0.5, **unknown, "skipped": 3})
        known = dict.fromkeys(unknown, 0.5)
        progress.show({"step": 10, "epoch": 1.0, **known})
    lines = capsys.readouterr().out.splitlines()
    # The speed is whatever the clock says.
    lines[1], _, speed = lines[1].rpartition("  ")
    assert speed.endswith(" images/s") and lines == [
        "step 5/10  epoch 0.5  skipped 3",
        "step 10/10  epoch 1  loss 0.5000  accuracy 50.00%  validation 50.00%",
    ]
