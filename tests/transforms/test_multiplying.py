import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def test_the_first_pattern_wins_and_the_rest_stays():
    params = {"head": {"kernel": jnp.ones(2)}, "body": {"kernel": jnp.ones(2)}}
    params["body"]["bias"] = jnp.ones(2, jnp.bfloat16)
    link = normopt.scale_by_path({"head": 3.0, "kernel": 0.5})
    updates, _ = link.update(params, link.init(params))
    assert (updates["head"]["kernel"] == 3).all()
    assert (updates["body"]["kernel"] == 0.5).all()
    assert (updates["body"]["bias"] == 1).all()
    assert updates["body"]["bias"].dtype == jnp.bfloat16


def test_a_multiplier_that_hits_nothing_is_an_error():
    link = normopt.scale_by_path({"hed": 3.0})
    with pytest.raises(ValueError, match="`lr_multipliers`: no parameter path.*'hed'"):
        link.init({"head": jnp.ones(2)})


@pytest.mark.parametrize("multiplier", [-1.0, float("inf"), float("nan")])
def test_bad_multipliers_are_refused_when_built(multiplier):
    with pytest.raises(ValueError, match="lr_multipliers"):
        normopt.scale_by_path(multiplier)


def test_steps_are_relative_to_the_weights():
    params = jnp.array([[3.0, 0.3], [4.0, 0.4]])
    grads = jnp.array([[1.0, 5.0], [1.0, -7.0]])
    tx = optax.chain(
        normopt.normalize_blocks("l2", (-1,), eps=0.0),
        normopt.scale_by_param_norm((-1,)),
        optax.scale(-0.01),
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    lengths = normopt.block_norms(updates, (-1,))
    np.testing.assert_allclose(lengths, [0.05, 0.005], rtol=1e-5)


def test_rescaled_weights_take_rescaled_steps():
    link = normopt.scale_by_param_norm((-1,))
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "scalar": jnp.array(5.0)}
    ones = optax.tree.ones_like(params)
    state = link.init(params)
    once, _ = link.update(ones, state, params)
    twice, _ = link.update(ones, state, optax.tree.scale(2.0, params))
    np.testing.assert_allclose(twice["w"], 2 * once["w"], rtol=1e-6)
    assert once["scalar"] == twice["scalar"] == 1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_param_norm_is_exact_at_every_size(size):
    link = normopt.scale_by_param_norm(min_norm=0.0)
    params = jnp.array([3.0, 4.0]) * size
    updates, _ = link.update(jnp.ones(2), link.init(params), params)
    np.testing.assert_allclose(updates, 5 * size, rtol=1e-6)


def test_a_zero_block_still_moves():
    link = normopt.scale_by_param_norm()
    params = jnp.zeros(2)
    updates, _ = link.update(jnp.ones(2), link.init(params), params)
    np.testing.assert_allclose(updates, 1e-3, rtol=1e-6)


def test_params_are_needed():
    link = normopt.scale_by_param_norm()
    with pytest.raises(ValueError, match="`scale_by_param_norm` needs the parameters"):
        link.update(jnp.ones(2), link.init(jnp.ones(2)))


def test_min_norm_is_not_negative():
    with pytest.raises(ValueError, match="min_norm=-1"):
        normopt.scale_by_param_norm(min_norm=-1)


@pytest.mark.parametrize(
    ("axes", "power", "expected"),
    [((), 0.5, 60**0.5), ((-1,), 0.5, 12**0.5), ((0, 2), -1, 1 / 4), (None, 0.5, 1)],
)
def test_block_size_counts_the_elements_of_one_block(axes, power, expected):
    link = normopt.scale_by_block_size(axes, power)
    updates, _ = link.update(jnp.ones((3, 4, 5)), link.init(jnp.ones((3, 4, 5))))
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_block_size_leaves_blocks_of_one_element():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    link = normopt.scale_by_block_size((-1,))
    updates, _ = link.update(params, link.init(params))
    assert updates["bias"] is params["bias"] and updates["kernel"][0, 0] == 2


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
def test_averaged_gradients_have_weights_that_sum_to_one(b1):
    tx = optax.chain(normopt.average_gradients(b1), optax.trace(b1))
    grads = np.random.default_rng(0).normal(size=12)
    state, averages = tx.init(jnp.zeros([])), []
    for g in grads:
        update, state = tx.update(jnp.float32(g), state)
        averages.append(float(update))
    expected = [grads[0]]
    for g in grads[1:]:
        expected.append(b1 * expected[-1] + (1 - b1) * g)
    np.testing.assert_allclose(averages, expected, rtol=1e-5)


def test_averaging_keeps_dtypes_and_other_leaves():
    updates = {"low": jnp.ones(2, jnp.bfloat16), "table": jnp.arange(3), "none": None}
    link = normopt.average_gradients(0.5)
    first, state = link.update(updates, link.init(updates))
    second, _ = link.update(updates, state)
    assert (first["low"] == 1).all() and (second["low"] == 0.5).all()
    assert second["low"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(second["table"], [0, 1, 2])
    with pytest.raises(ValueError, match="`b1` must be at least 0 and below 1"):
        normopt.average_gradients(1.0)
