"""The recurrent network's curves: a point is a run of its own, and cell and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.papers.block_normalized_2017 import recurrent, recurrent_training
from experiments.papers.block_normalized_2017.methods import SMOKE
from experiments.papers.block_normalized_2017.recurrent import best, main, table
from experiments.papers.block_normalized_2017.recurrent_training import (
    HIDDEN,
    End,
    end_of,
    load_task,
    predict,
    start,
    train,
)
from tests.experiments.small_runs import in_a_plain_terminal

HELD_OUT = 1797 - 400


@pytest.fixture(scope="module")
def task():
    return load_task()


@pytest.mark.slow("needs a real run")
def test_the_same_command_trains_what_is_left(folder, stored, committed, monkeypatch):
    records, trained = folder / "recurrent.json", []
    before = records.read_bytes()
    (part,) = folder.glob("recurrent-*/SGD.json")
    part.unlink()

    def again(method, *others):
        trained.append(method)
        curve = stored["curves"][method]
        return End(curve["errors"], curve["losses"])

    monkeypatch.setattr(recurrent, "all_ends", again)
    main(["--smoke", "--out", str(folder.parent)])
    assert trained == ["SGD"]
    assert records.read_bytes() == before


@pytest.mark.slow("needs a real run")
def test_every_curve_is_stored_over_two_decades(stored):
    assert list(stored["curves"]) == list(SMOKE)
    for curve in stored["curves"].values():
        assert np.diff(curve["exponents"]) == pytest.approx(1)
        assert curve["exponents"][-1] - curve["exponents"][0] == pytest.approx(2)
        errors, losses = np.array(curve["errors"]), np.array(curve["losses"])
        assert errors.shape == losses.shape == (2, 3)
        assert (errors > 0).all() and (errors <= 1).all() and (losses > 0).all()


@pytest.mark.slow("needs a real run")
def test_a_point_of_a_curve_is_that_run_alone(stored, task):
    curve, seed, place = stored["curves"]["normalized Adam"], 1, 1
    losses = np.array(curve["losses"])
    params = train(
        "normalized Adam", 10 ** curve["exponents"][place], start(seed, 1), task
    )
    alone = end_of(params, task)
    # Batched sums round differently, and what is stored has four digits.
    assert losses[seed, place] == pytest.approx(float(alone.loss), rel=2e-3)
    assert curve["errors"][seed][place] == pytest.approx(
        float(alone.error), abs=3 / HELD_OUT
    )
    # It differs from its neighbours and between seeds: a swap would show.
    others = [losses[0, place], losses[seed, place - 1], losses[seed, place + 1]]
    assert np.abs(losses[seed, place] / others - 1).min() > 0.01


def test_the_cell_is_that_of_flax(task):
    params = start(0, epochs=1).params
    cell = nnx.OptimizedLSTMCell(1, HIDDEN, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...] = params["input"]
    cell.dense_h.kernel[...] = params["recurrent"]
    cell.dense_h.bias[...] = params["bias"]
    pixels = task.pixels[:3]
    output = nnx.RNN(cell)(pixels)[:, -1]
    logits = output @ params["head_kernel"] + params["head_bias"]
    np.testing.assert_allclose(predict(params, pixels), logits, atol=1e-5)
    assert np.abs(logits).max() > 0.01


def test_initial_weights_are_those_of_keras():
    params, other = start(0, epochs=1).params, start(1, epochs=1).params
    recurrent_kernel = params["recurrent"]
    assert recurrent_kernel.shape == (HIDDEN, 4 * HIDDEN)
    products = recurrent_kernel @ recurrent_kernel.T
    np.testing.assert_allclose(products, np.eye(HIDDEN), atol=1e-5)
    forget = slice(HIDDEN, 2 * HIDDEN)
    assert (params["bias"][forget] == 1).all() and params["bias"].sum() == HIDDEN
    limit = (6 / (HIDDEN + 10)) ** 0.5
    assert 0.9 * limit < jnp.abs(params["head_kernel"]).max() < limit
    assert (params["input"] != other["input"]).all()


@pytest.fixture
def linear(monkeypatch):
    """In the place of the network's loss one whose gradients stay as they are."""

    def loss(params, pixels, labels):
        return sum(k * leaf.sum() for k, leaf in enumerate(params.values(), 1))

    monkeypatch.setattr(recurrent_training, "_loss", loss)


def lengths_of_steps(method, steps, task):
    """How far each array has moved after some steps at a rate that begins at 0.01."""
    run = start(0, epochs=1)
    after = train(method, 1e-2, run._replace(batches=run.batches[:steps]), task)
    moved = jax.tree.map(jnp.subtract, after, run.params)
    return [float(jnp.linalg.norm(step)) for step in moved.values()]


def test_each_array_s_first_step_is_as_long_where_gradients_are_normalized(
    linear, task
):
    # Nesterov's is 1 + 0.9 times as long as the gradient.
    normalized = lengths_of_steps("normalized SGD", 1, task)
    assert normalized == pytest.approx([1.9e-2] * 5, rel=1e-3)
    plain = lengths_of_steps("SGD", 1, task)
    assert max(plain) > 3 * min(plain) > 0


def test_the_cosine_takes_half_of_the_rate_away_in_the_middle(linear, task):
    # Nesterov's second step along one direction is 1 + 0.9 + 0.81 times as long.
    length = 1e-2 * (1.9 + 0.5 * 2.71)
    moved = lengths_of_steps("normalized SGD", 2, task)
    assert moved == pytest.approx([length] * 5, rel=1e-3)


@pytest.mark.slow("trains for two epochs")
def test_training_teaches(task):
    run = start(0, epochs=2)
    before = end_of(run.params, task)
    after = end_of(jax.jit(train, static_argnums=0)("Adam", 0.03, run, task), task)
    assert after.loss < 0.9 * before.loss and after.error < before.error


@pytest.mark.slow("compiles the recurrent network")
def test_a_run_that_diverged_knows_nothing(task):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, start(0, 1).params)
    error, loss = end_of(broken, task)
    assert 0.85 < error < 0.95
    assert float(loss) == pytest.approx(np.log(10))


def test_the_best_rate_is_that_of_the_mean_and_of_losses_the_geometric_one():
    curve = {
        "exponents": [-2.0, -1.0],
        "errors": [[0.1, 0.2], [0.4, 0.2]],
        "losses": [[1e-6, 1e-2], [1.0, 1e-2]],
    }
    error, loss = best(curve, "errors"), best(curve, "losses")
    assert error.exponent == -1 and error.values.tolist() == [0.2, 0.2]
    # Its arithmetic mean is the larger one.
    assert loss.exponent == -2 and loss.values.tolist() == [1e-6, 1.0]


def test_a_single_seed_is_refused_for_it_has_no_deviation(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow("needs a real run")
def test_the_table_has_mean_and_deviation_at_the_best_rate(stored):
    lines = in_a_plain_terminal(table(stored))
    for name, curve in stored["curves"].items():
        (row,) = (line for line in lines if line.startswith(f"{name} "))
        errors, losses = (best(curve, key).values for key in ("errors", "losses"))
        assert f"{errors.mean():.2%} ± {errors.std(ddof=1):.2%}" in row
        assert f"{np.prod(losses) ** 0.5:.2g} ×/÷" in row
