"""Training steps and optimizer steps on many devices, lowered from shapes alone.

The mesh may be of devices that are not there. It has one axis, over which a batch is
split; what lies where is in the sharding of each `jax.ShapeDtypeStruct`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import normopt
from experiments import steps
from experiments.augment import AUGMENTATIONS
from experiments.models import MODELS

# Of CIFAR-10: what the shapes of the step hang on.
TRAINING_IMAGES, IMAGE, CLASSES = 50_000, (32, 32, 3), 10
COMPUTE = jnp.bfloat16


class Gathering(NamedTuple):
    """A network that computes on whole copies of the weights, in `COMPUTE`."""

    network: steps.Network
    everywhere: NamedSharding

    def train(self, params: Any, model_state: Any, images: jax.Array):
        """Return logits and the new model state, as `Network.train` does."""
        # Cast first: what travels between the chips is half as large.
        params = jax.tree.map(lambda leaf: leaf.astype(COMPUTE), params)
        params = jax.lax.with_sharding_constraint(params, self.everywhere)
        return self.network.train(params, model_state, images)


def abstract_model(model: str) -> tuple[steps.Network, Any, Any]:
    """Return a network that computes in `COMPUTE`, and the shapes of its arrays."""

    def build():
        rngs = nnx.Rngs(0)
        return MODELS[model](num_classes=CLASSES, channels=IMAGE[-1], rngs=rngs)

    mean, std = np.zeros(IMAGE[-1], np.float32), np.ones(IMAGE[-1], np.float32)
    network = steps.network_of(build, mean, std, COMPUTE)
    return network, *jax.eval_shape(lambda: steps.arrays_of(build))


def replicated(params: Any, mesh: Any) -> Any:
    """Return the parameters whole on each device, for data-parallel training."""
    return at(params, NamedSharding(mesh, PartitionSpec()))


def fully_sharded(params: Any, mesh: Any) -> Any:
    """Return each parameter split along its longest axis that the devices divide.

    Of equally long axes it is the last. Without one the parameter stays whole.
    """

    def place(leaf):
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % mesh.size == 0]
        if not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, *mesh.axis_names))

    return at(params, jax.tree.map(place, params))


def at(tree: Any, shardings: Any) -> Any:
    """Return the shapes of a tree at the places of another one, or all at one."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def lower_training_step(
    network: steps.Network,
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch_size: int,
) -> jax.stages.Lowered:
    """Lower the training step of CIFAR-10, whose state is donated."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))

    def augmentation(key, images):
        # All that follows from a batch is split as the batch is.
        images = jax.lax.with_sharding_constraint(images, split)
        return AUGMENTATIONS["cifar10"](key, images)

    def arguments(params, model_state):
        return (
            steps.initial_state(params, model_state, optimizer),
            steps.Sums.zeros(),
        ), (
            jax.random.key(0),
            jnp.zeros(TRAINING_IMAGES, jnp.int32),
            steps.Images(
                jnp.zeros((TRAINING_IMAGES, *IMAGE), jnp.uint8),
                jnp.zeros(TRAINING_IMAGES, jnp.int32),
            ),
        )

    (state, sums), others = at(
        jax.eval_shape(arguments, params, model_state), everywhere
    )
    opt_state = at(state.opt_state, normopt.state_sharding(optimizer, params))
    carry = state._replace(params=params, opt_state=opt_state), sums
    step = steps.make_train_step(
        Gathering(network, everywhere), optimizer, augmentation, batch_size
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
