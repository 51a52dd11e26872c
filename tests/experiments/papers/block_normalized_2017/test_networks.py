"""The two networks: their size, what dropout leaves out, and the L2 term."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from experiments.data.augment import Augmentation
from experiments.models.cnn import CNN
from experiments.models.mlp import MLP
from experiments.training.images import Images
from experiments.training.steps import (
    Sums,
    compiled_quickly,
    create,
    initial_state,
    make_train_step,
)

SMALL = {
    MLP: {"layers": 2, "width": 64},
    CNN: {"widths": (8,), "hidden": 64},
}


def made(kind, **changes):
    """A small network for grey images of 8 x 8 that it does not normalise."""
    settings = {**SMALL[kind], **changes, "num_classes": 10, "channels": 1}
    return create(
        lambda: kind(8, **settings, rngs=nnx.Rngs(0)), np.zeros(1), np.ones(1)
    )


def images_of(n=16):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8)
    return jnp.asarray(pixels), jnp.asarray(random.integers(0, 10, n))


def shapes(kind, size, channels):
    model = nnx.eval_shape(
        lambda: kind(size, num_classes=10, channels=channels, rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_the_mlp_has_thirty_normalised_layers_of_128():
    params = shapes(MLP, 28, 1)
    assert len(params["layers"]) == 30
    first, others = 784 * 128 + 128, 29 * (128 * 128 + 128)
    norms, head = 30 * 2 * 128, 128 * 10 + 10
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The second is what the notebook prints.
    assert total == first + others + norms + head == 588_298
    assert "layers/29/dense/kernel" in normopt.leaf_paths(params)


def test_the_cnn_has_four_convolutions_and_two_dense_layers():
    params = shapes(CNN, 32, 3)
    kernels = [9 * a * b for a, b in ((3, 32), (32, 32), (32, 64), (64, 64))]
    kernels += [6 * 6 * 64 * 512, 512 * 10]
    biases = 32 + 32 + 64 + 64 + 512 + 10
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The second is what the notebook prints.
    assert total == sum(kernels) + biases == 1_250_858
    assert "stages/1/first/kernel" in normopt.leaf_paths(params)


@pytest.mark.parametrize("kind", SMALL)
def test_dropout_draws_anew_at_each_batch_and_never_in_evaluation(kind):
    network, params, state = made(kind)
    images, _ = images_of()
    trained, tested = (
        compiled_quickly(network.train),
        compiled_quickly(network.evaluate),
    )
    first, after = trained(params, state, images)
    again, _ = trained(params, state, images)
    np.testing.assert_array_equal(first, again)
    keys = {name: after[name] for name in after if name.endswith("dropout")}
    assert keys
    later = {**state, **keys}
    second, _ = trained(params, later, images)
    assert np.abs(first - second).max() > 0.1
    outputs = [tested(params, one, images) for one in (state, later)]
    np.testing.assert_array_equal(*outputs)
    assert np.abs(first - outputs[0]).max() > 0.1


@pytest.mark.slow("compiles a network")
def test_a_fifth_of_each_layer_is_left_out():
    """With a head that counts, and hidden layers whose outputs are all one."""
    width = 4096
    network, params, state = made(MLP, layers=1, width=width)
    norm = params["layers"][0]["norm"]
    norm["scale"], norm["bias"] = jnp.zeros(width), jnp.ones(width)
    params["head"]["kernel"] = jnp.ones((width, 10))
    kept, _ = network.train(params, state, images_of()[0])
    # What is kept is scaled up by 1 / 0.8; three deviations of a binomial's mean.
    np.testing.assert_allclose(0.8 * kept / width, 0.8, atol=3 * 0.4 / width**0.5)
    assert np.ptp(kept[:, 0]) > 0
    every = network.evaluate(params, state, images_of()[0])
    np.testing.assert_allclose(every, width)


def stepped(l2, optimizer):
    network, params, model_state = made(MLP, l2=l2)
    data = Images.of(*images_of())
    step = make_train_step(network, optimizer, Augmentation(), batch_size=16)
    carry = (initial_state(params, model_state, optimizer), Sums.zeros())
    state, sums = compiled_quickly(step)(carry, jax.random.key(0), jnp.arange(16), data)
    return params, state.params, sums


@pytest.mark.slow("compiles a network")
def test_the_l2_term_pulls_at_the_hidden_kernels_alone():
    before, plain, sums = stepped(0.0, optax.sgd(1.0))
    _, decayed, others = stepped(1e-2, optax.sgd(1.0))
    paths = normopt.leaf_paths(before)
    assert sum(path.endswith("kernel") for path in paths) == 3
    for path, w, with_none, with_l2 in zip(
        paths, *map(jax.tree.leaves, (before, plain, decayed)), strict=True
    ):
        pull = 2e-2 * w if path.endswith("dense/kernel") else 0
        np.testing.assert_allclose(with_none - with_l2, pull, atol=2e-6)
    # The loss on record is the cross-entropy, which figures compare.
    assert float(sums.loss) == pytest.approx(float(others.loss), rel=1e-6)
    assert float(sums.loss) > 0


@pytest.mark.slow("compiles a network")
def test_the_l2_term_is_normalized_with_the_gradient():
    """A term that outweighs the loss gives steps along the weights, of unit size."""
    before, after, _ = stepped(1e6, normopt.normalized(optax.sgd(0.5), norm="max"))
    w = before["layers"][1]["dense"]["kernel"]
    moved = w - after["layers"][1]["dense"]["kernel"]
    np.testing.assert_allclose(moved, 0.5 * w / jnp.abs(w).max(), atol=1e-4)
