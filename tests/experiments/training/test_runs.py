"""A run's folder is named after all that its numbers depend on, and keeps its parts."""

import json

import pytest

from experiments.training.runs import Run


def name_of(tmp_path, config):
    return Run(tmp_path, "line", config).folder.name


def with_rules(rules):
    """An optimizer inside another one, whose rules stand two levels down."""
    inner = {"name": "adamw", "weight_decay": rules, "b1": 0.9}
    return {"optimizer": {"name": "clipped", "inner": inner, "max_norm": 1.0}}


def test_rules_in_another_order_are_another_run(tmp_path):
    """The first match wins: with the head first, its kernel does not decay."""
    rules = {"kernel$": 0.1, "head": 0}
    turned = dict(reversed(rules.items()))
    names = {name_of(tmp_path, with_rules(one)) for one in (rules, turned)}
    assert len(names) == 2
    assert name_of(tmp_path, with_rules(dict(rules))) in names


def test_options_in_another_order_are_the_same_run(tmp_path):
    config = {"seed": 0, "optimizer": {"name": "adamw", "b1": 0.9, "b2": 0.99}}
    turned = {"optimizer": {"b2": 0.99, "b1": 0.9, "name": "adamw"}, "seed": 0}
    assert name_of(tmp_path, config) == name_of(tmp_path, turned)


SCHEDULE = {"name": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 9}


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        ({}, "44136fa355"),
        (
            {"optimizer": {"name": "adamw", "weight_decay": {"kernel$": 0.1}}},
            "85fce28bb4",
        ),
        (
            {
                "seed": 0,
                "optimizer": {"name": "adamw", "learning_rate": SCHEDULE},
                "factors": {"b": 1, "a": 2},
            },
            "9b627deec2",
        ),
    ],
)
def test_folders_of_runs_that_are_under_way_keep_their_names(tmp_path, config, digest):
    assert name_of(tmp_path, config) == f"line-{digest}"


def test_a_part_is_measured_once(tmp_path):
    run, measured = Run(tmp_path, "line", {}), []
    run.open()

    def measure():
        measured.append(0.1 + 0.2)
        return {"sum": measured[-1]}

    assert run.part("a, b", measure) == run.part("a, b", measure) == {"sum": 0.1 + 0.2}
    assert len(measured) == 1
    assert json.loads((run.folder / "a, b.json").read_text()) == {"sum": 0.1 + 0.2}
