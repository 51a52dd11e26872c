"""What the language model's runs share, and what is read off them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normopt
from experiments.models.transformer import Transformer
from experiments.papers.transformers import best_rates, language_model
from experiments.papers.transformers.language_training import (
    INVARIANT,
    METHODS,
    OUTPUTS,
    POINTS,
    Ends,
    Runs,
    Task,
    grid,
    schedule,
)

NOTHING = jnp.zeros(1)


def task(**changes):
    sizes = {"width": 16, "context": 4, "batch": 1, "steps": 100}
    return Task(NOTHING, NOTHING, NOTHING, **{**sizes, **changes})


def test_a_grid_has_the_ways_to_begin_side_by_side():
    runs = grid([3, 4], [0.1], (1, 0))
    assert isinstance(runs, Runs)
    assert runs.seeds.tolist() == [3, 3, 4, 4] and runs.warmed.tolist() == [1, 0] * 2
    assert grid([3, 4], [0.1, 0.2]).rates.tolist() == [0.1, 0.2] * 2


def test_a_rate_rises_or_does_not_and_falls_to_zero():
    warm, cold = (schedule(jnp.float32(2.0), jnp.float32(w), task()) for w in (1, 0))
    assert [float(warm(n)) for n in (0, 3)] == pytest.approx([0.4, 1.6 * 0.97])
    assert float(cold(0)) == 2.0
    for count in (4, 50, 99):
        assert float(warm(count)) == float(cold(count)) > 0
    assert float(cold(100)) == 0


def test_every_optimizer_knows_the_network():
    shapes = nnx.eval_shape(
        lambda: Transformer(2, 16, 1, num_classes=256, rngs=nnx.Rngs(0))
    )
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    # Rules that match nothing are errors.
    for method in METHODS.values():
        optimizer = method.make(lambda count: 0.1)
        jax.eval_shape(lambda p, m=method, o=optimizer: o.init(m.prepare(p)), params)
    for rules, leaves in ((INVARIANT, 4), (OUTPUTS, 2 * 7 + 2)):
        found = jax.tree.structure(params).flatten_up_to(normopt.by_path(rules)(params))
        assert sum(one is not None for one in found) == leaves


def stored(curves, baseline):
    warmed = {"warmed": {"curves": curves}}
    return {"sweep": {"adamw": {"warmed": {"curves": baseline}}, "other": warmed}}


def test_steps_to_the_target_are_read_between_points():
    target = 2.0 * language_model.NEAR
    baseline = [[5.0, 3.0, 2.0, 2.0]] * 2
    fast, never, at_once = [4.0, target, 1.0, 1.0], [4.0] * 4, [1.0] * 4
    of = stored([fast, never, at_once], baseline)
    found = language_model.steps_to_target(of, "other")
    np.testing.assert_allclose(found, [0.5, 1.0, 0.25])
    crossing = 0.5 + 0.25 * (3.0 - target) / (3.0 - 2.0)
    assert language_model.steps_to_target(of, "adamw") == pytest.approx([crossing] * 2)
    assert language_model.steps_to_target(of, "absent") is None


def test_the_best_rate_lies_between_those_that_were_tried():
    exponents = np.arange(-3, 4) * np.log10(2)
    curves = [(exponents - best) ** 2 + 1 for best in (0.1, -0.33)]
    found = {"rates": list(10.0**exponents), "ends": curves}
    np.testing.assert_allclose(best_rates.best_exponents(found), [0.1, -0.33])
    # At an end of the grid nothing more is known.
    found["ends"] = [exponents, -exponents]
    ends = exponents[[0, -1]]
    np.testing.assert_allclose(best_rates.best_exponents(found), ends)


def test_rates_go_on_until_both_ends_are_above_what_is_near_the_best():
    flat, near, far = 2.0, 2.0 * language_model.NEAR, 2.05
    assert language_model.further({-1: far, 0: flat, 1: far}) == []
    assert language_model.further({-1: near, 0: flat, 1: far}) == [-2]
    assert language_model.further({-1: far, 0: 2.02, 1: flat}) == [2]
    assert language_model.further({-1: flat, 0: flat, 1: flat}) == [-2, 2]
    most = language_model.MOST
    assert language_model.further({-most: flat, 0: flat, most: flat}) == []


def test_a_rate_is_tuned_between_all_that_are_near_it(monkeypatch):
    ran = []

    def train_all(method, runs, task):
        ran.append(len(runs.rates))
        # Best two octaves above the middle, and flat about it.
        away = np.abs(np.log2(runs.rates / 0.1) - 2)
        ends = 2 + 0.5 * np.maximum(0.0, away - 0.5) + 0.1 * runs.seeds
        return Ends(np.zeros((len(ends), POINTS)), ends)

    monkeypatch.setattr(language_model, "train_all", train_all)
    method = METHODS["adamw"]._replace(middle=-1.0)
    found = language_model.tune(method, (0, 1), task())
    assert ran == [2 * 3, 2, 2]
    np.testing.assert_allclose(found["rates"], [0.05, 0.1, 0.2, 0.4, 0.8])
    assert np.shape(found["ends"]) == (2, 5)
    assert np.argmin(found["ends"], axis=1).tolist() == [3, 3]
    assert np.diff(found["ends"], axis=0) == pytest.approx(0.1)


def test_near_the_best_is_within_two_percent():
    exponents = np.arange(-3, 4) * np.log10(2)
    curve = 2.0 + 0.04 * np.abs(exponents) / np.log10(2)
    valley = language_model.near({"rates": 10.0**exponents, "ends": [curve, curve]})
    assert valley.width == pytest.approx(2 * np.log10(2)) and not valley.cut
