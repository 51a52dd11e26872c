"""The best weights are those of the best validation, also after an interruption."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data
from experiments.train import prepare, train
from experiments.training.runs import read_records
from experiments.training.selection import chosen, keep_best, select
from experiments.training.steps import Sums, initial_state
from tests.experiments.small_runs import (
    assert_same_run,
    config,
    copy_of,
    quiet,
    restored,
)

# The second of four epochs; from then on the rate is so large that weights spoil.
BEST = 18


def spoiling(runs_dir, **changes):
    """A run whose rate of learning is far too large from the third epoch on."""
    rate = {
        "name": "piecewise_constant_schedule",
        "init_value": 0.1,
        "boundaries_and_scales": {str(BEST): 30.0},
    }
    optimizer = json.dumps({"name": "sgd", "learning_rate": rate, "momentum": 0.9})
    changes = {"optimizer": optimizer, "test_best": True, **changes}
    return prepare(config(runs_dir, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    prepared = spoiling(tmp_path_factory.mktemp("uninterrupted"))
    train(prepared, fresh=False, console=quiet())
    return prepared.run.folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow("needs a real run")
def test_the_best_on_validation_is_tested_and_named(finished):
    records = read_records(finished / "metrics.jsonl")
    known = [r for r in records if r["validation_accuracy"] is not None]
    by_step = {r["step"]: r["validation_accuracy"] for r in known}
    assert max(by_step, key=by_step.get) == BEST and by_step[36] < by_step[BEST]
    result = result_of(finished)
    assert result["tested"] == "the best on validation"
    assert result["tested_step"] == BEST and result["steps"] == 36
    assert result["validation_accuracy"] == by_step[BEST]
    assert json.loads((finished / "config.json").read_text())["test_best"] is True


@pytest.mark.slow("needs a real run")
def test_tested_weights_are_those_after_the_best_epoch(finished, tmp_path):
    prepared = spoiling(tmp_path)
    last = restored(finished, prepared.state)
    at_best = restored(copy_of(finished, tmp_path, steps=BEST), prepared.state)
    assert int(last.step) == 36 and int(at_best.step) == BEST
    best = (last.best.params, last.best.model_state)
    own = (at_best.params, at_best.model_state)
    jax.tree.map(np.testing.assert_array_equal, best, own)
    accuracy = prepared.loop.evaluate(last, prepared.data.test)["accuracy"]
    assert accuracy == result_of(finished)["test_accuracy"]
    spoiled = prepared.loop.evaluate(last._replace(best=None), prepared.data.test)
    assert spoiled["accuracy"] < accuracy


@pytest.mark.slow("needs a real run")
def test_resumed_run_tests_the_same_weights(finished, tmp_path):
    # The best weights are 9 steps old at this checkpoint: they come from it alone.
    folder = copy_of(finished, tmp_path, steps=27)
    train(spoiling(tmp_path), fresh=False, console=quiet())
    assert_same_run(folder, finished)


def test_by_default_the_last_weights_are_tested(tmp_path):
    prepared = spoiling(tmp_path, test_best=False)
    assert prepared.state.best is None and chosen(prepared.state) is prepared.state
    assert "test_best" not in prepared.run.config


def state_of(params, step=0):
    state = initial_state(jnp.asarray(params), jnp.zeros(()), optax.sgd(0.1))
    return state._replace(step=jnp.asarray(step, jnp.int32))


@pytest.mark.parametrize(
    ("kind", "losses", "correct"),
    [
        (data.Dataset, (1, 2, 3, 4, 5), (0, 3, 3, 5, 4)),
        # Of a text the bits count, however many bytes are foreseen.
        (data.TextDataset, (9, 6, 6, 4, 5), (5, 4, 3, 2, 1)),
    ],
)
def test_the_first_of_equally_good_weights_is_kept(kind, losses, correct):
    state, of = keep_best(state_of([0.0])), kind.__new__(kind)
    for step, numbers in enumerate(zip(losses, correct, strict=True), 1):
        state = state_of([float(step)], step)._replace(best=state.best)
        loss, right = (jnp.asarray(n, d) for n, d in zip(numbers, "fi", strict=True))
        state = state._replace(best=select(state, Sums(loss, right, jnp.array(9)), of))
        expected = {1: 1, 2: 2, 3: 2, 4: 4, 5: 4}[step]
        assert chosen(state).params.tolist() == [expected]
        assert int(chosen(state).step) == expected
    # The state itself goes on from its own weights.
    assert state.params.tolist() == [5.0] and int(state.step) == 5
