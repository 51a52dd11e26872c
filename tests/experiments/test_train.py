"""A run from end to end: its files, what it refuses, resumed, begun afresh."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import normopt
from experiments.data.augment import Augmentation
from experiments.train import TrainConfig, main, prepare, train
from experiments.training import devices, optimizers
from experiments.training.checkpoints import Checkpoints
from experiments.training.images import on_device
from experiments.training.loop import Plan, TrainingDiverged
from experiments.training.runs import append_record, read_records, write_json
from experiments.training.steps import (
    Sums,
    initial_state,
    make_evaluation_step,
    make_train_step,
    repeat,
)
from tests.experiments.small_runs import (
    CONVOLUTIONS,
    ROOT,
    Line,
    arguments,
    assert_same_run,
    config,
    copy_of,
    line_data,
    line_folder,
    quiet,
    saved,
    train_line,
)

FILES = {
    "checkpoints",
    "config.json",
    "learning_curve.png",
    "metrics.jsonl",
    "provenance.json",
    "result.json",
    "timing.jsonl",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted."""
    prepared = prepare(config(tmp_path_factory.mktemp("uninterrupted")))
    train(prepared, fresh=False, console=quiet())
    return prepared.run.folder


def test_run_leaves_exactly_its_files(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    assert (finished / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    kept = {int(path.name) for path in (finished / "checkpoints").glob("[0-9]*")}
    assert kept == {18, 27, 36}


def test_metrics_hold_what_happened_and_no_clock(finished):
    records = read_records(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == [4, 9, 13, 18, 22, 27, 31, 36]
    assert all(
        list(record)
        == [
            "step",
            "epoch",
            "learning_rate",
            "train_loss",
            "train_accuracy",
            "validation_loss",
            "validation_accuracy",
        ]
        for record in records
    )
    assert records[-1]["epoch"] == 4.0
    rates = [record["learning_rate"] for record in records]
    # The update of step n has the count n - 1.
    start = optimizers.DEFAULT_LEARNING_RATES["adamsrt"]
    decay = optax.cosine_decay_schedule(start, 36)
    expected = [float(decay(record["step"] - 1)) for record in records]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    validated = [record["validation_loss"] is not None for record in records]
    assert validated == [False, True] * 4
    assert records[-1]["train_loss"] < records[0]["train_loss"]


def test_configuration_rebuilds_the_optimizer(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored["optimizer"]["channel_axes"] == CONVOLUTIONS
    assert stored["optimizer"]["learning_rate"]["decay_steps"] == 36
    assert stored["data"]["train"] == 1257
    assert completed(stored["optimizer"], never) == stored["optimizer"]


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    """The settings of `make train`, but for the size of the network."""
    return prepare(TrainConfig(model="resnet8", runs_dir=tmp_path_factory.mktemp("d")))


@pytest.mark.slow("looks for the axes")
def test_default_is_adamsrt_on_the_channels_of_every_convolution(by_default):
    optimizer, params = by_default.run.config["optimizer"], by_default.state.params
    assert optimizer["name"] == "adamsrt"
    axes = optimizer["channel_axes"]
    found = [path for rule in axes for path in normopt.leaf_paths(params, rule)]
    (convolutions,) = (normopt.leaf_paths(params, rule) for rule in CONVOLUTIONS)
    assert sorted(found) == sorted(convolutions)
    assert len(convolutions) == 7
    assert all([axis % 4 for axis in own] == [3] for own in axes.values())


@pytest.mark.slow("looks for the axes")
def test_axes_that_are_found_again_are_the_same(by_default):
    again = prepare(TrainConfig(model="resnet8", runs_dir=by_default.run.folder.parent))
    assert again.run.folder == by_default.run.folder


def test_table_of_the_parameters_comes_before_training(tmp_path, finished, capsys):
    copy_of(finished, tmp_path, steps=36)
    main(arguments(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    (header,) = [i for i, line in enumerate(lines) if line.startswith("path ")]
    (training,) = [i for i, line in enumerate(lines) if line.startswith("resuming ")]
    assert header < training
    leaves = {line.split()[0]: line for line in lines[header + 1 : training]}
    assert "16 of 9" in leaves["stem/conv/kernel"]
    assert " None " in leaves["head/kernel"]


def never():
    raise AssertionError("axes were looked for")


def completed(given, find_axes, learning_rate=None):
    text = given if isinstance(given, str) else json.dumps(given)
    return optimizers.complete(optimizers.read(text, learning_rate, 36), find_axes)


FOUND = {"^a$": [-1]}


@pytest.mark.parametrize(
    "given",
    [
        {"name": "adamsrt"},
        {"name": "adamg", "learning_rate": 0.1},
        {"name": "normalized", "inner": {"name": "sgdmrt"}},
    ],
)
def test_axes_that_nobody_named_are_found(given):
    complete = completed(given, lambda: FOUND)
    assert complete.get("inner", complete)["channel_axes"] == FOUND
    assert complete["name"] != "normalized" or complete["channel_axes"] == []


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        ({"name": "adamsrt", "channel_axes": None}, None),
        ({"name": "adamsrt", "channel_axes": {"kernel$": [-1]}}, {"kernel$": [-1]}),
        # Axes that are no more than a default have a meaning of their own.
        ({"name": "normalized"}, []),
        ({"name": "clipped", "max_norm": 1.0}, []),
        ({"name": "adamp"}, [-1]),
        ({"name": "clipped", "max_norm": 1.0, "inner": {"name": "rmsprop"}}, []),
    ],
)
def test_axes_that_are_named_or_have_a_default_stay(given, axes):
    complete = completed(given, never)
    assert complete["channel_axes"] == axes


def test_an_optimizer_without_blocks_looks_for_none():
    assert "channel_axes" not in completed("adam", never)


PARAMS = {"a": np.arange(12.0, dtype="f").reshape(4, 3) % 5, "bias": np.ones(3, "f")}
NEEDED = {"clipped": {"max_norm": 1.0}, "scion": {"norms": {"a": "spectral"}}}


@pytest.mark.slow("takes a step of every optimizer")
@pytest.mark.parametrize("name", normopt.names())
def test_every_optimizer_trains_by_its_name(name):
    complete = completed({"name": name, **NEEDED.get(name, {})}, lambda: FOUND, 0.5)
    assert optimizers.schedule_of(complete)(0) == pytest.approx(0.5)
    optimizer, table = normopt.make(**complete), normopt.describe(PARAMS, complete)
    gradients = jax.tree.map(lambda leaf: leaf**2 - 1.5, PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    # Also what is no matrix, or has no blocks.
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(updates)) and "bias" in table


@pytest.mark.parametrize(
    ("name", "rate"),
    [*optimizers.DEFAULT_LEARNING_RATES.items(), ("sgd", optimizers.OTHER_RATE)],
)
def test_learning_rate_defaults_to_the_optimizers_own(name, rate):
    complete = completed(name, lambda: FOUND)
    assert optimizers.schedule_of(complete)(0) == pytest.approx(rate)
    given = completed(name, lambda: FOUND, 0.5)
    assert optimizers.schedule_of(given)(0) == pytest.approx(0.5)


def test_links_get_a_rate_and_axes_where_they_have_none():
    links = [{"name": name} for name in ("scale_by_block_adam", "add_decay")]
    links.append({"name": "scale_by_learning_rate"})
    complete = completed({"name": "chain", "links": links}, lambda: FOUND, 0.5)
    adam, decay, rate = complete["links"]
    assert adam["channel_axes"] == FOUND and "channel_axes" not in decay
    assert rate["learning_rate"]["init_value"] == 0.5
    assert completed("muon", never, 0.5)["rest"]["learning_rate"]["init_value"] == 0.5
    # What sets the length of steps has a rate beside that of what it wraps.
    inner = {"name": "adam", "learning_rate": 0.1}
    complete = completed({"name": "hyperball", "inner": inner}, never, 0.5)
    assert complete["inner"]["learning_rate"] == 0.1
    assert optimizers.schedule_of(complete)(0) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["cosine_restarts", "WarmRestarts"])
def test_recorded_rate_is_the_one_in_force(kind):
    restarts = {"name": kind, "cycle_steps": 5, "eta_max": 2.0}
    given = {"name": "adamw", "learning_rate": 0.1, "schedule": restarts}
    rate = optimizers.schedule_of(completed(given, never))
    eta = normopt.cosine_restarts(5, eta_max=2.0)
    found = [float(rate(count)) for count in range(7)]
    expected = [0.1 * float(eta(count)) for count in range(7)]
    assert found == pytest.approx(expected) and found[0] == pytest.approx(0.2)


def test_resuming_cuts_later_and_broken_records(tmp_path, finished, capsys):
    folder = copy_of(finished, tmp_path, steps=27)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 37, "ep')
    prepared = prepare(config(tmp_path))
    assert prepared.run.folder == folder
    train(prepared, fresh=False, console=Console())
    assert "resuming after step 27 of" in capsys.readouterr().out
    assert_same_run(folder, finished)


def test_truncated_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path, finished, capsys
):
    folder = copy_of(finished, tmp_path, steps=27)
    newest = [p for p in (folder / "checkpoints" / "27").rglob("*") if p.is_file()]
    for path in newest:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prepared = prepare(config(tmp_path))
    with pytest.warns(UserWarning, match="of step 27 cannot be read"):
        train(prepared, fresh=False, console=Console())
    assert "resuming after step 18 of" in capsys.readouterr().out
    assert_same_run(folder, finished)


def test_no_readable_checkpoint_is_an_error_that_deletes_nothing(tmp_path, finished):
    folder = copy_of(finished, tmp_path, steps=27)
    saved = sorted((folder / "checkpoints").iterdir())
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="no checkpoint in .* --fresh trains again"):
        train(prepare(config(tmp_path)), fresh=False, console=quiet())
    assert sorted((folder / "checkpoints").iterdir()) == saved


@pytest.mark.slow("another run that goes on")
def test_killed_between_the_last_checkpoint_and_the_result(tmp_path, finished, capsys):
    folder = copy_of(finished, tmp_path, steps=36)
    train(prepare(config(tmp_path)), fresh=False, console=Console())
    assert "resuming after step 36 of" in capsys.readouterr().out
    assert_same_run(folder, finished)


@pytest.mark.slow("a second real run")
def test_finished_run_prints_its_result_and_fresh_trains_again(
    finished, capsys, tmp_path
):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    stored = json.loads((folder / "result.json").read_text())
    # A result that training cannot give shows that nothing was trained.
    write_json(folder / "result.json", {**stored, "test_correct": -1})
    main(arguments(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert "--fresh trains again" in lines[-2]
    assert lines[-1].startswith("test accuracy ") and "(-1 of 360)" in lines[-1]

    (folder / "left over").touch()
    main([*arguments(tmp_path), "--fresh"])
    assert not (folder / "left over").exists()
    assert_same_run(folder, finished)


@pytest.mark.slow("a second real run")
def test_a_smoke_run_is_small_and_needs_no_files(tmp_path, capsys):
    large = ["--dataset", "mnist", "--model", "resnet18", "--epochs", "100"]
    small = ["--smoke", "--optimizer", "adamw", "--runs-dir", str(tmp_path)]
    main([*large, *small])
    (folder,) = tmp_path.iterdir()
    settings = json.loads((folder / "config.json").read_text())
    assert folder.name.startswith("digits-resnet8-adamw-") and settings["epochs"] == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy ")


BAD_ARGUMENTS = [
    (["--epochs", "0"], "`epochs` must be >= 1, got 0"),
    (["--epochs", "0", "--smoke"], "`epochs` must be >= 1, got 0"),
    (["--batch-size", "1258"], "at most the 1257 training images"),
    (["--optimizer", "nonsense"], "unknown optimizer"),
    (["--optimizer", '{"name": '], "no valid JSON"),
    (["--optimizer", "[1]"], "unknown optimizer"),
    (["--optimizer", '{"norm": "l2"}'], "must be an object such as"),
    (["--optimizer", "missing.json"], "missing.json"),
    (["--optimizer", '{"name": "normalized", "norm": "l7"}'], "l7"),
    (
        ["--optimizer", '{"name": "normalized", "channel_axes": {"kernle$": [-1]}}'],
        "kernle",
    ),
    (["--optimizer", '{"name": "sgd", "learning_rate": null}'], "got null"),
    (["--optimizer", "scale_by_adam"], "scale_by_adam has no learning rate"),
    (
        ["--optimizer", '{"name": "chain", "links": [{"name": "adam", "beta1": 0}]}'],
        "did you mean `b1`",
    ),
    (["--optimizer", '{"name": "normalized", "inner": 3}'], "got 3"),
    (["--optimizer", '{"name": "clipped", "max_norm": Infinity}'], "must be finite"),
    (
        [
            "--optimizer",
            '{"name": "sgd", "learning_rate": 0.1}',
            "--learning-rate",
            "1",
        ],
        "give one of the two",
    ),
    # That of what it wraps has no effect.
    (
        [
            *("--optimizer", '{"name": "hyperball", "learning_rate": 0.01}'),
            *("--learning-rate", "1"),
        ],
        "give one of the two",
    ),
    (["--dataset", "mnist"], "--data-dir"),
    (["--dataset", "svhn", "--data-dir", "nowhere"], "missing train_32x32.mat"),
    (["--data-dir", "somewhere"], "comes with scikit-learn"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ARGUMENTS)
def test_bad_input_leaves_nothing_in_runs(tmp_path, bad, message):
    with pytest.raises(SystemExit, match="error: ") as error:
        main(["--runs-dir", str(tmp_path / "runs"), "--model", "resnet8", *bad])
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_fresh_with_bad_input_removes_nothing(tmp_path, finished):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit):
        main([*arguments(tmp_path), "--fresh", "--data-dir", "somewhere"])
    assert sorted(folder.rglob("*")) == before


# BatchNorm hides a rate of 1e27 from the loss, but not from the check before a save; a
# second factor of 1e30 makes the rate infinite.
@pytest.mark.slow("real runs; `test_skipping` has the same of a network of one layer")
@pytest.mark.parametrize(
    ("scales", "found"),
    [
        ({"14": 1e30, "15": 1e30}, "the loss of step 17 is not finite"),
        ({"11": 1e30}, "a weight, statistic or moment after step 18 is not finite"),
        (
            {"11": 1e30, "12": 1e30},
            "the learning rate recorded at step 13 is not finite",
        ),
    ],
)
def test_divergence_names_step_optimizer_and_last_good_checkpoint(
    tmp_path, scales, found
):
    # Sound for the first epoch of nine steps, then far too long a step.
    explode = {
        "name": "piecewise_constant_schedule",
        "init_value": 1e-3,
        "boundaries_and_scales": scales,
    }
    optimizer = json.dumps({"name": "sgd", "learning_rate": explode})
    diverging = config(tmp_path, optimizer=optimizer)
    prepared = prepare(diverging)
    with pytest.raises(TrainingDiverged) as error:
        train(prepared, fresh=False, console=quiet())
    message = str(error.value)
    assert found in message
    assert "optimizer sgd" in message
    assert "last good checkpoint is that of step 9" in message
    assert not prepared.run.is_finished()
    steps = [r["step"] for r in read_records(prepared.run.metrics_file)]
    assert steps in ([4, 9], [4, 9, 13])
    with Checkpoints(prepared.run.checkpoints_folder) as checkpoints:
        restored = checkpoints.restore(prepare(diverging).state)
    assert int(restored.step) == 9
    leaves = jax.tree.leaves(restored)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


def line_run(scan, counts=(7,)):
    optimizer = optax.sgd(0.1)
    step = make_train_step(Line(), optimizer, Augmentation(padding=1), batch_size=4)
    run = repeat(step, scan=scan)
    state = initial_state(jnp.zeros((4, 3)), jnp.zeros((), jnp.int32), optimizer)
    data, ticks = on_device(line_data(30)), []
    carry = (state, Sums.zeros())
    order = jnp.arange(30)[::-1]
    for count in counts:
        carry = run(carry, count, jax.random.key(0), order, data, tick=ticks.append)
    return carry, ticks


def test_scanned_stretch_equals_single_steps():
    (state, sums), ticks = line_run(scan=False)
    (scanned, scanned_sums), scanned_ticks = line_run(scan=True)
    assert (ticks, scanned_ticks) == ([1] * 7, [7])
    assert int(scanned.step) == int(scanned.model_state) == 7
    assert int(scanned_sums.images) == 28
    # Compiled apart, the two may round differently.
    np.testing.assert_allclose(state.params, scanned.params, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sums.loss, scanned_sums.loss, rtol=1e-6)


def test_cut_stretches_equal_a_whole_one():
    (whole, sums), _ = line_run(scan=True)
    (cut, cut_sums), _ = line_run(scan=True, counts=(3, 4))
    np.testing.assert_array_equal(whole.params, cut.params)
    np.testing.assert_allclose(sums.loss, cut_sums.loss, rtol=1e-6)


def test_moment_that_is_not_finite_is_not_saved(tmp_path):
    """A gradient of 1e25 is finite, and so are loss and weights after it."""
    too_large = optax.masked(optax.scale(1e25), lambda params: True)
    once = optax.conditionally_transform(too_large, lambda step: step == 12)
    optimizer = optax.chain(once, optax.adam(0.1))
    with pytest.raises(TrainingDiverged, match="moment after step 18 is not finite"):
        train_line(tmp_path, optimizer=optimizer)
    assert saved(line_folder(tmp_path)) == {9}


class Counts(Line):
    """A network whose state counts how often it has seen each image."""

    def train(self, params, model_state, images):
        logits = self.evaluate(params, model_state, images)
        return logits, model_state.at[images[:, 0, 0, 0].astype(int)].add(1)


@pytest.mark.parametrize("scan", [False, True])
def test_an_epoch_shows_every_image_once(scan):
    optimizer = optax.sgd(0.1)
    step = make_train_step(Counts(), optimizer, Augmentation(), batch_size=4)
    split = line_data(20)
    split.images[:, 0, 0, 0] = np.arange(20)
    state = initial_state(jnp.zeros((4, 3)), jnp.zeros(20, jnp.int32), optimizer)
    order = jax.random.permutation(jax.random.key(2), 20)
    arguments = (jax.random.key(0), order, on_device(split))
    run = repeat(step, scan=scan)
    # The first epoch in two stretches, of which the second begins in its middle.
    carry = run((state, Sums.zeros()), 2, *arguments)
    assert np.flatnonzero(carry[0].model_state).tolist() == sorted(order[:8].tolist())
    carry = run(carry, 3, *arguments)
    assert carry[0].model_state.tolist() == [1] * 20
    carry = run(carry, 5, *arguments)
    assert carry[0].model_state.tolist() == [2] * 20


OTHER_SIZES = pytest.mark.slow("compiles for each size")


@pytest.mark.parametrize(
    "n", [501, *(pytest.param(n, marks=OTHER_SIZES) for n in (1, 499, 500, 1203))]
)
@pytest.mark.parametrize("scan", [False, True])
def test_evaluation_counts_every_image_once(n, scan):
    split = line_data(n)
    params = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    logits = Line().evaluate(params, None, split.images)
    # The last image fills up the last batch: were it counted again, as a hit, it would
    # show.
    split.labels[-1] = logits[-1].argmax()
    run = repeat(make_evaluation_step(Line()), scan=scan)
    carry = (jnp.zeros((), jnp.int32), Sums.zeros())
    _, sums = run(carry, -(-n // 500), params, None, on_device(split))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    assert int(sums.images) == n
    assert int(sums.correct) == int(jnp.sum(logits.argmax(-1) == split.labels))
    # Two orders of summation of up to 1,203 float32 terms.
    np.testing.assert_allclose(sums.loss, losses.sum(), rtol=1e-5)


@pytest.mark.parametrize("log_every", [1, 4, 9, 100])
def test_intervals_tile_the_run_within_epochs(log_every):
    plan = Plan(images=95, batch_size=10, epochs=3, log_every=log_every)
    intervals = list(plan.intervals(0))
    covered = [step for start, stop in intervals for step in range(start, stop)]
    assert covered == list(range(27))
    lengths = {stop - start for start, stop in intervals}
    assert max(lengths) <= log_every and max(lengths) - min(lengths) <= 1
    assert {9, 18, 27} <= {stop for _, stop in intervals}
    assert list(plan.intervals(18)) == [i for i in intervals if i[0] >= 18]


@pytest.mark.slow("prepares two networks")
def test_seed_chooses_the_weights(tmp_path):
    kernels = [
        prepare(config(tmp_path, seed=seed)).state.params["head"]["kernel"]
        for seed in (0, 1)
    ]
    assert not np.array_equal(*kernels)


def test_records_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"st')
    assert read_records(path) == [{"step": 1}]


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(OSError, match="metrics.jsonl is damaged: .*--fresh"):
        read_records(path)


def test_first_lines_name_jax_and_its_devices():
    line = devices.describe().splitlines()[0]
    assert jax.__version__ in line and jax.devices()[0].platform in line


@pytest.mark.parametrize(
    ("driver", "expected"), [("580.65.06", "cuda13"), ("550.54.15", "cuda12")]
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the GPU is in use")
def test_idle_gpu_gets_the_command_that_uses_it(
    tmp_path, monkeypatch, driver, expected
):
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho {driver}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert f"make train JAX={expected}" in devices.describe().splitlines()[-1]


def test_listing_has_every_experiment_with_its_header():
    listing = subprocess.run(
        [sys.executable, "-m", "experiments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120"},
    ).stdout
    assert "train" in listing and "Train a model on real data" in listing
    assert "step_time" in listing and "Time one optimizer step" in listing


def test_unknown_experiment_lists_the_known_ones():
    process = subprocess.run(
        [sys.executable, "-m", "experiments", "trian"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "unknown experiment 'trian'; known: " in process.stderr
    for known in ("novograd_2019.modes", "step_time", "train"):
        assert known in process.stderr.partition("known: ")[2]
