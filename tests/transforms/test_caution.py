import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from normopt.transforms.tangent import tangent_part

W, G, M = jax.random.normal(jax.random.key(0), (3, 6, 5))


def given(step):
    """An optimizer whose step is this, whatever the gradient is."""
    return optax.stateless(lambda updates, params: step)


@pytest.mark.parametrize("axes", [(), (-1,)])
def test_what_goes_up_the_gradient_is_left_out(axes):
    tx = normopt.cautious(given(M), axes)
    updates, _ = tx.update(G, tx.init(W))
    keeps = np.asarray(M * G < 0)
    share = keeps.mean(None if axes == () else 0, keepdims=True)
    np.testing.assert_allclose(updates, np.where(keeps, M / share, 0), rtol=1e-6)


def test_a_share_below_the_floor_counts_as_the_floor():
    step = jnp.ones(10).at[0].set(-1)
    for floor, expected in ((0.5, -2.0), (1e-3, -10.0)):
        tx = normopt.cautious(given(step), floor=floor)
        updates, _ = tx.update(jnp.ones(10), tx.init(step))
        np.testing.assert_allclose(updates, [expected] + [0] * 9, rtol=1e-6)
    tx = normopt.cautious(given(step))
    updates, _ = tx.update(-step * 0, tx.init(step))
    assert not updates.any()  # a gradient of zero agrees with nothing
    with pytest.raises(ValueError, match="`floor` must be above 0"):
        normopt.cautious(given(step), floor=0.0)


def test_signs_that_would_underflow_as_a_product_still_agree():
    tx = normopt.cautious(given(jnp.array([-1e-30, 1e-30])))
    updates, _ = tx.update(jnp.array([1e-30, 1e-30]), tx.init(jnp.zeros(2)))
    np.testing.assert_allclose(updates, [-2e-30, 0], rtol=1e-6)


def test_plain_sgd_has_nothing_to_be_cautious_of():
    tx = normopt.cautious(optax.sgd(0.1))
    np.testing.assert_allclose(tx.update(G, tx.init(W))[0], -0.1 * G, rtol=1e-6)


def test_a_cautious_projection_is_tangent_and_agrees_with_the_tangent_gradient():
    link = normopt.project_if_invariant(given(M), delta=10.0, cautious=True)
    updates, _ = link.update(G, link.init(W), W)
    tangent, of_gradient = tangent_part(M, W, (1,)), tangent_part(G, W, (1,))
    keeps = np.asarray(tangent * of_gradient > 0)
    kept = jnp.where(keeps, tangent, 0) / keeps.mean()
    np.testing.assert_allclose(updates, tangent_part(kept, W, (1,)), atol=1e-5)
    np.testing.assert_allclose(jnp.sum(updates * W, 0), 0, atol=1e-5)


def test_what_is_not_projected_is_masked_all_the_same():
    params = {"kernel": W, "bias": W[0]}
    grads, steps = {"kernel": G, "bias": G[0]}, {"kernel": M, "bias": M[0]}
    link = normopt.project_if_invariant(given(steps), delta=0.0, cautious=True)
    updates, _ = link.update(grads, link.init(params), params)
    for leaf, u in updates.items():
        keeps = np.asarray(steps[leaf] * grads[leaf] > 0)
        expected = np.where(keeps, steps[leaf], 0) / keeps.mean()
        np.testing.assert_allclose(u, expected, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.0, 10.0])
def test_each_layer_of_a_stack_has_a_share_of_its_own(delta):
    stack = {"kernel": jnp.stack([W, G]), "bias": jnp.stack([W[0], G[0]])}
    grads = {"kernel": jnp.stack([G, M]), "bias": jnp.stack([G[0], M[0]])}
    steps = {"kernel": jnp.stack([M, W]), "bias": jnp.stack([M[0], W[0]])}
    options = {"delta": delta, "cautious": True}
    layers = {"channel_axes": {"kernel": (0, -1)}, "layer_axes": (0,)}
    whole = normopt.project_if_invariant(given(steps), **options, **layers)
    updates, _ = whole.update(grads, whole.init(stack), stack)
    for layer in range(2):
        w, g, u = (
            jax.tree.map(lambda x, i=layer: x[i], t) for t in (stack, grads, steps)
        )
        link = normopt.project_if_invariant(given(u), **options)
        own, _ = link.update(g, link.init(w), w)
        for leaf in own:
            np.testing.assert_allclose(updates[leaf][layer], own[leaf], rtol=1e-4)
