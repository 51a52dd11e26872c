"""The example's restarts: where they fall, whose rate is halved, what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from experiments.papers.decoupled_decay_2019 import warm_restarts
from tests.experiments.small_runs import quiet

LR = 1e-4
main = warm_restarts.main


def etas(records):
    return np.array([record["eta"] for record in records])


@pytest.mark.slow("needs a real run")
def test_a_stopped_command_goes_on_with_the_other_run(
    tmp_path, monkeypatch, committed, stored
):
    left = [stored["automatic"]]
    monkeypatch.setattr(warm_restarts, "train", lambda *_, **settings: left.pop())
    config = warm_restarts.WarmRestartsOptions(out=tmp_path)
    with pytest.raises(IndexError):
        warm_restarts.measure(config, quiet())
    left.append(stored["by_hand"])
    measured = warm_restarts.measure(config, quiet())
    assert all(measured[name] == stored[name] for name in ("automatic", "by_hand"))


@pytest.mark.slow("needs a real run")
def test_left_alone_it_is_the_schedule_of_the_count(stored):
    records = stored["automatic"]
    assert [record["step"] for record in records] == list(range(1, 73))
    expected = normopt.cosine_restarts(24)(jnp.arange(72))
    np.testing.assert_allclose(etas(records), expected, atol=1e-6)
    assert not any(record["restart"] for record in records)


@pytest.mark.slow("needs a real run")
def test_by_hand_it_restarts_where_the_loop_says(stored):
    records = stored["by_hand"]
    # Written out from the cosine: a cycle of 24, one of 36, and the end of one of 36.
    places = [(t, 24) for t in range(24)] + [(t, 36) for t in range(36)]
    places += [(t, 36) for t in range(18, 36)]
    expected = [(1 + np.cos(np.pi * t / (length - 1))) / 2 for t, length in places]
    np.testing.assert_allclose(etas(records), expected, atol=1e-6)
    restarts = {r["step"]: r["restart"] for r in records if r["restart"]}
    assert restarts == {25: {"cycle_steps": 36}, 61: {"t_cur": 18}}


@pytest.mark.slow("needs a real run")
@pytest.mark.parametrize("run", ["automatic", "by_hand"])
def test_the_lstm_has_half_the_rate(stored, run):
    rates = [record["rates"] for record in stored[run]]
    dense = np.array([rate["dense_1"] for rate in rates])
    np.testing.assert_allclose(dense, LR * etas(stored[run]), rtol=1e-6)
    np.testing.assert_allclose([2 * rate["lstm_1"] for rate in rates], dense, rtol=1e-6)


@pytest.mark.slow("needs a real run")
def test_both_runs_are_the_same_until_the_first_restart(stored):
    losses = {run: [r["loss"] for r in stored[run]] for run in ("automatic", "by_hand")}
    assert losses["automatic"][:24] == losses["by_hand"][:24]
    assert np.isfinite(losses["automatic"] + losses["by_hand"]).all()
    assert min(losses["automatic"]) < 0.75


@pytest.mark.slow("needs a real run")
def test_the_logged_rates_are_those_of_the_updates(stored):
    """Under a constant gradient an update of Adam is as long as the rate in force."""
    params = nnx.state(warm_restarts.Network(rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = warm_restarts.make_optimizer(normopt.WarmRestarts(24))
    gradients = jax.tree.map(jnp.ones_like, params)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for record in stored["automatic"][:30]:
        updates, state = step(gradients, state, params)
        moved = {
            "lstm_1": updates["lstm_1"]["cell"]["dense_h"]["bias"][...],
            "dense_1": updates["dense_1"]["bias"][...],
        }
        for layer, update in moved.items():
            rate = record["rates"][layer]
            np.testing.assert_allclose(-update, rate, rtol=1e-4, atol=1e-11)


@pytest.mark.slow("compiles the recurrent network")
def test_decays_are_those_of_the_example():
    """The first update of a weight without a gradient is its decay."""
    params = nnx.state(warm_restarts.Network(rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = warm_restarts.make_optimizer(normopt.WarmRestarts(24))
    gradients = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(gradients, state, params)
    expected = {
        ("lstm_1", "cell", "dense_i", "kernel"): (1e-4, 0),
        ("lstm_1", "cell", "dense_h", "kernel"): (0, 2e-4),
        ("lstm_1", "cell", "dense_h", "bias"): (0, 0),
        ("dense_1", "kernel"): (1e-4, 2e-4),
        ("dense_1", "bias"): (0, 0),
    }
    weights, updates = dict(nnx.to_flat_state(params)), nnx.to_flat_state(updates)
    assert {path for path, _ in updates} == set(expected)
    for path, update in updates:
        (l1, l2), w = expected[path], weights[path][...]
        decay = (l1 * jnp.sign(w) + l2 * w) / 24**0.5
        np.testing.assert_allclose(update[...], -decay, rtol=1e-5, atol=1e-12)


@pytest.mark.slow("needs a real run")
def test_lr_t_belongs_to_the_moments_with_their_bias(stored):
    """`lr` times the corrected direction is `lr_t` times the uncorrected one."""
    gradients = np.random.default_rng(0).normal(size=72)
    adam = optax.scale_by_adam(eps=0.0)
    state, m, v = adam.init(jnp.zeros(())), 0.0, 0.0
    for record, g in zip(stored["automatic"], gradients, strict=True):
        direction, state = adam.update(jnp.asarray(g, jnp.float32), state)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        # In single precision 1 - b2^t is off by 1e-5 at the first update.
        expected = pytest.approx(LR * float(direction), rel=1e-3)
        assert record["lr_t"] * m / v**0.5 == expected
