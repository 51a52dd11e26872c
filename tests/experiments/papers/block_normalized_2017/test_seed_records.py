"""The file to which the runs of each seed are added, and which is not lost."""

import json

import pytest

from experiments.papers.block_normalized_2017.seed_records import add, curves_of, kept

SETTINGS = {"images": 60_000, "epochs_per_rate": 10, "norm": "max"}
PUBLISHED = {"source": "printed", "test_accuracy": {"Adam": 0.9}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.json"


def store(path, seed, record, *, fresh=False, **changes):
    settings = {**SETTINGS, **changes}
    add(path, settings, PUBLISHED, seed, {"curves": record}, fresh=fresh)
    return json.loads(path.read_text())


def test_a_seed_is_added_to_the_others_or_takes_its_own_place(path):
    assert kept(path, SETTINGS, fresh=False) == {}
    store(path, 10, "first")
    store(path, 2, "second")
    stored = store(path, 10, "again", fresh=True)
    assert stored["config"] == SETTINGS and stored["published"] == PUBLISHED
    assert set(stored["provenance"]) == {"commit", "versions", "devices"}
    assert list(stored["seeds"].items()) == [
        ("2", {"curves": "second"}),
        ("10", {"curves": "again"}),
    ]


def test_runs_of_other_settings_are_kept_unless_they_are_to_be_replaced(path):
    before = store(path, 0, "whole")
    message = r"holds runs with --images 60000 \(here 5000\), --epochs 10 \(here 3\): "
    with pytest.raises(
        ValueError, match=message + "ask for the same, .*--out.*--fresh"
    ):
        store(path, 1, "part", images=5000, epochs_per_rate=3)
    assert json.loads(path.read_text()) == before
    after = store(path, 1, "part", images=5000, fresh=True)
    assert after["seeds"] == {"1": {"curves": "part"}}
    assert after["config"]["images"] == 5000


def test_a_setting_that_one_of_them_lacks_is_a_difference(path):
    store(path, 0, "before", dropout=0.5)
    with pytest.raises(ValueError, match=r"dropout 0.5 \(here None\): "):
        kept(path, SETTINGS, fresh=False)


def test_curves_are_those_of_the_records():
    record = {"train_loss": 0.1234567, "train_accuracy": 0.5}
    record |= {"validation_loss": 2.0, "validation_accuracy": 0.25}
    found = curves_of([record, record | {"train_loss": 1.0}])
    assert found["train_loss"] == [0.12346, 1.0]
    assert found["test_accuracy"] == [0.25, 0.25]
    assert json.loads(json.dumps(found)) == found
