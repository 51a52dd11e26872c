"""The smoke runs of both networks: their curves, and figures from what is stored."""

import json

import numpy as np
import pytest

from experiments.papers.block_normalized_2017 import cifar_cnn, curves, deep_mlp
from experiments.papers.block_normalized_2017.curve_figures import SPLITS
from experiments.papers.block_normalized_2017.methods import SMOKE

EPOCHS = 3

pytestmark = pytest.mark.slow("the smoke runs of both networks")


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small a network takes longer to compile than to train."""


@pytest.fixture(scope="module", params=[deep_mlp, cifar_cnn], ids=lambda m: m.NAME)
def module(request):
    return request.param


@pytest.fixture(scope="module")
def folder(module, smoke_folder):
    return smoke_folder(module.main)


def test_every_curve_is_stored_and_teaches(module, stored):
    assert stored["published"] == module.PUBLISHED._asdict()
    config = stored["config"]
    assert (config["data"], config["test_images"]) == ("digits", 360)
    assert "seed" not in config and list(stored["seeds"]) == ["0"]
    curves = stored["seeds"]["0"]["curves"]
    assert list(curves) == list(SMOKE)
    for found in curves.values():
        for split in ("train", "test"):
            accuracy = np.array(found[f"{split}_accuracy"])
            assert len(accuracy) == len(found[f"{split}_loss"]) == EPOCHS
            assert (accuracy >= 0).all() and (accuracy <= 1).all()
        assert found["train_loss"][-1] < found["train_loss"][0]


def test_the_curves_differ(stored):
    curves = stored["seeds"]["0"]["curves"].values()
    last = [found["train_loss"][-1] for found in curves]
    assert len(set(last)) == len(last)


def test_curves_and_provenance_are_those_of_the_runs(folder, stored):
    assert set(stored["provenance"]) == {"commit", "versions", "devices"}
    record = stored["seeds"]["0"]
    for method, run in record["runs"].items():
        result = json.loads((folder / run["folder"] / "result.json").read_text())
        last = record["curves"][method]["test_accuracy"][-1]
        assert last == pytest.approx(result["test_accuracy"], rel=1e-4)
        config = json.loads((folder / run["folder"] / "config.json").read_text())
        assert config["method"] == method
        provenance = folder / run["folder"] / "provenance.json"
        assert run["provenance"] == json.loads(provenance.read_text())


def test_a_finished_run_is_not_trained_again(module, folder, stored, monkeypatch):
    monkeypatch.delattr("experiments.training.loop.Loop.run")
    module.main(["--smoke", "--out", str(folder.parent)])
    again = json.loads((folder / f"{module.NAME}.json").read_text())
    assert again["seeds"] == stored["seeds"]


def test_each_seed_has_its_records_and_more_add_theirs(module, monkeypatch, tmp_path):
    trained = []

    def measure(config, task, seed, *_):
        trained.append(seed)
        curves = {f"{s}_{q}": [1.0] for s in SPLITS for q in ("loss", "accuracy")}
        return {"curves": dict.fromkeys(SMOKE, curves)}

    task = module.load(curves.CurvesOptions(smoke=True))
    monkeypatch.setattr(curves, "measure", measure)
    monkeypatch.setattr(module, "load", lambda _: task)
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    module.main(["--seeds", "2", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / f"{module.NAME}.json").read_text())
    assert list(stored["seeds"]) == ["0", "1"] and trained == [0, 1]


def test_folders_of_runs_are_those_of_a_seed(module, folder, stored):
    """Their names are of settings that do not change with what is stored of them."""
    run = folder / stored["seeds"]["0"]["runs"]["SGD"]["folder"]
    config = json.loads((run / "config.json").read_text())
    assert config["seed"] == 0 and config["images"]["test"] == 360
    assert "test_images" not in config
