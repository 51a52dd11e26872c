"""A small language model, trained at every rate and from every seed.

All runs of an optimizer are one program, compiled once: what differs between them are
a seed, a learning rate and whether there is a warm-up. As many train side by side as
there are cores, each by itself: under `jax.vmap` five of them took 1.3 times the CPU
time that they took one after another (24 and 19 us a byte, 64 wide).
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import normopt
from experiments.data import stdlib
from experiments.models.transformer import Transformer
from experiments.training.steps import Network, arrays_of, network_of

# Bits of a byte of which nothing is known: what a run that diverged ends with.
LOST = 8.0
HEAD = 32  # numbers in a head of the attention
POINTS = 20  # of a curve

# The blocks of rotational optimizers: what makes one number of each output.
OUTPUTS = {
    "embedding$": (0,),
    "(query|key|value)/kernel$": (1, 2),
    "kernel$": (-1,),
}
# What `normopt.find_scale_invariance` finds in this network.
INVARIANT = {"(query|key)/kernel$": (1,)}

Make = Callable[[optax.Schedule], optax.GradientTransformation]


class Method(NamedTuple):
    """An optimizer and the rates that it is tried at.

    Attributes:
        make: from a schedule to the optimizer, whose other numbers are its defaults.
        middle: the exponent of 10 that the rates lie about: that of the best one in a
            smaller sweep (32 wide, 480 steps).
        prepare: what is done to the initial weights.
    """

    make: Make
    middle: float
    prepare: Callable[[Any], Any] = lambda params: params


def _muon(make: Callable[..., Any], rate: optax.Schedule) -> Any:
    # Steps as long as Adam's, so that both parts have one rate.
    return make(rate, scale="rms", rest=optax.adam(rate))


METHODS: Mapping[str, Method] = {
    "adamw": Method(optax.adamw, -1.7),
    "muon": Method(functools.partial(_muon, normopt.muon), -1.4),
    "hyperball": Method(lambda rate: normopt.hyperball(optax.adam(rate), rate), -1.8),
    "adamsrt": Method(
        functools.partial(normopt.adamsrt, channel_axes=INVARIANT),
        -1.7,
        lambda params: normopt.on_sphere(params, INVARIANT),
    ),
    "rotational": Method(
        lambda rate: normopt.rotational(optax.adam(rate), rate, OUTPUTS),
        -1.6,
        lambda params: normopt.centered(params, OUTPUTS),
    ),
    "novograd": Method(normopt.novograd, -0.8),
    "normalized adam": Method(lambda rate: normopt.normalized(optax.adam(rate)), -1.7),
    "normuon": Method(functools.partial(_muon, normopt.normuon), -1.6),
    "sgd": Method(functools.partial(optax.sgd, momentum=0.9, nesterov=True), -0.2),
}


# Arrays have no hash: a task is itself alone, so that its program is known by it.
@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What one run trains, and on what.

    Attributes:
        text: (bytes,), uint8: trained on.
        held_out: (windows, context + 1), uint8: what the curves are of.
        test: likewise: what the ends are of.
        width: of the network.
        context: bytes that it reads at once.
        batch: windows in a step.
        steps: of the run.
        warm_up: the share of them in which the rate rises, where it does.
    """

    text: jax.Array
    held_out: jax.Array
    test: jax.Array
    width: int
    context: int
    batch: int
    steps: int
    warm_up: float = 0.05


class Runs(NamedTuple):
    """What differs between runs, each (runs,).

    Attributes:
        seeds: of weights and batches.
        rates: the largest learning rates.
        warmed: 1 where the rate rises first, 0 where it starts at the largest.
    """

    seeds: np.ndarray
    rates: np.ndarray
    warmed: np.ndarray


class Ends(NamedTuple):
    """What runs come to, in bits a byte.

    Attributes:
        curves: (runs, `POINTS`), on the held-out windows, evenly spaced.
        ends: (runs,), on the test's.
    """

    curves: np.ndarray
    ends: np.ndarray


def check_multiples(option: str, values: Sequence[int], of: int, most: int) -> None:
    """Raise ValueError at the first value that is no multiple, or out of its range."""
    for value in values:
        if value % of or not of <= value <= most:
            raise ValueError(
                f"`{option}` must be a multiple of {of}, from {of} to {most}, got "
                f"{value}"
            )


def load_task(*, width: int, context: int, batch: int, steps: int) -> Task:
    """Return the standard library's sources; see `Task`."""
    loaded = stdlib.load()

    def windows(text: np.ndarray, count: int) -> jax.Array:
        starts = np.linspace(0, len(text) - context - 1, count).astype(int)
        return jnp.asarray(text[starts[:, None] + np.arange(context + 1)])

    return Task(
        jnp.asarray(loaded.train.text),
        windows(loaded.validation.text, 64),
        windows(loaded.test.text, 512),
        width,
        context,
        batch,
        steps,
    )


def grid(
    seeds: Sequence[int], rates: Sequence[float], warmed: Sequence[int] = (1,)
) -> Runs:
    """Return the runs of all seeds x rates x ways to begin, one after another."""
    each = np.meshgrid(seeds, rates, warmed, indexing="ij")
    return Runs(*(one.ravel() for one in each))


def train_all(method: Method, runs: Runs, task: Task) -> Ends:
    """Train an optimizer from each seed, at each rate.

    Args:
        method: the optimizer.
        runs: what differs between them.
        task: what is trained.
    """
    program = _program(method, task)

    def one(run: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
        seed, rate, warmed = run
        curve, end = program(jnp.uint32(seed), jnp.float32(rate), jnp.float32(warmed))
        return np.asarray(curve, float), np.asarray(end, float)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        curves, ends = zip(*pool.map(one, zip(*runs, strict=True)), strict=True)
    return Ends(np.stack(curves), np.stack(ends))


@functools.cache
def _program(method: Method, task: Task) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def one(seed: jax.Array, rate: jax.Array, warmed: jax.Array) -> Any:
        return _train(method, seed, schedule(rate, warmed, task), task)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    return jax.jit(one).lower(seed, number, number).compile()


def schedule(rate: jax.Array, warmed: jax.Array, task: Task) -> optax.Schedule:
    """Return a rate that rises for a while, or does not, and falls in a line to 0."""

    def at(count: Any) -> jax.Array:
        rising = jnp.minimum(1.0, (count + 1) / (task.warm_up * task.steps))
        falling = 1 - count / task.steps
        return rate * falling * jnp.where(warmed > 0, rising, 1.0)

    return at


def _train(
    method: Method, seed: jax.Array, learning_rate: optax.Schedule, task: Task
) -> tuple[jax.Array, jax.Array]:
    start_key, batch_key = jax.random.split(jax.random.key(seed))
    build = _builder(task.width)
    network = network_of(lambda: build(jax.random.key(0)), None, None)
    params, rest = arrays_of(lambda: build(start_key))
    params = method.prepare(params)
    optimizer = method.make(learning_rate)
    places = jnp.arange(task.context + 1)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        last = len(task.text) - task.context - 1
        starts = jax.random.randint(key, (task.batch, 1), 0, last + 1)
        windows = task.text[starts + places]
        gradients = jax.grad(_loss)(params, network, rest, windows)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, bits_per_byte(carry[0], network, rest, task.held_out)

    keys = jax.random.split(batch_key, (POINTS, task.steps // POINTS))
    carry, curve = jax.lax.scan(stretch, (params, optimizer.init(params)), keys)
    return curve, bits_per_byte(carry[0], network, rest, task.test)


def _builder(width: int) -> Callable[[jax.Array], nnx.Module]:
    def build(key: jax.Array) -> nnx.Module:
        return Transformer(2, width, width // HEAD, num_classes=256, rngs=nnx.Rngs(key))

    return build


def _loss(params: Any, network: Network, rest: Any, windows: jax.Array) -> jax.Array:
    windows = windows.astype(jnp.int32)
    logits = network.evaluate(params, rest, windows[:, :-1])
    following = windows[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()


def bits_per_byte(
    params: Any, network: Network, rest: Any, windows: jax.Array
) -> jax.Array:
    """Return the bits a byte that windows take, `LOST` at most and where not finite.

    Args:
        params: of the network.
        network: what reads them.
        rest: of what the network keeps.
        windows: (windows, context + 1), bytes.
    """
    bits = _loss(params, network, rest, windows) / jnp.log(2.0)
    return jnp.where(jnp.isfinite(bits), jnp.minimum(bits, LOST), LOST)
