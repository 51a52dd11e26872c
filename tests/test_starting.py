import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W = jax.random.normal(jax.random.key(0), (4, 3, 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_blocks_are_put_on_the_sphere(dtype):
    params = {"kernel": W.astype(dtype).at[..., 0].set(0), "bias": jnp.ones(3)}
    after = normopt.on_sphere(params, {"kernel": (-1,)}, {"kernel": 2.5})
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, params)
    lengths = normopt.block_norms(after["kernel"], (-1,))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(lengths, [0, *[2.5] * 4], rtol=max(eps, 1e-6))
    assert (after["bias"] == 1).all()
    # There the retraction has nothing to undo.
    tx = normopt.retract_to_sphere(optax.sgd(0.0), {"kernel": (-1,)}, 2.5)
    updates, _ = tx.update(after, tx.init(after), after)
    assert jnp.abs(updates["kernel"]).max() <= 2.5 * eps


@pytest.mark.parametrize("axes", [(), (-1,), (0, 2)])
def test_centered_blocks_have_their_length_and_no_mean(axes):
    params = 1e3 * W + 300
    after = normopt.centered(params, axes)
    within = tuple({0, 1, 2} - {axis % 3 for axis in axes})
    np.testing.assert_allclose(jnp.mean(after, within), 0, atol=1e-3)
    lengths = (normopt.block_norms(w, axes) for w in (after, params))
    np.testing.assert_allclose(*lengths, rtol=1e-6)
    # The mean stays away where the updates have none.
    link = normopt.center_blocks(axes)
    updates, _ = link.update(W, link.init(W))
    np.testing.assert_allclose(jnp.mean(after + updates, within), 0, atol=1e-3)


def test_equal_elements_stay_as_they_are():
    params = jnp.full((7, 2), 0.1).at[0, 1].set(0.3)
    after = normopt.centered(params, (-1,))
    assert (after[:, 0] == params[:, 0]).all() and (after[:, 1] != params[:, 1]).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="must be above 0 .* radius=0 at 'kernel'"):
        normopt.on_sphere({"kernel": W}, (), {"kernel": 0.0})
    with pytest.raises(ValueError, match="no parameter path matches 'krenel'"):
        normopt.centered({"kernel": W}, {"krenel": ()})
