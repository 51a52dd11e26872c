import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def by_hand(grads, b1, b2, eps, psi):
    """The formulas one by one, in float64."""
    m = v = 0.0
    product, steps = 1.0, []
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        now, after = (b1 * (1 - 0.5 * 0.96 ** (psi * k)) for k in (t, t + 1))
        product *= now
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = (1 - now) * g / (1 - product) + now * m / (1 - product * after)
        steps.append(ahead / np.sqrt(v / (1 - b2**t) + eps))
    return np.array(steps)


def test_it_is_what_the_formulas_say():
    grads = jax.random.normal(jax.random.key(0), (30, 5))
    for options in ((0.9, 0.999, 1e-7, 0.004), (0.5, 0.9, 1e-2, 0.5), (0.0, 0.9, 0, 0)):
        link = normopt.scale_by_nadam(*options)
        state, steps = link.init(grads[0]), []
        for g in grads:
            updates, state = link.update(g, state)
            steps.append(updates)
        np.testing.assert_allclose(
            steps, by_hand(grads, *options), rtol=2e-5, atol=1e-6
        )


def test_without_momentum_it_is_rmsprop_with_eps_inside():
    link = normopt.scale_by_nadam(0.0, 0.9, 1e-3)
    reference = optax.scale_by_adam(0.0, 0.9, eps=0.0, eps_root=1e-3)
    grads = jax.random.normal(jax.random.key(1), (6, 4))
    state, other = link.init(grads[0]), reference.init(grads[0])
    for g in grads:
        updates, state = link.update(g, state)
        expected, other = reference.update(g, other)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_zero_gradients_stay_zero_without_eps():
    link = normopt.scale_by_nadam(eps=0.0)
    grads = jnp.array([0.0, 1.0])
    updates, state = link.update(grads, link.init(grads))
    assert updates[0] == 0 and jnp.isfinite(updates).all()
    # It leaves zero as soon as there is a gradient.
    updates, _ = link.update(jnp.ones(2), state)
    assert (updates > 0.5).all()


def test_moments_of_low_precision_and_complex_leaves():
    params = {"low": jnp.ones(2, jnp.bfloat16), "complex": jnp.ones(2) * 1j}
    link = normopt.scale_by_nadam(eps=0.0)
    updates, state = link.update(params, link.init(params))
    assert state.nu["low"].dtype == state.nu["complex"].dtype == jnp.float32
    assert state.mu["low"].dtype == updates["low"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["complex"].real, 0)
    assert (updates["complex"].imag > 1).all()


def test_extreme_gradients_stay_finite():
    grads = jnp.array([1e-30, 1e30])
    link = normopt.scale_by_nadam()
    state = link.init(grads)
    for _ in range(3):
        updates, state = link.update(grads, state)
        assert jnp.isfinite(updates).all()
    for _ in range(3):
        updates, state = link.update(jnp.ones(2), state)
    assert jnp.isfinite(updates).all()


def test_the_last_count_is_not_passed():
    link = normopt.scale_by_nadam()
    w = jnp.ones(2)
    state = link.init(w)._replace(count=jnp.int32(2**31 - 3), mu_product=jnp.zeros([]))
    for _ in range(4):
        updates, state = link.update(w, state)
        assert jnp.isfinite(updates).all()
    assert state.count == 2**31 - 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("b1", 1.0), ("b2", -0.1), ("eps", -1e-8), ("momentum_decay", -1.0)],
)
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        normopt.scale_by_nadam(**{option: value})
