"""The table: a seed of a cell is that run alone, and rows say what is stored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from experiments import data
from experiments.__main__ import discover
from experiments.data.augment import Augmentation
from experiments.models import MODELS, resnet8
from experiments.papers.spherical_2020 import seed_groups
from experiments.papers.spherical_2020.epochs import RunDiverged
from experiments.papers.spherical_2020.seeds import (
    initial_states,
    repeat_over_seeds,
    train_seeds,
)
from experiments.papers.spherical_2020.table1 import in_words, main, table
from experiments.papers.spherical_2020.train import SphericalTrainConfig, prepare
from experiments.train import train
from experiments.training.images import on_device
from experiments.training.loop import order_of
from experiments.training.runs import Run, read_records
from experiments.training.steps import Sums, initial_state, make_train_step
from tests.experiments.small_runs import (
    Line,
    assert_same_run,
    copy_of,
    line_data,
    quiet,
)

SMOKE_LABEL = "cifar10-resnet20-adamsrt"


def prepared(tmp_path, seed):
    config = SphericalTrainConfig(
        smoke=True, seed=seed, runs_dir=tmp_path, optimizer="adamsrt"
    )
    return prepare(config)


@pytest.fixture(scope="module")
def cell(folder):
    """The folder of the only cell of a smoke run."""
    (found,) = (folder / "cells").iterdir()
    return found


@pytest.mark.slow("needs a real run")
def test_the_command_is_found_and_stores_one_cell(folder, stored, cell):
    assert "spherical_2020.table1" in discover()
    assert {path.name for path in folder.iterdir()} == {"table1.json", "cells"}
    (row,) = stored["cells"]
    assert (row["column"], row["optimizer"]) == ("cifar10/resnet20", "adamsrt")
    assert row["epochs"] == 3 and len(row["test_accuracy"]) == 2
    assert "seed" not in json.loads((cell / "config.json").read_text())


@pytest.mark.slow("needs a real run")
def test_a_seed_is_that_run_alone(stored, cell, tmp_path):
    (row,), seed = stored["cells"], 1
    own_run = prepared(tmp_path, seed)
    alone = train(own_run, fresh=False, console=quiet())
    (folder,) = tmp_path.iterdir()
    theirs = read_records(folder / "metrics.jsonl")
    ours = read_records(cell / "metrics.jsonl")
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    own = np.array([record["train_loss"] for record in ours])
    lone = np.array([record["train_loss"] for record in theirs])
    # On CPU it is the same program. Batched convolutions sum in another order, and a
    # run amplifies what that rounds.
    together = own_run.loop.job.scan
    np.testing.assert_allclose(own[:, seed], lone, rtol=3e-3 if together else 0)
    # The other seed is another run.
    assert np.abs(own[:, 1 - seed] / lone - 1).max() > 6e-3
    assert row["test_accuracy"][seed] == pytest.approx(alone["test_accuracy"], abs=0.01)
    assert row["tested_step"][seed] == alone["tested_step"]


def test_seeds_together_are_seeds_one_after_another():
    optimizer, seeds = optax.sgd(0.1), 3
    step = make_train_step(Line(), optimizer, Augmentation(padding=1), batch_size=4)
    states = jax.vmap(lambda params: initial_state(params, jnp.zeros(()), optimizer))(
        jax.random.normal(jax.random.key(0), (seeds, 4, 3))
    )
    sums = jax.vmap(lambda _: Sums.zeros())(jnp.arange(seeds))
    keys = jax.random.split(jax.random.key(1), seeds)
    orders = jax.vmap(order_of, (0, None, None))(keys, 0, 30)
    ends = []
    for scan in (True, False):
        run = repeat_over_seeds(step, scan=scan)
        carry = jax.tree.map(jnp.copy, (states, sums))
        ends.append(run(carry, 7, keys, orders, on_device(line_data(30))))
    assert ends[0][0].step.tolist() == [7] * seeds
    # Compiled apart, the two may round differently, which seven steps carry on.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        *ends,
    )
    # Each has its own weights, order and augmentation.
    assert len(set(np.asarray(ends[1][1].loss).tolist())) == seeds


@pytest.mark.slow("needs a real run")
def test_each_seed_is_tested_at_its_own_best_epoch(stored, cell):
    (row,) = stored["cells"]
    records = read_records(cell / "metrics.jsonl")
    accuracies = np.array([record["validation_accuracy"] for record in records])
    steps = np.array([record["step"] for record in records])
    assert row["tested_step"] == steps[accuracies.argmax(axis=0)].tolist()


@pytest.mark.slow("prepares networks for several cells")
def test_states_are_those_that_their_seeds_alone_begin_with(tmp_path):
    seeds = (1, 3)
    stacked = initial_states(prepared(tmp_path, 0), seeds)
    for place, seed in enumerate(seeds):
        jax.tree.map(
            lambda ours, theirs, at=place: np.testing.assert_array_equal(
                ours[at], theirs
            ),
            stacked,
            prepared(tmp_path, seed).state,
        )


@pytest.mark.slow("needs a real run")
def test_a_cell_is_prepared_once_for_all_its_seeds(folder, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.table1.prepare",
        lambda config, *rest, **options: (
            seeds.append(config.seed) or prepare(config, *rest, **options)
        ),
    )
    main(["--smoke", "--out", str(folder.parent)])
    assert seeds == [0]


@pytest.mark.slow("needs a real run")
def test_a_cell_says_what_it_was_trained_with(stored, cell):
    (row,) = stored["cells"]
    own = json.loads((cell / "config.json").read_text())
    assert row["config"] == {"dtype": "float32", "channel_axes": "paper", **own}
    assert row["config"]["seeds"] == [0, 1] and row["config"]["batch_size"] == 128
    assert row["config"]["optimizer"]["weight_decay"] == 7.8125e-06
    assert row["provenance"] == Run(cell.parent, SMOKE_LABEL, own).provenance()
    assert [set(one) for one in row["provenance"]] == [
        {"commit", "versions", "devices"}
    ]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command without training: a cell is as accurate as it is long."""

    def train(prepared, seeds, run, console):
        del console
        epochs = prepared.plan.epochs
        accuracies = [epochs / 1000] * len(seeds)
        return {
            "test_accuracy": accuracies,
            "tested_step": [epochs] * len(seeds),
            "epochs": epochs,
            "device": run.folder.name,
        }

    monkeypatch.setattr(seed_groups, "train_seeds", train)
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.table1.data.load",
        lambda name, folder, load=data.load: load("digits", folder),
    )
    # What a cell says does not depend on the depth that takes long to prepare.
    monkeypatch.setitem(MODELS, "resnet18", resnet8)

    def run(*arguments):
        main(["--out", str(tmp_path), "--seeds", "1", *arguments])
        return json.loads((tmp_path / "table1.json").read_text())["cells"]

    return run


@pytest.mark.slow("prepares networks for several cells")
def test_commands_after_each_other_keep_the_cells_of_each(command):
    both = ("--optimizers", "sgd", "adam")
    first = command("--columns", "cifar100/resnet18", *both, "--epochs", "4")
    second = command("--columns", "cifar10/resnet18", *both, "--epochs", "4")
    assert second[2:] == first and len(second) == 4
    # One cell again, and one that is new: in the order of the paper, none twice.
    again = ("--columns", "cifar10/resnet18", "--optimizers", "adamw", "sgd")
    third = command(*again, "--epochs", "8")
    assert [(c["column"], c["optimizer"], c["epochs"]) for c in third] == [
        ("cifar10/resnet18", "sgd", 8),
        ("cifar10/resnet18", "adam", 4),
        ("cifar10/resnet18", "adamw", 8),
        ("cifar100/resnet18", "sgd", 4),
        ("cifar100/resnet18", "adam", 4),
    ]
    assert third[0]["config"]["epochs"] == 8 and third[1:2] == second[1:2]


def test_options_that_the_paper_does_not_have_stand_in_the_cell(command):
    place = ("--columns", "cifar10/resnet18", "--optimizers", "sgd", "--epochs", "4")
    (cell,) = command(*place, "--dtype", "bfloat16", "--channel-axes", "auto")
    assert cell["config"]["dtype"] == "bfloat16"
    assert cell["config"]["channel_axes"] == "auto"


@pytest.mark.slow("needs a real run")
def test_resumed_cell_is_the_same(cell, tmp_path, capsys):
    folder = copy_of(cell, tmp_path, steps=9)
    config = json.loads((cell / "config.json").read_text())
    run = Run(tmp_path, folder.name.rpartition("-")[0], config)
    assert run.folder == folder
    train_seeds(prepared(tmp_path / "unused", 0), (0, 1), run, Console())
    assert "resuming after step 9 of" in capsys.readouterr().out
    assert_same_run(folder, cell)


@pytest.mark.slow("needs a real run")
def test_finished_cell_is_read(folder, monkeypatch, capsys):
    before = (folder / "table1.json").read_text()
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.seeds.train_epochs",
        lambda *args: pytest.fail("it was trained again"),
    )
    main(["--smoke", "--out", str(folder.parent)])
    assert (
        json.loads((folder / "table1.json").read_text())["cells"]
        == (json.loads(before)["cells"])
    )
    capsys.readouterr()
    main(["--smoke", "--redraw", "--out", str(folder.parent)])
    assert "cifar10/resnet20" in capsys.readouterr().out


FOUND = "the loss of step 7 of seed 1 is not finite"


@pytest.mark.slow("prepares networks for several cells")
def test_cell_that_diverges_ends_no_other_and_is_kept(command, monkeypatch, tmp_path):
    """One of two cells goes the real way, up to the epochs, which diverge."""
    accurate = seed_groups.train_seeds

    def train_one_of_two(prepared, seeds, run, console):
        train = train_seeds if "-sgd-" in run.folder.name else accurate
        return train(prepared, seeds, run, console)

    def ends():
        with pytest.raises(SystemExit, match="cifar10/resnet18 --optimizers sgd; with"):
            command(*place)
        return json.loads((tmp_path / "table1.json").read_text())

    def train_epochs(run, *arguments):
        run.open()
        raise RunDiverged(FOUND, 7, 1, "there is no checkpoint before it")

    place = ("--columns", "cifar10/resnet18", "--optimizers", "sgd", "adam")
    monkeypatch.setattr(seed_groups, "train_seeds", train_one_of_two)
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.seeds.train_epochs", train_epochs
    )
    stored = ends()
    assert [cell["optimizer"] for cell in stored["cells"]] == ["adam"]
    (cell,) = stored["diverged"]
    assert (cell["column"], cell["optimizer"]) == ("cifar10/resnet18", "sgd")
    assert cell["diverged"] == {"step": 7, "seed": 1, "words": FOUND}
    text = " ".join(printed(**stored).split())
    assert "sgd diverged 95.10 +- 0.04 - 405" in text
    assert f"cifar10/resnet18 sgd: {FOUND}" in text

    # It is not trained again, until that is asked for.
    monkeypatch.delattr("experiments.papers.spherical_2020.seeds.train_epochs")
    assert ends()["diverged"] == stored["diverged"]
    monkeypatch.setattr(seed_groups, "train_seeds", accurate)
    cells = command(*place, "--fresh")
    assert [cell["optimizer"] for cell in cells] == ["sgd", "adam"]
    assert not json.loads((tmp_path / "table1.json").read_text())["diverged"]
    assert not list((tmp_path / "cells").glob("*-sgd-*"))


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
    theirs = "75.28 +- 0.35".split()
    ours = "76.00 +- 1.00 (3)".split()
    assert rows[0] == ["cifar100/resnet18", "adamsrt", *ours, *theirs, "+0.72", "60"]
    lone = ["sgd", "70.00", "(1)", "77.08", "+-", "0.18", "-7.08", "60"]
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
    assert in_words([90.0, 91.0]) == "90.50 +- 0.71 (2)"


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
