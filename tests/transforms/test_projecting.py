import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W, G, P = jax.random.normal(jax.random.key(0), (3, 40, 5))


def radial(x, axes):
    within = tuple(i for i in range(2) if i not in [axis % 2 for axis in axes])
    dot = jnp.sum(x * W, axis=within, keepdims=True)
    return dot / jnp.sum(W * W, axis=within, keepdims=True) * W


def decided(g, axes=(-1,), **options):
    """What becomes of the direction P of an inner link for the raw gradient g."""
    inner = optax.stateless(lambda updates, params: P)
    link = normopt.project_if_invariant(inner, channel_axes=axes, **options)
    updates, _ = link.update(g, link.init(W), W)
    return updates


def test_a_gradient_tangent_per_channel_has_each_channel_projected():
    np.testing.assert_allclose(
        decided(G - radial(G, (-1,))), P - radial(P, (-1,)), atol=1e-5
    )


def test_a_gradient_tangent_as_a_whole_has_the_whole_projected():
    g = G - radial(G, ())
    np.testing.assert_allclose(decided(g), P - radial(P, ()), atol=1e-5)


def test_any_other_gradient_leaves_the_direction():
    np.testing.assert_array_equal(decided(G), P)
    np.testing.assert_array_equal(decided(G - radial(G, (-1,)), delta=0.0), P)
    np.testing.assert_array_equal(decided(G - radial(G, (-1,)), axes=None), P)


def test_the_threshold_is_delta_over_the_root_of_the_block():
    tangent = G - radial(G, (-1,))
    lengths = jnp.linalg.norm(tangent, axis=0) / jnp.linalg.norm(W, axis=0)
    for share, passes in ((0.95, True), (1.05, False)):
        cosine = jnp.zeros(5).at[2].set(share * 0.2 / 40**0.5)
        g = tangent + cosine / jnp.sqrt(1 - cosine**2) * lengths * W
        # The whole leaf would pass: it must not be asked, or the wrong part goes.
        by_channel = jnp.allclose(
            decided(g, delta=0.2), P - radial(P, (-1,)), atol=1e-5
        )
        assert by_channel == passes


def test_the_decay_is_times_the_ratio_where_the_test_passes():
    tangent = G - radial(G, (-1,))
    options = {"weight_decay": 0.5, "wd_ratio": 0.25}
    np.testing.assert_allclose(
        decided(tangent, **options) - decided(tangent), 0.125 * W, atol=1e-5
    )
    np.testing.assert_allclose(decided(G, **options) - P, 0.5 * W, atol=1e-5)
    by_path = {"weight_decay": {"^$": 0.5}}
    np.testing.assert_allclose(decided(G, **by_path) - P, 0.5 * W, atol=1e-5)


def test_biases_are_not_tested_and_rows_of_one_element_as_a_whole():
    w = {"bias": jnp.array([1.0, 2.0]), "row": jnp.array([[1.0, 2.0]])}
    g = {"bias": jnp.array([2.0, -1.0]), "row": jnp.array([[2.0, -0.99]])}
    inner = optax.stateless(lambda updates, params: params)
    link = normopt.project_if_invariant(inner)
    updates, _ = link.update(g, link.init(w), w)
    np.testing.assert_array_equal(updates["bias"], w["bias"])
    np.testing.assert_allclose(updates["row"], 0, atol=1e-6)
    whole = normopt.project_if_invariant(inner, channel_axes=())
    updates, _ = whole.update(g, whole.init(w), w)
    np.testing.assert_array_equal(updates["bias"], w["bias"])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e30])
def test_blocks_of_any_size_stay_finite(size, length):
    link = normopt.project_if_invariant(normopt.scale_by_block_adam(), 0.1)
    updates, _ = link.update(size * G, link.init(W), length * W)
    assert jnp.isfinite(updates).all()


def test_the_inner_link_gets_extra_arguments_and_keeps_its_state():
    def update(updates, state, params=None, *, value, **extra_args):
        return updates, state + value

    inner = optax.GradientTransformationExtraArgs(lambda p: jnp.zeros(()), update)
    link = normopt.project_if_invariant(inner)
    _, state = link.update(G, link.init(W), W, value=3.0)
    assert float(state) == 3.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner": "adam"}, TypeError, "wraps an optimizer such as"),
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be at least 0"),
        ({"delta": -1.0}, ValueError, "`delta` must be at least 0"),
        ({"wd_ratio": -1.0}, ValueError, "`wd_ratio` must be at least 0"),
        ({"channel_axes": 1.5}, TypeError, "`channel_axes` must be None or"),
    ],
)
def test_bad_options_are_refused_when_built(options, error, message):
    with pytest.raises(error, match=message):
        normopt.project_if_invariant(**{"inner": optax.identity(), **options})
