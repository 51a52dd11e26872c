"""The models have the shapes, paths and parameter counts of their paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normopt
from experiments.models import MODELS, resnet20, vgg
from experiments.models.resnet import BasicBlock, Padding, Projection
from experiments.training.steps import compiled_quickly, create


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


def shapes_of_resnet18():
    model = nnx.eval_shape(
        lambda: MODELS["resnet18"](num_classes=10, channels=3, rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_resnet18_has_the_parameters_of_the_benchmark():
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes_of_resnet18())]
    widths = (64, 128, 256, 512)
    stem, head = 27 * 64, 512 * 10 + 10
    firsts = sum(9 * (a * b + b * b) + a * b for a, b in itertools.pairwise(widths))
    others = 9 * 2 * (2 * 64**2 + 128**2 + 256**2 + 512**2)
    # Two vectors a norm: the stem's, four a stage, and one a projection.
    norms = 2 * (64 + 4 * sum(widths) + sum(widths[1:]))
    assert sum(sizes) == stem + firsts + others + norms + head == 11_173_962


def test_resnet18_projects_where_the_shape_changes_and_nowhere_else():
    params = shapes_of_resnet18()
    kernels = normopt.leaf_paths(params, "shortcut/.*kernel")
    assert kernels == [f"stages/{stage}/0/shortcut/conv/kernel" for stage in (1, 2, 3)]
    shape = params["stages"][2][0]["shortcut"]["conv"]["kernel"].shape
    assert shape == (1, 1, 128, 256)


@pytest.mark.parametrize("shortcut", [Padding, Projection])
@pytest.mark.parametrize("size", [7, 8])
def test_a_shortcut_has_the_shape_of_what_it_leads_around(shortcut, size):
    def outputs(images):
        block = BasicBlock(3, 8, 2, shortcut=shortcut, rngs=nnx.Rngs(0))
        return block(images), block.shortcut(images)

    block, around = jax.eval_shape(outputs, jnp.zeros((2, size, size, 3)))
    assert block.shape == around.shape == (2, 4, 4, 8)


def test_padding_adds_zeros_on_both_sides_of_every_second_pixel():
    images = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    padded = Padding(1, 4, 2, rngs=nnx.Rngs(0))(images)
    np.testing.assert_array_equal(padded[0, :, :, 1], [[1, 3], [7, 9]])
    np.testing.assert_array_equal(padded[..., np.array([0, 2, 3])], 0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 28, 28, 1), (2, 32, 32, 3)])
def test_any_image_size(name, shape):
    def logits(images):
        model = MODELS[name](num_classes=7, channels=shape[-1], rngs=nnx.Rngs(0))
        return model(images)

    assert jax.eval_shape(logits, jnp.zeros(shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "widths"), [("resnet20", [16, 32, 64]), ("resnet18", [64, 128, 256, 512])]
)
def test_each_later_stage_halves_the_image(name, widths):
    def outputs(images):
        model = MODELS[name](num_classes=10, channels=3, rngs=nnx.Rngs(0))
        x, after = model.stem(images), []
        for stage in model.stages:
            for block in stage:
                x = block(x)
            after.append(x)
        return after

    outputs = jax.eval_shape(outputs, jnp.zeros((1, 32, 32, 3)))
    assert [x.shape[1] for x in outputs] == [32, 16, 8, 4][: len(widths)]
    assert [x.shape[-1] for x in outputs] == widths


def test_only_training_changes_the_running_statistics(grey):
    network, params, before = grey
    images = images_of(1)
    logits, after = compiled_quickly(network.train)(params, before, images)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved))
    evaluate = compiled_quickly(network.evaluate)
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
        compiled_quickly(network.evaluate)(params, state, images),
        compiled_quickly(plain.evaluate)(params, state, by_hand),
        rtol=1e-4,
        atol=1e-5,
    )


def shapes_of_vgg16():
    model = nnx.eval_shape(
        lambda: MODELS["vgg16"](num_classes=10, channels=3, rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_vgg16_has_thirteen_convolutions_and_one_linear_layer():
    params = shapes_of_vgg16()
    widths = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)
    kernels = [(3, 3, a, b) for a, b in itertools.pairwise((3, *widths))]
    found = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert found == kernels
    assert normopt.leaf_paths(params, "head") == ["head/bias", "head/kernel"]
    assert params["head"]["kernel"].shape == (512, 10)
    # Nothing else but two vectors a norm: no bias before one.
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    convolutions = sum(9 * a * b for a, b in itertools.pairwise((3, *widths)))
    assert sum(sizes) == convolutions + 2 * sum(widths) + 5130 == 14_724_042


@pytest.mark.parametrize(
    ("size", "sizes"), [(32, [32, 16, 8, 4, 2]), (7, [7, 4, 2, 1, 1])]
)
def test_vgg_halves_the_image_after_each_stage(monkeypatch, size, sizes):
    pool, seen = nnx.max_pool, []

    def recorded(x, *args, **kwargs):
        seen.append(x.shape[1])
        return pool(x, *args, **kwargs)

    monkeypatch.setattr(vgg.nnx, "max_pool", recorded)

    def logits(images):
        return MODELS["vgg16"](num_classes=10, channels=3, rngs=nnx.Rngs(0))(images)

    assert jax.eval_shape(logits, jnp.zeros((2, size, size, 3))).shape == (2, 10)
    assert seen == sizes
