"""A smoke run of every experiment that draws: what it leaves, and how it is redrawn."""

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from experiments.__main__ import discover
from experiments.papers.block_normalized_2017 import convex, methods
from experiments.papers.decoupled_decay_2019 import (
    anytime,
    decay_grid,
    pretrained_layers,
)
from experiments.papers.novograd_2019 import large_batches, modes, robustness
from experiments.papers.rotational_2024.arms import ARMS
from experiments.papers.spherical_2020 import sphere
from experiments.papers.transformers import (
    best_rates,
    headline,
    language_model,
    lengths_and_angles,
    racing,
    toys,
)
from tests.experiments.drawings import figure_of


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for most of so small runs take longer to compile than to train."""


@dataclasses.dataclass(frozen=True)
class Smoke:
    """What is known of a smoke run, and a change of its records that a figure shows."""

    name: str
    measures: str
    """The function of `experiments.papers` without which nothing is measured."""
    change: Callable[[dict[str, Any]], None]
    said: tuple[str, ...] = ()
    """How lines of the table begin."""
    parts: tuple[str, ...] = ()
    """The names of what is kept apart, so that the same command goes on."""
    figures: tuple[str, ...] = ("",)
    """What follows the records' name; the change shows in the last one alone."""
    others: tuple[str, ...] = ()
    """Files of another experiment that it needs."""
    package: str = "jax"
    """What has to be installed, of some extra."""

    @property
    def records(self):
        return self.name.partition(".")[2]


def put(value, *keys):
    """Changes what lies at these keys of the records."""

    def change(stored):
        *outer, last = keys
        for key in outer:
            stored = stored[key]
        stored[last] = value

    return change


def double_an_angle(stored):
    for records in stored["runs"].values():
        angles = records[0]["angle"]
        layer = next(iter(angles))
        angles[layer] *= 2


def of_network(name):
    """One whose training figure does not show what is changed in the test's loss."""
    return Smoke(
        f"block_normalized_2017.{name}",
        "block_normalized_2017.curves.measure",
        put(9.0, "seeds", "0", "curves", "SGD", "test_loss", 1),
        said=methods.SMOKE,
        figures=("_train", "_test"),
    )


SMOKES = [
    Smoke(
        "block_normalized_2017.convex",
        "block_normalized_2017.convex.descend",
        put(1e-3, "gaps", "Adam", 2, 5),
        parts=tuple(convex.METHODS),
    ),
    Smoke(
        "block_normalized_2017.learning_rate_sensitivity",
        "block_normalized_2017.learning_rate_sensitivity.folder_of",
        put([[40, 30, 20, 10, 0, 0]], "methods", "Adam", "arrived_after"),
        others=("convex.json", "convex.png"),
    ),
    of_network("deep_mlp"),
    Smoke(
        "block_normalized_2017.deep_mlp_tuned",
        "block_normalized_2017.deep_mlp_tuned.ends_of",
        put(9.0, "arms", "SGD", "fresh_losses", 0, 1),
        said=methods.SMOKE,
        parts=methods.SMOKE,
    ),
    of_network("cifar_cnn"),
    Smoke(
        "block_normalized_2017.recurrent",
        "block_normalized_2017.recurrent.all_ends",
        put(0.01, "curves", "SGD", "losses", 0, 1),
        said=methods.SMOKE,
        parts=methods.SMOKE,
    ),
    Smoke(
        "decoupled_decay_2019.anytime",
        "decoupled_decay_2019.anytime.grid_wrong",
        put("900 1 900", "arms", "SGDWR", "wrong", 1),
        said=anytime.SMOKE,
        parts=anytime.SMOKE,
    ),
    Smoke(
        "decoupled_decay_2019.decay_grid",
        "decoupled_decay_2019.decay_grid.grid_wrong",
        put("900 0 900", "grids", "AdamW", "wrong_judging", 0, 1),
        said=tuple(decay_grid.METHODS),
        parts=tuple(decay_grid.METHODS),
    ),
    Smoke(
        "decoupled_decay_2019.pretrained_layers",
        "decoupled_decay_2019.pretrained_layers.errors_of",
        put(0.5, "lengths", "8 epochs", "errors", 0, 2),
        said=("frozen", "0.3", "1"),
        parts=tuple(map(pretrained_layers.of_length, pretrained_layers.LENGTHS)),
    ),
    Smoke(
        "decoupled_decay_2019.warm_restarts",
        "decoupled_decay_2019.warm_restarts.train",
        put(0.0, "by_hand", 30, "eta"),
        parts=("automatic", "by_hand"),
    ),
    Smoke(
        "novograd_2019.large_batches",
        "novograd_2019.large_batches.errors_at",
        put(0.01, "found", "AdamW, 400 images", "errors", 0),
        parts=tuple(
            large_batches.part(name, batch)
            for name in large_batches.SMOKE
            for batch in (100, 400)
        ),
    ),
    Smoke(
        "novograd_2019.modes",
        "novograd_2019.modes.all_errors",
        put(0.01, "curves", "AdamW", "errors", 0, 1),
        said=modes.SMOKE,
        parts=modes.SMOKE,
    ),
    Smoke(
        "novograd_2019.robustness",
        "novograd_2019.robustness.study",
        put(0.01, "optimizers", "NovoGrad, sum", "weights", 0, 1),
        said=robustness.SMOKE,
        parts=robustness.SMOKE,
    ),
    Smoke(
        "rotational_2024.equilibrium",
        "rotational_2024.equilibrium.measure_parts",
        put(0.5, "noise", "AdamW", "angle", 0, 1),
        said=tuple(ARMS),
        parts=("noise", "schedules", "AdamW"),
    ),
    Smoke(
        "spherical_2020.sphere",
        "spherical_2020.sphere.follow_all",
        put(0.5, "arms", "SGD", "adam", 0, 1),
        said=tuple(sphere.ARMS),
        parts=tuple(sphere.ARMS),
    ),
    Smoke(
        "spherical_2020.effective_learning_rate",
        "spherical_2020.effective_learning_rate.train_epochs",
        double_an_angle,
    ),
    Smoke(
        "transformers.language_model",
        "transformers.language_model.train_all",
        put(4.0, "sweep", "adamw", "ends", 0, 1),
        said=language_model.SMOKE,
        parts=language_model.SMOKE,
    ),
    Smoke(
        "transformers.best_rates",
        "transformers.language_model.train_all",
        put(4.0, "found", "hyperball, width 32", "ends", 0, 1),
        said=tuple(f"{form}, width 32" for form in best_rates.FORMS),
        parts=tuple(f"{form}, width 32" for form in best_rates.FORMS),
    ),
    Smoke(
        "transformers.headline",
        "transformers.headline.train",
        put(4.0, "runs", "adamw", "curve", 3),
        said=headline.SMOKE,
        parts=headline.SMOKE,
    ),
    Smoke(
        "transformers.lengths_and_angles",
        "transformers.lengths_and_angles.follow",
        put(0.5, "seeds", 0, "layers/0/attention/query/kernel", "angle", 1),
        said=tuple(lengths_and_angles.GROUPS),
        parts=("seed 0", "seed 1"),
    ),
    Smoke(
        "transformers.performance_profile",
        "transformers.racing.race",
        put("1 1 1 1 1 1", "problems", "AKIVA", "steps", "adam", 2),
        said=tuple(racing.OPTIMIZERS),
        parts=("AKIVA", "ALLINITU"),
        package="sif2jax",
    ),
    Smoke(
        "transformers.toy_problems",
        "transformers.toys._over",
        put(4.0, "layer", "adamw", "losses", 0, 1, 0),
        said=tuple(toys.OPTIMIZERS),
        parts=(
            *(f"layer, {name}" for name in toys.OPTIMIZERS),
            *(f"quotient, {name}" for name in toys.ON_THE_SPHERE),
            "decay",
        ),
    ),
]


# The cheapest of all; the others are slow.
AT_EACH_CHANGE = "block_normalized_2017.convex"


@pytest.mark.parametrize(
    "smoke",
    [
        pytest.param(
            smoke,
            id=smoke.name,
            marks=()
            if smoke.name == AT_EACH_CHANGE
            else pytest.mark.slow("another smoke run"),
        )
        for smoke in SMOKES
    ],
)
def test_it_leaves_its_files_and_is_redrawn_from_its_records(
    smoke, smoke_folder, tmp_path, monkeypatch, capsys
):
    assert smoke.name in discover()
    if importlib.util.find_spec(smoke.package) is None:
        pytest.skip(f"{smoke.package} is not installed, which its extra brings")
    main = importlib.import_module(discover()[smoke.name].module).main
    folder = shutil.copytree(smoke_folder(main), tmp_path / "smoke")
    records = folder / f"{smoke.records}.json"
    figures = [folder / f"{smoke.records}{end}.png" for end in smoke.figures]
    files = {path.name for path in (records, *figures)}
    assert {path.name for path in folder.glob("*.*")} == files | set(smoke.others)
    parts = {path.stem for path in folder.glob(f"{smoke.records}-*/*.json")}
    if smoke.parts:
        assert parts == {"config", "provenance", *smoke.parts}

    def redrawn():
        for figure in figures:
            figure.unlink()
        capsys.readouterr()
        main(["--redraw", "--smoke", "--out", str(tmp_path)])
        return [figure_of(figure) for figure in figures]

    drawn = [figure_of(figure) for figure in figures]
    monkeypatch.delattr(f"experiments.papers.{smoke.measures}")
    assert redrawn() == drawn
    # A table that is narrower than a plain terminal is cut nowhere.
    printed = capsys.readouterr().out
    assert "…" not in printed
    lines = [line.strip() for line in printed.splitlines()]
    for name in smoke.said:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    stored = json.loads(records.read_text())
    smoke.change(stored)
    records.write_text(json.dumps(stored))
    *same, changed = redrawn()
    assert same == drawn[:-1] and changed != drawn[-1]
