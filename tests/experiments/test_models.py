"""The models have the shapes, paths and parameter counts of their paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normopt
from experiments.models import MODELS, resnet20
from experiments.steps import create


def build(channels=3, num_classes=10):
    return resnet20(num_classes=num_classes, channels=channels, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def grey():
    """A network for grey images that it does not normalise, and its arrays."""
    return create(lambda: build(1), np.zeros(1), np.ones(1))


def images_of(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels))
    return jnp.asarray(pixels, jnp.uint8)


def test_resnet20_has_the_parameters_of_the_paper(grey):
    sizes = [leaf.size for leaf in jax.tree.leaves(grey[1])]
    # 19 convolutions (0.268M), two vectors each for BatchNorm, and the 64 x 10 head.
    convolutions = 9 * 16 + 9 * (6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    assert sum(sizes) == convolutions + 2 * 7 * 16 + 2 * 6 * (32 + 64) + 650


def test_paths_read_well(grey):
    paths = normopt.leaf_paths(grey[1])
    assert {
        "stem/conv/kernel",
        "stem/norm/scale",
        "stages/0/0/conv1/kernel",
        "stages/2/2/norm2/bias",
        "head/kernel",
        "head/bias",
    } <= set(paths)
    # 19 convolutions, 19 norms of two vectors, and the head's two arrays.
    assert len(paths) == 19 + 2 * 19 + 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 28, 28, 1), (2, 32, 32, 3)])
def test_any_image_size(name, shape):
    def logits(images):
        model = MODELS[name](num_classes=7, channels=shape[-1], rngs=nnx.Rngs(0))
        return model(images)

    assert jax.eval_shape(logits, jnp.zeros(shape)).shape == (2, 7)


def test_each_later_stage_halves_the_image():
    def outputs(images):
        model = build()
        x, after = model.stem(images), []
        for stage in model.stages:
            for block in stage:
                x = block(x)
            after.append(x)
        return after

    shapes = [x.shape for x in jax.eval_shape(outputs, jnp.zeros((1, 32, 32, 3)))]
    assert shapes == [(1, 32, 32, 16), (1, 16, 16, 32), (1, 8, 8, 64)]


def test_only_training_changes_the_running_statistics(grey):
    network, params, before = grey
    images = images_of(1)
    logits, after = jax.jit(network.train)(params, before, images)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved))
    evaluate = jax.jit(network.evaluate)
    evaluated = evaluate(params, before, images)
    assert not np.allclose(logits, evaluated)
    # One image's logits do not depend on its neighbours, up to float32 rounding.
    alone = evaluate(params, before, images[:1])
    np.testing.assert_allclose(evaluated[:1], alone, rtol=1e-3, atol=1e-3)


def test_images_are_normalised(grey):
    plain, params, state = grey
    network = plain._replace(mean=jnp.array([3.0]), std=jnp.array([4.0]))
    images = images_of(1)
    by_hand = (images.astype(jnp.float32) - 3) / 4
    # Float32 rounding through twenty layers.
    np.testing.assert_allclose(
        jax.jit(network.evaluate)(params, state, images),
        jax.jit(plain.evaluate)(params, state, by_hand),
        rtol=1e-4,
        atol=1e-5,
    )
