import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from tests.contract_cases import assert_close, gradients, run, tree

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


STACKS = {"kernel": (3, 5, 4), "conv": (3, 2, 2, 5, 4), "bias": (3, 4), "scale": (3,)}


@pytest.mark.slow("scans over a stack of layers")
@pytest.mark.parametrize(
    "build",
    [
        lambda **axes: normopt.adamp(0.1, weight_decay=0.1, **axes),
        lambda **axes: normopt.sgdp(0.1, 0.9, weight_decay=0.1, **axes),
    ],
    ids=["adamp", "sgdp"],
)
def test_each_layer_of_a_stack_is_tested_by_itself(build):
    """One that fails must not deny the projection to those that pass."""
    stack = tree(STACKS)
    grads = gradients(stack, 3)
    # The first layer's gradients are tangent, the second's radial, the third's neither.
    for g in grads:
        for name, w in stack.items():
            along = jnp.sum(g[name][0] * w[0]) / jnp.sum(w[0] ** 2)
            tangent = g[name][0] - along * w[0]
            g[name] = g[name].at[0].set(tangent).at[1].set(w[1])
    stacked = build(channel_axes=(0, -1), layer_axes=(0,))
    after, _ = run(stacked, stack, grads)
    for layer in range(3):

        def of(some_tree, layer=layer):
            return {name: leaf[layer] for name, leaf in some_tree.items()}

        alone, _ = run(build(), of(stack), [of(g) for g in grads])
        assert_close(of(after), alone, 1e-6)
    with pytest.raises(AssertionError):
        assert_close(run(build(channel_axes=(0, -1)), stack, grads)[0], after, 1e-3)


def test_layers_are_among_the_channels():
    params = {"kernel": jnp.ones((3, 4, 5))}
    with pytest.raises(ValueError, match=r"`layer_axes` = \(0,\) of 'kernel' must be"):
        normopt.adamp(0.1, layer_axes=(0,)).init(params)
    with pytest.raises(TypeError, match="`layer_axes` must be None or"):
        normopt.sgdp(0.1, layer_axes="all")


@pytest.mark.parametrize("build", [normopt.adamp, normopt.sgdp])
def test_the_default_takes_scalars_alone_and_an_explicit_axis_does_not(build):
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    config = normopt.config(build.__name__, learning_rate=0.1)
    for tx in (build(0.1), normopt.make(**json.loads(json.dumps(config)))):
        updates, _ = tx.update(params, tx.init(params), params)
        assert all(jnp.isfinite(u) and u < 0 for u in updates.values())
    with pytest.raises(ValueError, match=r"`channel_axes` = \(-1,\) needs an axis"):
        build(0.1, channel_axes=tuple([-1])).init(params)
