"""Toys behave as is known of them."""

import numpy as np
import optax
import pytest

import normopt
from experiments.papers.transformers import toy_problems, toys


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small runs take longer to compile than to run."""


@pytest.mark.slow("compiles two optimizers")
def test_relative_steps_do_not_see_the_units_of_a_layer():
    rates, factors = np.array([0.03]), 10.0 ** np.array([-6, 0, 6])
    ours = toys.scaled_layer(toys.OPTIMIZERS["hyperball"], rates, factors, 20, 1)
    np.testing.assert_allclose(ours[0, 0], ours[0, 0, 1], rtol=0.05)
    assert ours.max() < 0.9
    adam = toys.scaled_layer(optax.adam, rates, factors, 20, 1)
    assert adam[0, 0, 0] > 1.5 * adam[0, 0, 1]


def test_the_length_of_an_invariant_block_grows_by_what_turns_it():
    def run(make, noise):
        found = toys.quotient(make, np.array([0.1]), np.array([noise]), 40, 1)
        return [float(one[0, 0, 0]) for one in found]

    distance, length, angle = run(optax.sgd, 0.0)
    assert distance > 0 and length > 1 and angle > 0
    # Orthogonal steps of angles a make a length of the product of 1 / cos(a).
    noisy = run(optax.sgd, 3.0)
    assert noisy[2] > angle and noisy[1] > length
    kept = run(lambda rate: normopt.hyperball(optax.sgd(1.0), rate, {"w": ()}), 3.0)
    assert kept[1] == pytest.approx(1.0, abs=1e-5)
    assert kept[2] == pytest.approx(np.arctan(0.1), rel=1e-3)


def test_rounding_swallows_a_decay_unless_it_is_compensated():
    found = toys.decayed(500, np.array([1e-3]))
    assert found["as it is"] == [1.0]
    assert found["compensated"] == pytest.approx(found["exact"], rel=0.01)


def test_what_cannot_be_stored_is_far_away():
    found = toy_problems._finite(np.array([np.nan, np.inf, 2.0]))
    np.testing.assert_allclose(found, [1e30, 1e30, 2.0])
