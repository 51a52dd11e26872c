"""Of the seeds of a cell those that are there are read, and the others trained."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.papers.spherical_2020 import seed_groups
from experiments.papers.spherical_2020.seed_groups import SeedGroups
from experiments.training.runs import Run

CONFIG = {"epochs": 3}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains seeds in the real folders; a seed's number tells its accuracy.

    The groups that were trained, and not read, stand in `train.groups`.
    """
    asked = SimpleNamespace(device="a device", groups=[])

    def train_seeds(prepared, seeds, run, console):
        del prepared, console
        if not run.is_finished():
            asked.groups.append(list(seeds))
            run.open()
            run.finish(result(seeds, asked.device))
        return run.result()

    def train(seeds, config=CONFIG, label="cell", fresh=False):
        groups = SeedGroups(tmp_path, label, config)
        return groups.train(None, list(seeds), Console(), fresh=fresh)

    monkeypatch.setattr(seed_groups, "train_seeds", train_seeds)
    train.asked = asked
    return train


def result(seeds, device):
    if 13 in seeds:
        return {"diverged": {"seed": 13}, "epochs": 3, "device": device}
    return {
        "test_accuracy": [seed / 100 for seed in seeds],
        "tested_step": [10 * seed for seed in seeds],
        "epochs": 3,
        "device": device,
    }


def test_more_seeds_train_those_that_are_missing(train):
    train(range(2))
    train.asked.device = "another device"
    found = train(range(5))
    assert train.asked.groups == [[0, 1], [2, 3, 4]]
    assert found["test_accuracy"] == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert found["tested_step"] == [0, 10, 20, 30, 40]
    assert found["device"] == "a device; another device"
    # Both groups were trained by this program.
    assert len(found["provenance"]) == 1 and found["epochs"] == 3
    assert train(range(5)) == found and len(train.asked.groups) == 2


def test_numbers_stand_in_the_order_of_the_seeds_whatever_the_groups(train):
    train([3, 1]), train([0]), train([7, 2, 9])
    found = train(range(5))
    assert found["test_accuracy"] == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert train.asked.groups == [[3, 1], [0], [7, 2, 9], [4]]


def test_fewer_seeds_are_read(train):
    train(range(5))
    assert train([3, 1])["test_accuracy"] == [0.03, 0.01]
    assert train.asked.groups == [[0, 1, 2, 3, 4]]


def test_of_unfinished_groups_the_largest_that_is_wanted_goes_on(train, tmp_path):
    for seeds in ([0], [0, 1, 2], [0, 1, 2, 3, 4, 5]):
        Run(tmp_path, "cell", {**CONFIG, "seeds": seeds}).open()
    train(range(4))
    assert train.asked.groups == [[0, 1, 2], [3]]


def test_finished_seeds_are_read_before_others_go_on(train, tmp_path):
    train(range(2))
    Run(tmp_path, "cell", {**CONFIG, "seeds": [0, 1, 2]}).open()
    train(range(3))
    assert train.asked.groups == [[0, 1], [2]]


@pytest.mark.parametrize("other", [{"config": {"epochs": 4}}, {"label": "cell-2"}])
def test_seeds_of_other_runs_are_not_taken(train, other):
    train(range(2), **other)
    train(range(3))
    assert train.asked.groups == [[0, 1], [0, 1, 2]]


def test_fresh_trains_all_as_one_and_leaves_no_other_numbers(train, tmp_path):
    train([0, 1]), train(range(4)), train([8, 9])
    assert train.asked.groups == [[0, 1], [2, 3], [8, 9]]
    train(range(3), fresh=True)
    assert train.asked.groups[3:] == [[0, 1, 2]]
    # 3 went with 2, and nothing of 8 and 9 was wanted.
    assert len(list(tmp_path.iterdir())) == 2
    train(range(4))
    assert train.asked.groups[4:] == [[3]]


def test_fresh_that_is_stopped_at_once_leaves_nothing_old(train, monkeypatch):
    train(range(2)), train(range(3))

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(seed_groups, "train_seeds", stopped)
        train(range(3), fresh=True)
    train(range(3))
    assert train.asked.groups == [[0, 1], [2], [0, 1, 2]]


def test_a_seed_that_diverged_is_that_of_the_cell_until_trained_anew(train):
    train(range(2))
    seeds = [0, 1, 13]
    assert train(seeds)["diverged"] == {"seed": 13}
    assert train(seeds)["diverged"] == {"seed": 13}
    assert train.asked.groups == [[0, 1], [13]]
    # The others alone are as before, also where they were trained with it.
    assert train(range(2))["test_accuracy"] == [0.0, 0.01]
    train([4, 13])
    assert train([4])["test_accuracy"] == [0.04]
    assert train.asked.groups == [[0, 1], [13], [4]]
