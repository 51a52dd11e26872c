import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W, G = jax.random.normal(jax.random.key(0), (2, 4, 3, 5))


def apply(link, updates, params=None):
    return link.update(updates, link.init(updates), params)[0]


def test_steps_are_between_the_bounds_and_keep_their_direction():
    grads = G * jnp.array([1e-3, 0.1, 0.3, 1.0, 0.0])
    link = normopt.bound_relative_step((-1,), 0.05, 0.2)
    after = apply(link, grads, W)
    lengths, own, unit = (normopt.block_norms(x, (-1,)) for x in (after, grads, W))
    expected = jnp.clip(own, 0.05 * unit, 0.2 * unit).at[4].set(0)
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)
    np.testing.assert_allclose(normopt.block_angles(grads, after, (-1,)), 0, atol=1e-3)
    # What is within the bounds is not touched.
    assert (after == grads)[..., lengths == own].all()


def test_bounds_can_be_schedules_of_the_count():
    rate = optax.piecewise_constant_schedule(0.1, {1: 0.5})
    link = normopt.bound_relative_step((), rate, rate)
    state = link.init(W)
    for expected in (0.1, 0.05):
        updates, state = link.update(G, state, W)
        relative = normopt.block_norms(updates) / normopt.block_norms(W)
        np.testing.assert_allclose(relative, expected, rtol=1e-6)
    assert state == normopt.BoundRelativeStepState(2)


def test_a_block_without_length_may_leave_zero():
    for min_norm in (0.0, 0.25):
        link = normopt.bound_relative_step((), 0.1, 0.1, min_norm=min_norm)
        length = normopt.block_norms(apply(link, G, jnp.zeros_like(W)))
        np.testing.assert_allclose(length, 0.1 * min_norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": -1.0}, "`floor` must be at least 0"),
        ({"floor": jnp.inf}, "`floor` must be at least 0 and finite"),
        ({"ceiling": -1.0}, "`ceiling` must be at least 0"),
        ({"min_norm": -1.0}, "`min_norm` must be at least 0"),
    ],
)
def test_bad_bounds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        normopt.bound_relative_step(**options)


def test_a_direction_is_as_long_as_what_it_was_made_of():
    for scale in (1e-30, 1.0, 1e30):
        link = normopt.keep_norm(normopt.normalize_blocks(channel_axes=(-1,), eps=0.0))
        after = apply(link, scale * G)
        whole = normopt.block_norms(after), normopt.block_norms(scale * G)
        np.testing.assert_allclose(*whole, rtol=1e-6)
        columns = normopt.block_norms(after, (-1,))
        np.testing.assert_allclose(columns, columns[0], rtol=1e-6)
    assert not apply(normopt.keep_norm(optax.set_to_zero()), G).any()


def test_normuon_keeps_the_length_of_an_orthogonal_matrix():
    """A second moment for each row, after which the whole is as long as it was."""
    rows = normopt.scale_by_block_adam(0.0, 0.9, 0.0, (0,))
    assert rows.init(W).mu is None
    after = apply(normopt.keep_norm(rows), G)
    np.testing.assert_allclose(*(normopt.block_norms(x) for x in (after, G)), rtol=1e-6)
