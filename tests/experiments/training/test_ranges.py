"""Every number of every experiment has a range, and is refused outside of it."""

import dataclasses
import importlib
import json
import typing

import pytest
import tyro

from experiments.__main__ import discover
from experiments.benchmarks import invariance_time
from experiments.train import main
from experiments.training import ranges


class Read(Exception):
    """The settings that a command would have read."""


def numbers(config):
    """Names of the options of a configuration that are numbers, those within too."""
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from numbers(kind)
        elif {int, float} & {kind, *typing.get_args(kind)}:
            yield name


def every_number():
    """Each experiment with each of its numbers, from its own command line."""

    def read(config, **_):
        raise Read(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", read)
        for header in discover().values():
            module = importlib.import_module(header.module)
            try:
                module.main([])
            except Read as found:
                for option in numbers(found.args[0]):
                    yield module, option


NUMBERS = list(every_number())
WITHOUT_FOLDER = {invariance_time}
NEEDED = {"num_processes": ["--distributed"], "process_id": ["--distributed"]}


def refused(module, option, value, tmp_path):
    """What a command says to a value; it must have written nothing."""
    out = tmp_path / "absent"
    where = "--runs-dir" if module.__name__.endswith("train") else "--out"
    given = [f"--{option.replace('_', '-')}", str(value)]
    given += [] if module in WITHOUT_FOLDER else [where, str(out)]
    with pytest.raises(SystemExit) as error:
        module.main([*given, *NEEDED.get(option, [])])
    assert not out.exists()
    return str(error.value)


def test_the_options_are_found():
    found = {f"{module.__name__}-{option}" for module, option in NUMBERS}
    assert {
        "experiments.train-learning_rate",
        "experiments.benchmarks.step_time-rounds",
    } <= found
    assert len(found) > 30


# Any positive learning rate is one.
OUTSIDE = [(*number, -1) for number in NUMBERS]
OUTSIDE += [(*number, 2**33) for number in NUMBERS if number[1] != "learning_rate"]


@pytest.mark.parametrize(("module", "option", "value"), OUTSIDE)
def test_it_is_refused_with_its_name_and_value(module, option, value, tmp_path):
    said = refused(module, option, value, tmp_path)
    assert said.startswith("error: ") and "\n" not in said
    assert f"`{option}` must be " in said and f"got {value}" in said


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "inf", "-inf"])
def test_a_learning_rate_is_positive_and_finite(value, tmp_path):
    with pytest.raises(SystemExit, match="`learning_rate` must be positive and finite"):
        main(["--learning-rate", value, "--runs-dir", str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()


COSINE = {"name": "cosine_decay_schedule", "init_value": -0.1, "decay_steps": 9}
UPHILL = {"name": "linear_schedule", "init_value": 0.5, "end_value": -0.5}
UPHILL |= {"transition_steps": 4}


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"name": "sgd", "learning_rate": -1}, "-1"),
        ({"name": "sgd", "learning_rate": 0}, "must be positive and finite, got 0"),
        ({"name": "sgd", "learning_rate": COSINE}, "must be >= 0, got -0.1 at step 1"),
        ({"name": "sgd", "learning_rate": UPHILL}, "must be >= 0, got -0.25 at step 4"),
        ({"name": "sgd", "momentum": 1.0}, "`momentum` must be in [0, 1), got 1.0"),
        ({"name": "sgd", "momentum": float("nan")}, "`momentum` must be finite"),
        ({"name": "adam", "b2": float("inf")}, "`b2` must be finite, got inf"),
        ({"name": "adam", "eps": -1e-8}, "`eps` must be >= 0, got -1e-08"),
        ({"name": "lamb", "weight_decay": -0.1}, "`weight_decay` must be >= 0"),
        (
            {"name": "clipped", "max_norm": 1.0, "inner": {"name": "adam", "b1": -0.1}},
            "`b1` must be in [0, 1), got -0.1",
        ),
        ({"name": "adamw", "weight_decay": {"kernel$": -0.1}}, "`weight_decay` must"),
    ],
)
def test_numbers_of_an_optimizer_are_checked(optimizer, words, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(
            [
                *("--optimizer", json.dumps(optimizer)),
                *("--runs-dir", str(tmp_path / "absent")),
            ]
        )
    assert words in str(error.value)
    assert not (tmp_path / "absent").exists()


@dataclasses.dataclass
class Settings:
    seed: int = 0
    rounds: int | None = None


def test_the_ends_of_a_range_are_in_it():
    for settings in (Settings(), Settings(ranges.LARGEST_SEED, ranges.MOST)):
        ranges.check(settings, seed=0, rounds=1)
    with pytest.raises(ValueError, match="`seed` must be <= 4294967295"):
        ranges.check(Settings(seed=2**32), seed=0)
    with pytest.raises(ValueError, match="`rounds` must be >= 1, got 0"):
        ranges.check(Settings(rounds=0), rounds=1)
