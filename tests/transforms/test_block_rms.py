import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def steps_of(link, grads):
    state, steps = link.init(grads[0]), []
    for g in grads:
        updates, state = link.update(g, state)
        steps.append(updates)
    return np.stack(steps), state


def by_hand(grads, b2, eps, axis):
    """Blocks along all axes but those of `axis`, in float64."""
    grads, v, steps = np.asarray(grads, np.float64), None, []
    within = tuple(a for a in range(grads[0].ndim) if a not in axis)
    for g in grads:
        square = np.sum(g**2, axis=within, keepdims=True)
        v = square if v is None else b2 * v + (1 - b2) * square
        steps.append(g / (np.sqrt(v) + eps))
    return np.array(steps)


GRADS = jax.random.normal(jax.random.key(0), (8, 2, 3, 4)) * jnp.logspace(-2, 2, 4)


@pytest.mark.parametrize("axes", [(), (2,), (0,), (0, 2), (-1,)])
def test_it_is_what_the_formula_says(axes):
    link = normopt.scale_by_block_rms(0.8, 1e-2, axes)
    steps, _ = steps_of(link, GRADS)
    expected = by_hand(GRADS, 0.8, 1e-2, [axis % 3 for axis in axes])
    np.testing.assert_allclose(steps, expected, rtol=1e-5, atol=1e-7)


def test_without_blocks_it_is_rmsprop_that_starts_at_the_first_square():
    link = normopt.scale_by_block_rms(0.8, 1e-3, None)
    state = link.init(GRADS[0])
    assert not state.nu.blocks
    rms = optax.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False)
    other = rms.init(GRADS[0])._replace(nu=GRADS[0] ** 2)
    for g in GRADS:
        updates, state = link.update(g, state)
        expected, other = rms.update(g, other)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_blocks_of_one_element_are_taken_as_they_are():
    link = normopt.scale_by_block_rms(eps=0.0, channel_axes={"": (0,)})
    updates, state = link.update(
        {"b": jnp.array([3.0, -2.0])}, link.init({"b": jnp.ones(2)})
    )
    np.testing.assert_allclose(updates["b"], [1.0, -1.0])
    assert state.nu.blocks["b@0"].shape == (2,)


def test_the_length_of_a_step_does_not_see_the_scale_of_the_gradients():
    link = normopt.scale_by_block_rms(0.9, 0.0)
    steps, _ = steps_of(link, GRADS)
    for scale in (1e-12, 1e12):
        np.testing.assert_allclose(steps_of(link, scale * GRADS)[0], steps, rtol=1e-5)


def test_amsgrad_never_lets_a_step_grow():
    grads = jnp.array([1.0, 10.0, 1.0, 1.0, 20.0, 1.0])[:, None]
    link = normopt.scale_by_block_rms(0.5, 0.0, amsgrad=True)
    steps, state = steps_of(link, grads)
    v, largest, expected = 1.0, 1.0, []
    for index, g in enumerate(np.asarray(grads)[:, 0]):
        v = g**2 if index == 0 else 0.5 * v + 0.5 * g**2
        largest = max(largest, v)
        expected.append(g / np.sqrt(largest))
    np.testing.assert_allclose(steps[:, 0], expected, rtol=1e-6)
    assert float(state.nu.blocks["@"]) < float(state.nu_max.blocks["@"])


def test_blocks_of_zeros_stay_where_they_are():
    grads = GRADS.at[..., 0].set(0)
    link = normopt.scale_by_block_rms(eps=0.0, channel_axes=(-1,))
    steps, _ = steps_of(link, grads)
    assert (steps[..., 0] == 0).all() and np.isfinite(steps).all()


def test_extreme_gradients_stay_finite_and_are_forgotten():
    link = normopt.scale_by_block_rms(0.5, 0.0)
    for size in (1e-30, 1e30):
        grads = [jnp.full(4, size)] * 2 + [jnp.ones(4)] * 400
        steps, state = steps_of(link, grads)
        assert np.isfinite(steps).all()
        np.testing.assert_allclose(steps[-1], 0.5, rtol=1e-4)
        assert jnp.isfinite(state.nu.blocks["@"])


def test_bad_axes_are_refused_at_init():
    link = normopt.scale_by_block_rms(channel_axes={"w": (3,)})
    with pytest.raises(
        ValueError, match=r"`channel_axes` = \(3,\).*'w' of shape \(2,\)"
    ):
        link.init({"w": jnp.ones(2)})


@pytest.mark.parametrize(
    ("option", "value"), [("b2", 1.0), ("b2", -0.5), ("eps", -1.0), ("eps", np.nan)]
)
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        normopt.scale_by_block_rms(**{option: value})
