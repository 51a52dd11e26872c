"""One training step and one evaluation step as pure functions, and how to repeat them.

The same step function serves a single dispatch on CPU and a scanned stretch on an
accelerator; nothing in it knows which.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.data.augment import Augment
from experiments.training import skipping

EVALUATION_BATCH = 500
NEVER = -1


class TrainState(NamedTuple):
    """What the next step needs; a checkpoint holds this and nothing else.

    The order of the images and the keys of their augmentation follow from the seed and
    `step`: they come back with it, and the seed is in the configuration that names the
    run's folder.
    """

    params: Any  # tree of float32
    model_state: Any  # tree: BatchNorm's running statistics, dropout's random key
    opt_state: Any
    step: jax.Array  # int32 scalar: steps done
    first_bad_step: jax.Array  # int32 scalar: the step that stops the run, or -1
    best: Any = None  # `selection.Best`, where the best weights are kept


class Sums(NamedTuple):
    """Sums over the images since the last record, without those of skipped steps."""

    loss: jax.Array  # float32 scalar
    correct: jax.Array  # int32 scalar
    images: jax.Array  # int32 scalar

    @classmethod
    def zeros(cls) -> "Sums":
        """Return empty sums, each in a buffer of its own so that all can be donated."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Network(NamedTuple):
    """A model without its arrays: what a step needs to apply it to some."""

    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    mean: jax.Array | None  # (channels,) float32; None: inputs go in as they are
    std: jax.Array | None  # (channels,) float32

    def train(self, params: Any, model_state: Any, images: jax.Array):
        """Return logits (n, classes) and the new model state for uint8 images."""
        model = nnx.merge(self.train_graph, params, model_state)
        logits = model(self._normalise(images)).astype(jnp.float32)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    def evaluate(self, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        """Return logits (n, classes) for uint8 images, by running statistics."""
        model = nnx.merge(self.eval_graph, params, model_state)
        return model(self._normalise(images)).astype(jnp.float32)

    def penalty(self, params: Any, model_state: Any) -> jax.Array | float:
        """Return what the model adds to the loss, such as an L2 term; 0 if nothing."""
        model = nnx.merge(self.train_graph, params, model_state)
        return model.penalty() if hasattr(model, "penalty") else 0.0

    def _normalise(self, images: jax.Array) -> jax.Array:
        if self.mean is None:
            return images
        return (images.astype(jnp.float32) - self.mean) / self.std


def create(
    build: Callable[[], nnx.Module], mean: Any, std: Any
) -> tuple[Network, Any, Any]:
    """Build a model in one compilation, taken apart.

    Args:
        build: makes the model.
        mean: of the training images, (channels,).
        std: of the training images, (channels,).

    Returns:
        The network, its parameters and its other state.
    """
    return network_of(build, mean, std), *compiled_quickly(lambda: arrays_of(build))()


def network_of(
    build: Callable[[], nnx.Module], mean: Any, std: Any, dtype: Any = None
) -> Network:
    """Return a model without its arrays.

    Args:
        build: makes the model.
        mean: of the training images, (channels,); None for inputs that go in as they
            are.
        std: of the training images, (channels,), or None.
        dtype: what its layers compute in, with float32 parameters and statistics; None:
            what they were built for.
    """
    model = nnx.eval_shape(build)
    if dtype is not None:
        for _, module in nnx.iter_modules(model):
            if hasattr(module, "dtype"):
                module.dtype = dtype
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    train_graph = nnx.graphdef(model)
    mean, std = jax.tree.map(jnp.asarray, (mean, std))
    return Network(train_graph, eval_graph, mean, std)


def compiled_quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a jitted function that XLA does not optimize, to be run a few times.

    Initial weights take 3 to 8 times as long to compile where it does. The last bits of
    some numbers depend on it.

    Args:
        function: what is run. JAX refuses options of a compiler inside another trace.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def arrays_of(build: Callable[[], nnx.Module]) -> tuple[Any, Any]:
    """Return the parameters and the other state of a model that `build` makes."""
    _, params, model_state = nnx.split(build(), nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def initial_state(
    params: Any, model_state: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        params,
        model_state,
        optimizer.init(params),
        jnp.zeros((), jnp.int32),
        jnp.full((), NEVER, jnp.int32),
    )


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    augmentation: Augment,
    batch_size: int,
) -> Callable[..., tuple[TrainState, Sums]]:
    """Build one training step.

    Args:
        network: the model.
        optimizer: what turns gradients into updates.
        augmentation: applied to each batch.
        batch_size: images in a batch.

    Returns:
        `step((state, sums), key, order, data) -> (state, sums)`: `data` are `Images`,
        `order` is the epoch's order of them, and the batch and its random numbers
        follow from `key` and `state.step` alone. Where the optimizer skips a step, so
        does all else: the model's state stays as it is, and the images do not count in
        the sums. Those are of the cross-entropy alone; the gradient is that of what the
        model adds, too.
    """

    def step(carry, key, order, data):
        state, sums = carry
        start = state.step % (len(order) // batch_size) * batch_size
        indices = jax.lax.dynamic_slice(order, (start,), (batch_size,))
        augment = functools.partial(augmentation, jax.random.fold_in(key, state.step))
        images, labels = data.take(indices, augment)

        def loss_fn(params):
            logits, model_state = network.train(params, state.model_state, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            cross_entropy = losses.mean()
            loss = cross_entropy + network.penalty(params, state.model_state)
            return loss, (cross_entropy, logits, model_state)

        (loss, (cross_entropy, logits, model_state)), gradients = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        skips = skipping.skips(state.opt_state)
        if skips:
            finite = skipping.all_finite((loss, model_state))
            gradients = skipping.spoiled_unless(finite, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        counted = Sums(
            sums.loss + cross_entropy * batch_size,
            sums.correct + jnp.sum(logits.argmax(-1) == labels),
            sums.images + batch_size,
        )
        bad = ~jnp.isfinite(loss)
        if skips:
            model_state, counted = jax.tree.map(
                lambda new, old: jnp.where(opt_state.last_finite, new, old),
                (model_state, counted),
                (state.model_state, sums),
            )
            bad = skipping.gives_up(opt_state)
        done = state.step + 1
        first = bad & (state.first_bad_step == NEVER)
        return TrainState(
            optax.apply_updates(state.params, updates),
            model_state,
            opt_state,
            done,
            jnp.where(first, done, state.first_bad_step),
            state.best,
        ), counted

    return step


def make_evaluation_step(
    network: Network, multiple: int = 1
) -> Callable[..., tuple[jax.Array, Sums]]:
    """Build `step((batch, sums), params, model_state, data) -> (batch + 1, sums)`.

    The data are `Images`. Batches have one shape: the last one repeats the last image
    and does not count it.

    Args:
        network: the model.
        multiple: what the images in a batch are a multiple of.
    """

    def step(carry, params, model_state, data):
        batch, sums = carry
        size = min(EVALUATION_BATCH, len(data))
        size = -(-size // multiple) * multiple
        indices = batch * size + jnp.arange(size)
        counted = indices < len(data)
        images, labels = data.take(jnp.minimum(indices, len(data) - 1))
        logits = network.evaluate(params, model_state, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # Of a text, a window has a loss for each place.
        losses = losses.reshape(size, -1).mean(1)
        hits = jnp.sum((logits.argmax(-1) == labels).reshape(size, -1), axis=1)
        sums = Sums(
            sums.loss + jnp.sum(jnp.where(counted, losses, 0)),
            sums.correct + jnp.sum(jnp.where(counted, hits, 0)),
            sums.images + jnp.sum(counted),
        )
        return batch + 1, sums

    return step


def scans() -> bool:
    """Return whether `repeat` does well to scan, which it does but on CPUs."""
    return jax.default_backend() != "cpu"


def repeat(
    step: Callable[..., Any], *, scan: bool, wait: bool = False
) -> Callable[..., Any]:
    """Return `run(carry, count, *args, tick)`, which applies `step` `count` times.

    The carry's buffers are donated. `tick(n)` is called after each dispatch of n steps.

    Args:
        step: `step(carry, *args) -> carry`.
        scan: whether all steps run inside one jitted `lax.scan`, which spares an
            accelerator the dispatches. On CPU each step is dispatched by itself:
            XLA's convolution gradients are about 3 times slower inside a loop there.
        wait: whether to wait for each dispatch, after its tick; see
            `Placement.emulated`.

    Returns:
        The function; without `wait` it waits for nothing.
    """

    def stretch(carry, count, *args):
        if not scan:
            return step(carry, *args)
        return jax.lax.scan(lambda c, _: (step(c, *args), None), carry, length=count)[0]

    jitted = jax.jit(stretch, static_argnums=1, donate_argnums=0)
    per_dispatch = (lambda count: count) if scan else (lambda count: 1)

    def run(carry, count, *args, tick=lambda steps: None):
        steps = per_dispatch(count)
        for _ in range(count // steps):
            carry = jitted(carry, steps, *args)
            tick(steps)
            if wait:
                jax.block_until_ready(carry)
        return carry

    return run
