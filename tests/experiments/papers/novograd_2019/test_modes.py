"""The curves: a point is a run of its own, and modes and numbers are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.novograd_2019 import modes
from experiments.papers.novograd_2019.modes import SMOKE, main
from experiments.papers.novograd_2019.modes_training import (
    METHODS,
    all_errors,
    convolve,
    held_out_error,
    load_task,
    start,
    train,
)
from experiments.papers.novograd_2019.valleys import MARGIN, near_best
from tests.experiments.small_runs import in_a_plain_terminal

HELD_OUT = 1797 - 400
GRID = np.linspace(-1.5, 1.5, 13)
B1, B2, EPS, DECAY = 0.95, 0.98, 1e-7, 1e-3


@pytest.fixture(scope="module")
def task():
    return load_task()


def trained(name, learning_rate, seed, epochs, task):
    def run(*numbers):
        return train(METHODS[name].make, *numbers, task)

    return jax.jit(run)(learning_rate, start(seed, epochs))


def steps_of(name, learning_rate, weights, gradients):
    """The weights after each gradient."""
    optimizer, found = METHODS[name].make(learning_rate), []
    weights = jnp.asarray(weights)
    state = optimizer.init(weights)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, weights)
        weights = weights + updates
        found.append(np.asarray(weights))
    return np.array(found)


@pytest.mark.slow("needs a real run")
def test_the_same_command_trains_what_is_left(folder, committed, monkeypatch):
    records, trained = folder / "modes.json", []
    before = records.read_bytes()
    (part,) = folder.glob("modes-*/AdamW.json")
    part.unlink()
    monkeypatch.setattr(
        modes,
        "all_errors",
        lambda make, *others: trained.append(make) or all_errors(make, *others),
    )
    main(["--smoke", "--out", str(folder.parent)])
    assert trained == [METHODS["AdamW"].make]
    assert records.read_bytes() == before


@pytest.mark.slow("needs a real run")
def test_every_curve_is_stored_over_three_decades(stored):
    assert list(stored["curves"]) == list(SMOKE)
    assert len(METHODS) == 6 and stored["epochs"] == 2
    for curve in stored["curves"].values():
        exponents, errors = np.array(curve["exponents"]), np.array(curve["errors"])
        assert np.diff(exponents) == pytest.approx(0.75)
        assert exponents[-1] - exponents[0] == pytest.approx(3)
        assert errors.shape == (2, 5)
        assert (errors > 0).all() and (errors <= 1).all()
    for method in METHODS.values():
        assert np.diff(method.exponents) == pytest.approx(0.25)


@pytest.mark.slow("needs a real run")
@pytest.mark.parametrize("name", ["NovoGrad, average", "AdamW"])
def test_a_point_of_a_curve_is_that_run_alone(stored, task, name):
    curve = stored["curves"][name]
    errors, seed, place = np.array(curve["errors"]), 1, 1
    # It differs from its neighbours and between seeds: a swap would show.
    others = [errors[0, place], errors[seed, place - 1], errors[seed, place + 1]]
    assert np.abs(errors[seed, place] - others).min() > 6 / HELD_OUT
    params = trained(name, 10 ** curve["exponents"][place], seed, 2, task)
    # Batched sums round differently, which can turn an answer that was close.
    alone = float(held_out_error(params, task))
    assert abs(errors[seed, place] - alone) <= 3 / HELD_OUT


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_the_four_modes_are_the_algorithm_of_the_paper(averaging, decay):
    name = "NovoGrad, " + ("average" if averaging else "sum")
    name += ", decay" if decay else ""
    random = np.random.default_rng(0)
    # Long weights, so that the decay is much more than rounding.
    weights, gradients = random.normal(0, 100, 6), random.normal(0, 1, (4, 6))
    found = steps_of(name, 0.1, weights, gradients)
    momentum, moment = np.zeros(6), gradients[0] @ gradients[0]
    for step, gradient in enumerate(gradients):
        moment = B2 * moment + (1 - B2) * gradient @ gradient
        direction = gradient / (moment**0.5 + EPS) + decay * weights
        factor = 1 - B1 if averaging and step > 0 else 1
        momentum = B1 * momentum + factor * direction
        weights = weights - 0.1 * momentum
        # 100 in float32 is rounded to 8e-6; the decay moves it by 1e-2.
        np.testing.assert_allclose(found[step], weights, atol=1e-4)


def test_but_for_the_first_gradient_a_sum_is_an_average_at_twenty_times_the_rate():
    gradients = np.random.default_rng(0).normal(0, 1, (5, 6))
    sums = steps_of("NovoGrad, sum", 0.01, np.ones(6), gradients)
    averages = steps_of("NovoGrad, average", 0.2, np.ones(6), gradients)
    assert np.abs(sums - averages).max() > 0.1
    gradients[0] = 0
    sums = steps_of("NovoGrad, sum", 0.01, np.ones(6), gradients)
    averages = steps_of("NovoGrad, average", 0.2, np.ones(6), gradients)
    np.testing.assert_allclose(sums, averages, rtol=1e-5)
    assert np.abs(sums[-1] - 1).max() > 0.01


@pytest.mark.parametrize(("name", "decay"), [("AdamW", DECAY), ("SGD", 0.0)])
def test_the_decay_of_the_baselines_is_times_the_learning_rate(name, decay):
    (weights,) = steps_of(name, 0.5, [100.0, -20.0], np.zeros((1, 2)))
    shrunk = (1 - 0.5 * decay) * np.array([100.0, -20.0])
    np.testing.assert_allclose(weights, shrunk, rtol=1e-6)


def test_sgd_has_momentum():
    weights = steps_of("SGD", 1.0, np.zeros(1), np.ones((2, 1)))
    np.testing.assert_allclose(weights[:, 0], [-1, -1 - 1.9])


def test_the_cosine_begins_at_the_rate_and_ends_at_zero(task):
    schedules = []

    def make(learning_rate):
        schedules.append(learning_rate)
        return METHODS["SGD"].make(learning_rate)

    train(make, 0.25, start(0, epochs=2), task)
    (schedule,) = schedules
    rates = [float(schedule(step)) for step in (0, 20, 40)]
    assert rates == pytest.approx([0.25, 0.125, 0.0], abs=1e-7)


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 4)])
def test_convolve_is_the_convolution(stride, side):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, 3, 5)), jnp.float32)
    found = convolve(images, kernel, stride)
    assert found.shape == (2, side, side, 5)
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # Sums of 27 products about 1, in float32.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_batches_are_passes_over_the_training_images_and_differ_by_seed():
    one, other = start(0, epochs=2), start(1, epochs=2)
    assert one.batches.shape == (40, 20)
    for epoch in np.asarray(one.batches).reshape(2, 400):
        assert sorted(epoch) == list(range(400))
    assert (one.batches != other.batches).any()
    kernels = [run.params[0]["kernel"] for run in (one, other)]
    assert (kernels[0] != kernels[1]).all()


@pytest.mark.slow("trains for six epochs")
def test_training_teaches(task):
    params = trained("NovoGrad, sum", 10**-1.75, 0, 6, task)
    assert 0.02 < float(held_out_error(params, task)) < 0.15


@pytest.mark.slow("compiles the network")
def test_a_run_that_diverged_is_wrong_on_nine_in_ten(task):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, start(0, 1).params)
    assert 0.85 < float(held_out_error(broken, task)) < 0.95


def test_a_valley_is_as_wide_as_its_sides_are_far():
    wide = near_best(0.05 + 0.5 * MARGIN * np.abs(GRID), GRID)
    assert wide.cut and wide.width == pytest.approx(3)
    # 3 points a decade to the left and 1.6 to the right: between points of the grid.
    slopes = np.where(GRID < 0, -3, 1.6) * MARGIN
    found = near_best(0.05 + slopes * GRID, GRID)
    assert (found.low, found.high) == (pytest.approx(-1 / 3), pytest.approx(1 / 1.6))
    assert found.width == pytest.approx(1 / 3 + 1 / 1.6) and not found.cut
    shifted = near_best(0.05 + slopes * GRID, GRID - 7)
    assert shifted.low == pytest.approx(-7 - 1 / 3)


def test_a_valley_that_reaches_an_end_is_cut_there():
    errors = np.r_[np.full(6, 0.9), np.full(7, 0.05)]
    found = near_best(errors, GRID)
    assert found.cut and found.high == 1.5
    assert near_best(errors[::-1], GRID).cut
    assert near_best(errors[::-1], GRID).low == -1.5


def test_a_second_valley_does_not_count():
    errors = np.full(13, 0.9)
    errors[2:5], errors[8:10] = 0.05, 0.051
    found = near_best(errors, GRID)
    share = 0.25 * MARGIN / 0.85
    assert found.width == pytest.approx(0.5 + 2 * share)


def test_a_single_seed_is_refused_for_it_has_no_deviation(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow("needs a real run")
def test_the_table_has_mean_and_deviation_and_says_what_is_cut(stored):
    lines = in_a_plain_terminal(modes.table(stored))
    for name, curve in stored["curves"].items():
        (row,) = (line for line in lines if line.startswith(f"{name} "))
        errors = np.array(curve["errors"])
        best = errors.mean(axis=0).argmin()
        low, high = errors[:, best]
        # Of two numbers, the deviation is the distance over the root of 2.
        spread = abs(high - low) / 2**0.5
        assert f"{(low + high) / 2:.2%} ± {spread:.2%}" in row
        found = near_best(errors.mean(axis=0), curve["exponents"])
        assert ("≥" in row) == found.cut
