"""The transformer: causal, turned by places alone, one network in two forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from experiments.models import LANGUAGE_MODELS
from experiments.models.transformer import Transformer, rotated
from experiments.training.steps import create

TOKENS = 11
QUERIES_AND_KEYS = {"query", "key"}


@functools.cache
def tiny(layers=1, **options):
    build = functools.partial(Transformer, layers, 8, 2, **options)
    return create(lambda: build(num_classes=TOKENS, rngs=nnx.Rngs(0)), None, None)


def tokens(n=2, length=6):
    return jax.random.randint(jax.random.key(1), (n, length), 0, TOKENS)


def test_no_place_sees_a_later_one():
    network, params, rest = tiny()
    before = tokens()
    after = before.at[:, 4].add(1) % TOKENS
    evaluate = jax.jit(network.evaluate)
    one, other = (evaluate(params, rest, some) for some in (before, after))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert jnp.all(jnp.any(one[:, 4:] != other[:, 4:], axis=-1))


def test_scores_depend_on_how_far_two_places_are_apart():
    vectors = jax.random.normal(jax.random.key(0), (2, 8))
    # The same two vectors at each of nine places.
    query, key = (rotated(jnp.tile(one, (1, 9, 1, 1))) for one in vectors)
    scores = jnp.einsum("nqhd,nkhd->qk", query, key)
    for apart in (0, 1, 5):
        np.testing.assert_allclose(np.diag(scores, apart), scores[0, apart], rtol=1e-5)
    assert jnp.abs(scores[0, 1] - scores[0, 5]) > 1e-2
    np.testing.assert_array_equal(query[:, 0, 0], vectors[:1])


@pytest.mark.parametrize(
    "gated", [True, pytest.param(False, marks=pytest.mark.slow("again without gates"))]
)
def test_scanned_layers_are_the_same_network(gated):
    network, params, rest = tiny(layers=2, gated=gated)
    scanned, stack, _ = tiny(layers=2, gated=gated, scanned=True)
    layers = params["layers"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), layers[0], layers[1])
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, stack["layers"])
    np.testing.assert_allclose(
        scanned.evaluate({**params, "layers": stacked}, rest, tokens()),
        network.evaluate(params, rest, tokens()),
        rtol=1e-5,
        atol=1e-6,
    )
    # Each layer of the stack begins with weights of its own.
    for leaf in jax.tree.leaves(stack["layers"]["attention"]["query"]):
        assert jnp.any(leaf[0] != leaf[1])


def found(**options):
    network, params, rest = tiny(**options)
    inputs = tokens(4)

    def loss(params):
        logits = network.train(params, rest, inputs[:, :-1])[0]
        following = inputs[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    axes = normopt.find_scale_invariance(loss, params)
    return {normopt.leaf_paths(params, rule)[0]: own for rule, own in axes.items()}


def test_the_loss_ignores_the_length_of_queries_and_keys_alone():
    kernels = {f"layers/0/attention/{name}/kernel" for name in QUERIES_AND_KEYS}
    assert found() == dict.fromkeys(kernels, (1,))


@pytest.mark.slow("searches that take seconds each")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"qk_norm": False}, {}),
        (
            {"layers": 2, "scanned": True},
            {f"layers/attention/{n}/kernel": (0, 2) for n in QUERIES_AND_KEYS},
        ),
    ],
)
def test_without_norms_it_ignores_none_and_of_a_stack_each_layers(options, expected):
    assert found(**options) == expected


@pytest.mark.parametrize(
    ("name", "weights"), [("nano", 0.14e6), ("micro", 0.4e6), ("small", 26e6)]
)
def test_sizes(name, weights):
    shapes = nnx.eval_shape(
        lambda: LANGUAGE_MODELS[name](num_classes=256, rngs=nnx.Rngs(0))
    )
    leaves = jax.tree.leaves(nnx.state(shapes, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == pytest.approx(weights, rel=0.05)


@pytest.mark.parametrize("nothing", ["layers", "width", "heads"])
def test_a_network_of_nothing_is_refused(nothing):
    sizes = {"layers": 1, "width": 8, "heads": 2, nothing: 0}
    with pytest.raises(ValueError, match=f"at least 1, got .*{nothing}=0"):
        Transformer(**sizes, num_classes=2, rngs=nnx.Rngs(0))
