import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def decayed(link, params):
    zeros = optax.tree.zeros_like(params)
    return link.update(zeros, link.init(params), params)[0]


def test_decay_is_the_gradient_of_the_penalty():
    w = jnp.array([2.0, -3.0, 0.0])
    updates = decayed(normopt.add_decay(0.1, 0.01), w)
    np.testing.assert_allclose(updates, [0.21, -0.31, 0.0], rtol=1e-6)


def test_l2_alone_is_optax_add_decayed_weights():
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    grads = {"a": jnp.array([0.3, 0.4]), "b": jnp.array(-1.0)}
    ours, theirs = normopt.add_decay(0.1), optax.add_decayed_weights(0.1)
    for link_updates in (
        ours.update(grads, ours.init(params), params)[0],
        theirs.update(grads, theirs.init(params), params)[0],
    ):
        np.testing.assert_allclose(link_updates["a"], [0.4, 0.2], rtol=1e-6)
        np.testing.assert_allclose(link_updates["b"], -0.7, rtol=1e-6)


def test_per_path_with_different_rules_for_l1_and_l2():
    params = {"kernel": jnp.array([2.0]), "scale": jnp.array([2.0])}
    link = normopt.add_decay({"kernel": 0.5}, l1={"scale": 0.25})
    updates = decayed(link, params)
    assert updates["kernel"] == 1.0
    assert updates["scale"] == 0.25


def test_low_precision_sums_in_float32():
    w, g = jnp.full(1, 1.0, jnp.bfloat16), jnp.full(1, 1.0, jnp.bfloat16)
    link = normopt.add_decay(2**-9, l1=2**-9)
    updates, _ = link.update(g, link.init(w), w)
    # Either decay alone rounds away in bfloat16; together they reach the next number
    # only if the sum is taken before it is rounded.
    assert updates.dtype == jnp.bfloat16
    assert updates[0] == jnp.bfloat16(1 + 2**-8)


def test_complex_weights_shrink_along_themselves():
    w = jnp.array([3.0 + 4.0j])
    updates = decayed(normopt.add_decay(0.1, 0.5), w)
    np.testing.assert_allclose(updates, w * (0.1 + 0.5 / 5), rtol=1e-6)


def test_arrays_and_traced_numbers_are_plain_values():
    params = jnp.array([2.0])
    assert decayed(normopt.add_decay(jnp.array(0.5)), params) == 1.0
    make = optax.inject_hyperparams(normopt.add_decay)
    link = make(weight_decay=lambda count: 0.5 * count, l1={"": 0.0})
    state = link.init(params)
    for expected in (0.0, 1.0):
        updates, state = link.update(jnp.zeros(1), state, params)
        assert updates == expected


@pytest.mark.parametrize(
    ("decays", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, "at least 0.*weight_decay=-0.1"),
        ({"l1": {"kernel": -1}}, ValueError, "l1=-1 at 'kernel'"),
        ({"weight_decay": "much"}, TypeError, "one number.*'much'"),
        ({"weight_decay": jnp.ones(2)}, TypeError, "one number"),
        ({"weight_decay": {3: 0.1}}, TypeError, "strings, got 3"),
        ({"weight_decay": {"(": 0.1}}, ValueError, "not a regular expression"),
    ],
)
def test_bad_decays_are_refused_when_built(decays, error, message):
    with pytest.raises(error, match=message):
        normopt.add_decay(**decays)


def test_a_callable_is_checked_at_init():
    link = normopt.add_decay(lambda params: {"w": -1.0})
    with pytest.raises(ValueError, match="weight_decay=-1 at 'w'"):
        link.init({"w": jnp.ones(1)})


def test_params_are_needed_and_must_fit():
    link = normopt.add_decay(0.1)
    grads = {"w": jnp.ones(2)}
    state = link.init(grads)
    with pytest.raises(ValueError, match="`add_decay` needs the parameters"):
        link.update(grads, state)
    with pytest.raises(ValueError, match=r"updates of shape \(2,\) for the params 'w'"):
        link.update(grads, state, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="only one of the two has 'v'"):
        link.update(grads, state, {"w": jnp.ones(2), "v": jnp.ones(2)})
