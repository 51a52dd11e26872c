"""Normalized descent of a quadratic: how long its steps are, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers.block_normalized_2017 import convex
from experiments.papers.block_normalized_2017.convex import (
    LEARNING_RATES,
    METHODS,
    main,
)
from experiments.training.many_runs import stacked
from tests.experiments.small_runs import calls_until_it_goes_on

SIZE, STEPS = 10, 100


@pytest.fixture(scope="module")
def problem():
    return convex.draw_problem(SIZE, seed=0)


def traces(name, problem, steps=STEPS):
    return at_all_rates(METHODS[name], problem, steps)


def at_all_rates(make, problem, steps):
    """Of one problem."""
    found = convex.descend_at_all_rates(make, stacked([problem]), steps)
    return jax.tree.map(lambda leaf: leaf[0], found)


def loss(problem, x):
    return x @ problem.q @ x / 2 + problem.b @ x


def test_every_run_is_stored_from_the_start_on(stored, problem):
    settings = {"size": SIZE, "steps": STEPS, "seed": 0, "problems": 2}
    assert stored["config"] == settings | {"record_every": 10}
    assert stored["learning_rates"] == list(LEARNING_RATES)
    assert list(stored["gaps"]) == list(METHODS)
    first = float(loss(problem, problem.start) - loss(problem, problem.least))
    for runs in stored["gaps"].values():
        gaps = np.array(runs)
        assert gaps.shape == (len(LEARNING_RATES), STEPS // 10 + 1)
        assert (gaps >= 0).all()
        np.testing.assert_allclose(gaps[:, 0], first, rtol=1e-3)


@pytest.mark.usefixtures("committed")
def test_a_stopped_command_goes_on_with_the_next_method(tmp_path, monkeypatch):
    still = convex.Trace(np.ones((2, len(LEARNING_RATES), 11)), np.zeros(()))
    monkeypatch.setattr(convex, "descend_at_all_rates", lambda *_: still)
    first, second = calls_until_it_goes_on(
        monkeypatch,
        convex,
        "descend_at_all_rates",
        lambda: main(["--size", "2", "--steps", "10", "--out", str(tmp_path)]),
    )
    assert [make for make, *_ in first + second] == list(METHODS.values())
    assert len(first) == 2


def test_six_rates_from_a_thousandth_to_a_tenth():
    assert (len(LEARNING_RATES), LEARNING_RATES[0], LEARNING_RATES[-1]) == (
        6,
        1e-3,
        0.1,
    )
    ratios = np.divide(LEARNING_RATES[1:], LEARNING_RATES[:-1])
    np.testing.assert_allclose(ratios, 100**0.2, rtol=1e-3)


def test_the_quadratic_is_convex_and_least_where_it_says(problem):
    assert np.linalg.eigvalsh(problem.q)[0] > 0.01
    np.testing.assert_allclose(problem.q, problem.q.T)
    gradient = jax.grad(lambda x: loss(problem, x))(problem.least)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_a_step_of_normalized_sgd_is_exactly_as_long_as_the_rate(problem):
    lengths = traces("normalized SGD", problem).lengths
    # Where the gradient is short, eps 1e-7 beside its length shows.
    expected = np.array(LEARNING_RATES)[:, None] * np.ones(STEPS)
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    assert np.ptp(traces("Adam", problem).lengths, axis=1).min() > 1e-4


def test_normalized_sgd_cannot_go_further_than_its_steps(problem):
    """At a distance the gap is at least that along the flattest direction."""
    way = float(jnp.linalg.norm(problem.start - problem.least))
    least, steepest = np.linalg.eigvalsh(problem.q)[[0, -1]]
    gaps = traces("normalized SGD", problem).gaps
    left = np.maximum(way - np.outer(LEARNING_RATES, np.arange(STEPS + 1)), 0)
    assert (gaps >= least * left**2 / 2 * (1 - 1e-4)).all()
    # At the smallest rate it has hardly begun, at the largest it is there.
    assert gaps[0, -1] > 0.9 * gaps[0, 0]
    arrived = steepest * LEARNING_RATES[-1] ** 2 / 2
    assert gaps[-1, -20:].max() < arrived * 1.1


@pytest.mark.parametrize(
    "name",
    [
        "normalized SGD",
        *(
            pytest.param(name, marks=pytest.mark.slow("the same of another method"))
            for name in METHODS
            if name != "normalized SGD"
        ),
    ],
)
def test_a_loss_a_hundred_times_as_flat_makes_no_difference(name, problem):
    flat = problem._replace(q=problem.q / 100, b=problem.b / 100)
    near, far = (traces(name, one, 20).lengths for one in (problem, flat))
    # The eps of Adam and RMSprop weighs more beside a flat gradient.
    np.testing.assert_allclose(near, far, rtol=2e-2)
    plain, slow = (at_all_rates(optax.sgd, one, 1).lengths for one in (problem, flat))
    np.testing.assert_allclose(plain, 100 * slow, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_stored_run_is_that_run_alone(name, stored, problem):
    rank = 3
    alone = convex.descend(METHODS[name](LEARNING_RATES[rank]), problem, STEPS)
    gaps = convex.largest(np.asarray(alone.gaps)[None])[0]
    np.testing.assert_allclose(stored["gaps"][name][rank], gaps, rtol=2e-3)
    other = np.array(stored["gaps"][name][rank - 1])
    assert np.abs(other / gaps - 1).max() > 0.05


def test_a_record_is_the_largest_gap_of_its_ten_steps():
    gaps = np.array([[9.0, *range(1, 11), *range(30, 20, -1)]])
    assert convex.largest(gaps).tolist() == [[9.0, 10.0, 30.0]]


@pytest.mark.parametrize(
    ("steps", "told"), [("0", "must be >= 10, got 0"), ("15", "multiple of 10, got 15")]
)
def test_steps_that_fill_no_record_are_refused(steps, told, tmp_path):
    with pytest.raises(SystemExit, match=told):
        main(["--steps", steps, "--out", str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()
