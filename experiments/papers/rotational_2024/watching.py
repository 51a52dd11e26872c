"""A network that trains at a constant rate, and what its blocks do meanwhile.

Every batch is drawn from all images anew. Of an epoch whose images come once each the
gradients cancel, the more so the shorter it is: with momentum that is seen in angles.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from experiments import data
from experiments.data.augment import AUGMENTATIONS
from experiments.papers.rotational_2024.arms import ARMS, Config
from experiments.training.images import on_device
from experiments.training.preparation import initial_weights, network_for
from experiments.training.steps import (
    Sums,
    TrainState,
    initial_state,
    make_train_step,
    repeat,
    scans,
)

BATCH = 32
CONVOLUTIONS = r"conv\d*/kernel$"
# Stretches of a run, of each of which a mean is stored; the last half counts.
STRETCHES = 40


class Watched(NamedTuple):
    """State of `watch`: sums over steps of means of squares over blocks, by layer."""

    inner: Any
    length: dict[str, jax.Array]
    angle: dict[str, jax.Array]
    gradient: dict[str, jax.Array]  # of an element, at a length of 1


def watch(
    inner: optax.GradientTransformation, axes: Any
) -> optax.GradientTransformation:
    """Sum up what an optimizer is handed and does, beside doing it.

    Args:
        inner: a complete optimizer.
        axes: those of the blocks of a convolution.
    """

    def blocks(measure: Any, *trees: Any) -> dict[str, jax.Array]:
        """Return a measure of each convolution by path."""
        paths = normopt.leaf_paths(trees[0])
        leaves = zip(paths, *map(jax.tree.leaves, trees), strict=True)
        return {
            path: measure(*arrays)
            for path, *arrays in leaves
            if re.search(CONVOLUTIONS, path)
        }

    def init(params: Any) -> Watched:
        zeros = [blocks(lambda w: jnp.zeros(()), params) for _ in range(3)]
        return Watched(inner.init(params), *zeros)

    def update(gradients: Any, state: Watched, params: Any) -> tuple[Any, Watched]:
        updates, inner_state = inner.update(gradients, state.inner, params)
        after = optax.apply_updates(params, updates)

        def length(w: jax.Array) -> jax.Array:
            return jnp.mean(normopt.block_norms(w, axes) ** 2)

        def angle(w: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.mean(normopt.block_angles(w, new, axes) ** 2)

        def gradient(w: jax.Array, g: jax.Array) -> jax.Array:
            lengths = normopt.block_norms(w, axes)
            size = w.size // lengths.size
            return jnp.mean((lengths * normopt.block_norms(g, axes)) ** 2) / size

        new = (
            blocks(length, params),
            blocks(angle, params, after),
            blocks(gradient, params, gradients),
        )
        sums = jax.tree.map(jnp.add, tuple(state[1:]), new)
        return updates, Watched(inner_state, *sums)

    return optax.GradientTransformation(init, update)


def train(arm: str, seeds: int, model: str, steps: int) -> dict[str, Any]:
    """Train a network on the digits, and compare its blocks with what is predicted.

    Args:
        arm: the optimizer.
        seeds: how many, of the initial weights, the batches and their augmentation.
        model: the network, with batch norm after each convolution.
        steps: how many, a multiple of `STRETCHES`.

    Returns:
        The paths of the layers, and a list of what `compare` finds, one a seed, with
        the share of training images that are told right in the last half.
    """
    images = data.load("digits", None)
    network = network_for(model, images)
    build, (rate, decay) = ARMS[arm].build, ARMS[arm].network or (0.0, 0.0)
    # NovoGrad has a second moment for each layer.
    axes: tuple[int, ...] = () if arm == "NovoGrad" else (-1,)
    per_leaf = {CONVOLUTIONS: list(axes)} if axes else axes
    inner = normopt.make(**build(rate, {CONVOLUTIONS: decay}, per_leaf))
    optimizer = watch(inner, axes)
    step = make_train_step(network, optimizer, AUGMENTATIONS["digits"], BATCH)
    run, pictures = repeat(step, scan=scans()), on_device(images.train)
    stretch, found = steps // STRETCHES, []
    for seed in range(seeds):
        params, model_state = initial_weights(model, images, seed)
        sizes = _sizes(params, axes)
        state = initial_state(params, model_state, optimizer)
        key, order_key = jax.random.split(jax.random.key(seed))
        order = jax.random.randint(order_key, (steps * BATCH,), 0, len(pictures))
        right, squares = [], []
        for _ in range(STRETCHES):
            state, sums = run((state, Sums.zeros()), stretch, key, order, pictures)
            state, seen = _read(state)
            right.append(int(sums.correct) / int(sums.images))
            squares.append({name: sum_ / stretch for name, sum_ in seen.items()})
        one = compare(build(rate, decay, axes), squares, list(sizes.values()))
        found.append({"accuracy": float(np.mean(right[STRETCHES // 2 :])), **one})
    return {"layers": list(sizes), "seeds": found}


def _read(state: TrainState) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Return the sums so far, (layers,), and a state that begins to sum anew."""
    watched = state.opt_state
    sums = {name: getattr(watched, name) for name in Watched._fields[1:]}
    seen = {
        name: np.array([float(layers[path]) for path in sorted(layers)])
        for name, layers in sums.items()
    }
    zeros = jax.tree.map(jnp.zeros_like, sums)
    return state._replace(opt_state=watched._replace(**zeros)), seen


def _sizes(params: Any, axes: Any) -> dict[str, int]:
    """Return the number of elements of a block, by the path of each convolution."""
    leaves = dict(zip(normopt.leaf_paths(params), jax.tree.leaves(params), strict=True))
    paths = sorted(normopt.leaf_paths(params, CONVOLUTIONS))
    blocks = {path: normopt.block_norms(leaves[path], axes).size for path in paths}
    return {path: leaves[path].size // blocks[path] for path in paths}


def compare(
    config: Config, squares: list[dict[str, np.ndarray]], sizes: list[int]
) -> dict[str, Any]:
    """Return what was seen of each layer beside what is predicted.

    Args:
        config: of the optimizer, for one block.
        squares: by stretch and quantity, (layers,).
        sizes: of the blocks of each layer.

    Returns:
        By quantity the root of the mean square over blocks and the last half of the
        stretches, and what is predicted from that of the gradients, a number a layer;
        and by stretch the ratio of measured angles to predicted ones, its geometric
        mean over the layers.
    """

    def root(quantity: str) -> np.ndarray:
        half = [one[quantity] for one in squares[len(squares) // 2 :]]
        return np.sqrt(np.mean(half, axis=0))

    expected = [
        normopt.equilibrium(config, size=size, gradient=float(gradient))
        for size, gradient in zip(sizes, root("gradient"), strict=True)
    ]
    angles = np.array([one.angle for one in expected])
    course = [
        float(np.exp(np.mean(np.log(np.sqrt(one["angle"]) / angles))))
        for one in squares
    ]
    return {
        **{name: root(name).tolist() for name in ("length", "angle", "gradient")},
        "predicted_length": [one.length for one in expected],
        "predicted_angle": angles.tolist(),
        "course": course,
    }
