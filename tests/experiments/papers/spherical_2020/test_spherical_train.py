"""The command trains a cell of the table by the paper's protocol."""

import json

import numpy as np
import pytest

import normopt
from experiments.papers.spherical_2020 import protocol
from experiments.papers.spherical_2020.train import SphericalTrainConfig, main, prepare
from experiments.training.runs import read_records

reads_a_run = pytest.mark.slow("its run takes longer than all else")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    main(["--smoke", "--optimizer", "adamw", "--runs-dir", str(runs)])
    (folder,) = runs.iterdir()
    return folder


@reads_a_run
def test_run_is_that_of_the_protocol(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert finished.name.startswith("digits-resnet8-adamw-")
    assert stored["batch_size"] == 128 and stored["epochs"] == 3
    assert stored["test_best"] is True and "dtype" not in stored
    expected = protocol.optimizer("adamw", "cifar10", "resnet20", 27)
    assert stored["optimizer"] == normopt.config(**expected)


@reads_a_run
def test_rate_falls_at_a_third_five_and_seven_ninths(finished):
    records = read_records(finished / "metrics.jsonl")
    rates = {r["step"]: r["learning_rate"] for r in records}
    # Of the last update of each epoch: the falls are before updates 10, 16 and 22.
    assert list(rates) == [9, 18, 27]
    assert list(rates.values()) == pytest.approx([1e-3, 1e-5, 1e-6])


@reads_a_run
def test_result_says_which_weights_were_tested(finished):
    result = json.loads((finished / "result.json").read_text())
    records = read_records(finished / "metrics.jsonl")
    best = max(records, key=lambda record: record["validation_accuracy"])
    assert result["tested"] == "the best on validation"
    assert result["tested_step"] == best["step"]
    assert result["validation_accuracy"] == best["validation_accuracy"]


def config(tmp_path, **changes):
    return SphericalTrainConfig(smoke=True, runs_dir=tmp_path, **changes)


OTHERS = [name for name in protocol.OPTIMIZERS if name != "adamsrt"]
ANOTHER = pytest.mark.slow("prepares another network")


@pytest.mark.parametrize(
    "name", ["adamsrt", *(pytest.param(name, marks=ANOTHER) for name in OTHERS)]
)
def test_folder_has_the_name_that_was_asked_for(tmp_path, name):
    run = prepare(config(tmp_path, optimizer=name, model="vgg16")).run
    assert run.folder.name.startswith(f"digits-vgg6-{name}-")
    assert run.config["optimizer"]["weight_decay"] > 0


@pytest.mark.slow("looks for the axes")
def test_axes_that_are_found_are_those_of_the_rule(tmp_path):
    said = []
    auto = prepare(config(tmp_path, channel_axes="auto"), say=said.append)
    assert said == ["looking for the weights whose length the loss ignores"]
    found = auto.run.config["optimizer"]["channel_axes"]
    params = auto.state.params
    (rule,) = protocol.CHANNEL_AXES
    paths = sorted(p for pattern in found for p in normopt.leaf_paths(params, pattern))
    assert paths == sorted(normopt.leaf_paths(params, rule)) and len(paths) == 7
    assert all(np.mod(axes, 4).tolist() == [3] for axes in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "svhn"], "no adamsrt for resnet20 on svhn"),
        (["--model", "vgg16"], "--data-dir"),
        (["--smoke", "--log-every", "0"], "`log_every` must be >= 1"),
        (["--smoke", "--epochs", "0"], "`epochs` must be >= 1, got 0"),
        (["--smoke", "--seed", "-1"], "`seed` must be >= 0, got -1"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match="error: ") as error:
        main(["--runs-dir", str(tmp_path / "runs"), *arguments])
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()
