"""The table: a seed of a cell is that run alone, and rows say what is stored."""

import json

import pytest
from rich.console import Console

from experiments import data
from experiments.__main__ import discover
from experiments.models import MODELS, resnet8
from experiments.papers.spherical_2020 import table1, table1_figure
from experiments.papers.spherical_2020.cell_settings import in_words
from experiments.papers.spherical_2020.table1 import main, table
from experiments.papers.spherical_2020.train import SphericalTrainConfig, prepare
from experiments.report import figures
from experiments.train import train
from experiments.training.loop import TrainingDiverged
from tests.experiments.small_runs import assert_same_run, quiet


@pytest.mark.slow("needs a real run")
def test_a_seed_of_the_cell_is_that_run_alone(folder, stored, tmp_path):
    assert "spherical_2020.table1" in discover()
    assert {path.name for path in folder.iterdir()} == {
        "table1.json",
        "table1.png",
        "cells",
    }
    (row,) = stored["cells"]
    assert (row["column"], row["optimizer"]) == ("cifar10/resnet20", "adamsrt")
    assert row["epochs"] == 3 and row["config"]["seeds"] == [0, 1]
    config = SphericalTrainConfig(smoke=True, seed=1, runs_dir=tmp_path)
    prepared = prepare(config)
    alone = train(prepared, fresh=False, console=quiet())
    assert row["test_accuracy"][1] == alone["test_accuracy"]
    assert row["tested_step"][1] == alone["tested_step"]
    own = prepared.run.folder
    assert_same_run(own, folder / "cells" / own.name)
    config = json.loads((own / "config.json").read_text())
    left = {key: config[key] for key in config if key not in ("seed", "log_every")}
    chosen = {"dtype": "float32", "channel_axes": "paper", "seeds": [0, 1]}
    assert row["config"] == {**left, **chosen}
    assert [set(one) for one in row["provenance"]] == [
        {"commit", "versions", "devices"}
    ]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command without training: a run is as accurate as it is long."""

    def train(prepared, *, fresh, console):
        run, epochs = prepared.run, prepared.plan.epochs
        trained.append((run.config["optimizer"]["name"], run.config["seed"]))
        if run.config["seed"] in diverging:
            raise TrainingDiverged("the loss of step 7 is not finite")
        run.open()
        result = {"test_accuracy": epochs / 1000, "tested_step": 7, "steps": 9}
        run.finish(result)
        return result

    trained, diverging = [], set()
    monkeypatch.setattr(table1, "run_train", train)
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.table1.data.load",
        lambda name, folder, load=data.load: load("digits", folder),
    )
    # What a cell says does not depend on the depth that takes long to prepare.
    monkeypatch.setitem(MODELS, "resnet18", resnet8)

    def run(*arguments):
        trained.clear()
        main(["--out", str(tmp_path), *arguments])
        return json.loads((tmp_path / "table1.json").read_text())["cells"]

    run.trained, run.diverging = trained, diverging
    return run


PLACE = ("--columns", "cifar10/resnet18", "--epochs", "4")


@pytest.mark.slow("prepares networks for several cells")
def test_commands_after_each_other_keep_the_cells_of_each(command):
    both = ("--optimizers", "sgd", "adam", "--seeds", "1")
    first = command("--columns", "cifar100/resnet18", *both, "--epochs", "4")
    second = command(*PLACE, *both)
    assert second[2:] == first and len(second) == 4
    # One cell again, and one that is new: in the order of the paper, none twice.
    again = ("--columns", "cifar10/resnet18", "--optimizers", "adamw", "sgd")
    third = command(*again, "--epochs", "8", "--seeds", "1")
    assert [(c["column"], c["optimizer"], c["epochs"]) for c in third] == [
        ("cifar10/resnet18", "sgd", 8),
        ("cifar10/resnet18", "adam", 4),
        ("cifar10/resnet18", "adamw", 8),
        ("cifar100/resnet18", "sgd", 4),
        ("cifar100/resnet18", "adam", 4),
    ]
    assert third[0]["config"]["epochs"] == 8 and third[1:2] == second[1:2]


def test_more_seeds_train_those_that_are_missing(command):
    sgd = (*PLACE, "--optimizers", "sgd")
    command(*sgd, "--seeds", "1")
    assert command.trained == [("sgdmrt", 0)]
    (cell,) = command(*sgd, "--seeds", "2", "--fresh")
    assert command.trained == [("sgdmrt", 0), ("sgdmrt", 1)]
    (cell,) = command(*sgd, "--seeds", "3")
    assert command.trained == [("sgdmrt", 2)]
    assert cell["test_accuracy"] == [0.004] * 3 and cell["tested_step"] == [7] * 3
    (cell,) = command(*sgd, "--seeds", "2")
    assert command.trained == [] and cell["config"]["seeds"] == [0, 1]


def test_options_that_the_paper_does_not_have_stand_in_the_cell(command):
    options = ("--dtype", "bfloat16", "--channel-axes", "auto", "--seeds", "1")
    (cell,) = command(*PLACE, "--optimizers", "sgd", *options)
    assert cell["config"]["dtype"] == "bfloat16"
    assert cell["config"]["channel_axes"] == "auto"


@pytest.mark.slow("prepares networks for several seeds")
def test_cell_that_diverges_ends_no_other_and_is_kept(command, tmp_path):
    sgd = (*PLACE, "--seeds", "3", "--optimizers", "sgd")
    command.diverging.add(1)
    with pytest.raises(SystemExit, match="cifar10/resnet18 --optimizers sgd; with"):
        command(*sgd)
    stored = json.loads((tmp_path / "table1.json").read_text())
    assert not stored["cells"]
    (cell,) = stored["diverged"]
    words = "seed 1: the loss of step 7 is not finite"
    assert cell["diverged"] == {"seed": 1, "words": words}
    text = " ".join(printed(**stored).split())
    assert "sgd diverged 95.10 ± 0.04 - 4" in text
    assert f"cifar10/resnet18 sgd: {words}" in text
    command.diverging.clear()
    (cell,) = command(*sgd)
    assert command.trained == [("sgdmrt", 1), ("sgdmrt", 2)]
    assert not json.loads((tmp_path / "table1.json").read_text())["diverged"]


def printed(cells, diverged=(), **_):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table({"cells": cells, "diverged": list(diverged)}))
    return capture.get()


def a_cell(optimizer, *accuracies):
    return {
        "column": "cifar100/resnet18",
        "optimizer": optimizer,
        "images": 5120,
        "test_accuracy": list(accuracies),
        "epochs": 60,
        "device": "JAX on a device",
        "config": {"dataset": "cifar100", "model": "resnet18"},
    }


def test_row_is_ours_theirs_and_the_difference():
    text = printed([a_cell("adamsrt", 0.75, 0.76, 0.77), a_cell("sgd", 0.7)])
    # In the order of the paper.
    rows = [line.split() for line in text.splitlines() if "resnet18" in line][::-1]
    theirs = "75.28 ± 0.35".split()
    ours = "76.00 ± 1.00 (3)".split()
    assert rows[0] == ["cifar100/resnet18", "adamsrt", *ours, *theirs, "+0.72", "60"]
    lone = ["sgd", "70.00", "(1)", "77.08", "±", "0.18", "-7.08", "60"]
    assert rows[1] == ["cifar100/resnet18", *lone]
    assert "JAX on a device" in text and "405" in text and "adamg" not in text
    assert "training images: 5,120" in text
    assert "in the place of" not in text


@pytest.mark.slow("needs a real run")
def test_a_smoke_table_says_what_it_is_of(stored):
    text = " ".join(printed(**stored).split())
    assert "trained in the place of cifar10/resnet20: digits/resnet8" in text


def test_adamg_has_its_footnote():
    text = " ".join(printed([a_cell("adamg", 0.7)]).split())
    assert "adamg*" in text and "flag was inverted" in text


def test_a_single_run_has_no_deviation():
    assert in_words([90.0]) == "90.00 (1)"
    assert in_words([90.0, 91.0]) == "90.50 ± 0.71 (2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "`seeds` must be >= 1, got 0"),
        (["--smoke", "--epochs", "0"], "`epochs` must be >= 1, got 0"),
        (["--images", "127"], "`images` must be >= 128, got 127"),
        (["--redraw"], "--redraw needs"),
        (["--columns", "cifar10/vgg16"], "--data-dir"),
    ],
)
def test_bad_input_is_an_error_of_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match="error: ") as error:
        main(["--out", str(tmp_path / "out"), *arguments])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_records_that_cannot_be_read_are_an_error_of_one_line(tmp_path):
    (tmp_path / "table1.json").write_text("{}")
    with pytest.raises(SystemExit, match="error: what .* is not what is read today"):
        main(["--out", str(tmp_path), "--redraw"])


def test_a_figure_of_cells_that_all_diverged_says_so(tmp_path, monkeypatch):
    words = []
    monkeypatch.setattr(
        figures,
        "save",
        lambda figure, path: words.extend(figures.contents(figure)["words"]),
    )
    table1_figure.draw(tmp_path / "table1.png", {"cells": [], "diverged": [{}]})
    assert words == ["every cell diverged"]
