"""Training steps and optimizer steps on many devices, lowered from shapes alone.

The mesh, as `placement` makes it, may be of devices that are not there. What lies where
is in the sharding of each `jax.ShapeDtypeStruct`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

import normopt
from experiments.data.augment import AUGMENTATIONS
from experiments.models import MODELS
from experiments.training import steps
from experiments.training.images import Images
from experiments.training.placement import Gathering, at, split_before, whole

# Of CIFAR-10: what the shapes of the step hang on.
TRAINING_IMAGES, IMAGE, CLASSES = 50_000, (32, 32, 3), 10
COMPUTE = jnp.bfloat16


def abstract_model(model: str) -> tuple[steps.Network, Any, Any]:
    """Return a network that computes in `COMPUTE`, and the shapes of its arrays."""

    def build():
        rngs = nnx.Rngs(0)
        return MODELS[model](num_classes=CLASSES, channels=IMAGE[-1], rngs=rngs)

    mean, std = np.zeros(IMAGE[-1], np.float32), np.ones(IMAGE[-1], np.float32)
    network = steps.network_of(build, mean, std, COMPUTE)
    return network, *jax.eval_shape(lambda: steps.arrays_of(build))


def lower_training_step(
    network: steps.Network,
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch_size: int,
) -> jax.stages.Lowered:
    """Lower the training step of CIFAR-10, whose state is donated."""
    augmentation = split_before(AUGMENTATIONS["cifar10"], mesh)

    def arguments(params, model_state):
        return (
            steps.initial_state(params, model_state, optimizer),
            steps.Sums.zeros(),
        ), (
            jax.random.key(0),
            jnp.zeros(TRAINING_IMAGES, jnp.int32),
            Images.of(
                jnp.zeros((TRAINING_IMAGES, *IMAGE), jnp.uint8),
                jnp.zeros(TRAINING_IMAGES, jnp.int32),
            ),
        )

    (state, sums), others = at(
        jax.eval_shape(arguments, params, model_state), whole(mesh)
    )
    opt_state = at(state.opt_state, normopt.state_sharding(optimizer, params))
    carry = state._replace(params=params, opt_state=opt_state), sums
    step = steps.make_train_step(
        Gathering(network, mesh, COMPUTE), optimizer, augmentation, batch_size
    )
    return lower(step, carry, *others)


def lower_optimizer_step(optimizer: Any, params: Any) -> jax.stages.Lowered:
    """Lower `update` and `apply_updates`, whose parameters and state are donated."""
    state = at(
        jax.eval_shape(optimizer.init, params),
        normopt.state_sharding(optimizer, params),
    )

    def step(carry, gradients):
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return lower(step, (params, state), params)


def lower(step: Any, carry: Any, *others: Any) -> jax.stages.Lowered:
    """Lower `step(carry, *others) -> carry`, which leaves the carry where it lies."""
    places = jax.tree.map(lambda leaf: leaf.sharding, carry)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=places)
    return jitted.lower(carry, *others)


def size_of_shard(params: Any) -> int:
    """Return how many numbers of the parameters lie on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(params)
    )
