"""Time the search for scale-invariant weights beside one gradient of the same network.

    python -m experiments invariance_time

takes about a minute on two CPU cores. A row is a network, its parameters and leaves,
the seconds of one compiled gradient and of a whole search with its two compilations,
how many gradients and losses that took, and how many leaves it found. The bars, on two
quiet cores: ResNet-18 and VGG-16 under 20 seconds, a transformer of nine million
parameters under 15, ResNet-20 on digits under 5. There the searches took 8, 16, 8 and 3
seconds with sixteen images; with four, by `--images 4`, 7 and 8 on ResNet-18 and
VGG-16.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

import normopt
from experiments.models import MODELS
from experiments.training import devices
from experiments.training.measuring import check_least, one_line_errors

_WORDS = 5000
_COLUMNS = (
    *("network", "parameters", "leaves", "s a gradient", "s a search"),
    *("gradients", "losses", "found"),
)


class Case(NamedTuple):
    """A loss, and what it is called with."""

    loss: Callable[..., jax.Array]
    params: Any
    args: tuple[Any, ...]


def _images(model: str, count: int, size: int = 32, channels: int = 3) -> Case:
    """Return a model of this project on a batch of random images."""
    network = MODELS[model](num_classes=10, channels=channels, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, rest, copy=True)(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    images = jax.random.normal(jax.random.key(1), (count, size, size, channels))
    return Case(loss, params, (rest, images, jnp.arange(count) % 10))


def transformer(layers: int = 8, width: int = 256, words: int = _WORDS) -> Case:
    """Return a transformer that normalizes queries and keys, on random words.

    Args:
        layers: how many there are, each with an attention of four heads and a GELU.
        width: of the residual stream; the hidden layers are four times as wide.
        words: how many different ones there are.
    """
    shapes = {name: (width, 4, width // 4) for name in ("query", "key", "value")}
    shapes |= {"out": (4, width // 4, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    gains = {"gain_attention": (width,), "gain_mlp": (width,)}
    draw = jax.nn.initializers.normal(width**-0.5)
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes) + 2))
    params = {
        "embed": draw(next(keys), (words, width)),
        "layers": [
            {name: draw(next(keys), shape) for name, shape in shapes.items()}
            | {name: jnp.ones(shape) for name, shape in gains.items()}
            for _ in range(layers)
        ],
        "head": draw(next(keys), (width, words)),
    }

    def loss(params: Any, text: jax.Array) -> jax.Array:
        x = params["embed"][text[:, :-1]]
        for layer in params["layers"]:
            x = x + _attention(layer, _unit(x) * layer["gain_attention"])
            h = _unit(x) * layer["gain_mlp"]
            x = x + jax.nn.gelu(h @ layer["up"]) @ layer["down"]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            _unit(x) @ params["head"], text[:, 1:]
        )
        return losses.mean()

    return Case(
        loss, params, (jax.random.randint(jax.random.key(1), (4, 65), 0, words),)
    )


def _attention(layer: Any, x: jax.Array) -> jax.Array:
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", x, layer[name])
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(_unit(q), _unit(k), v, is_causal=True)
    return jnp.einsum("bthk,hkd->btd", mixed, layer["out"])


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


# Each of a number of images.
NETWORKS: dict[str, Callable[[int], Case]] = {
    "resnet20": lambda images: _images("resnet20", images, size=8, channels=1),
    "resnet18": lambda images: _images("resnet18", images),
    "vgg16": lambda images: _images("vgg16", images),
    "transformer": lambda images: transformer(),
}
SMALL: dict[str, Callable[[int], Case]] = {
    "resnet8": lambda images: _images("resnet8", images, size=8, channels=1),
    "transformer": lambda images: transformer(layers=1, width=16, words=50),
}


@dataclasses.dataclass(frozen=True)
class InvarianceTimeConfig:
    """Which networks to search, and how often."""

    networks: tuple[Literal[tuple(NETWORKS)], ...] = tuple(NETWORKS)  # type: ignore[valid-type]
    """Which networks, in which order."""
    images: int = 16
    """Images in a batch; the transformer reads four texts of 64 words."""
    rounds: int = 5
    """Gradients that are timed; the fastest counts."""
    smoke: bool = False
    """Small networks, and one round."""


def main(args: Sequence[str]) -> None:
    """Print a row for each network."""
    prog = "python -m experiments invariance_time"
    config = tyro.cli(InvarianceTimeConfig, args=args, prog=prog)
    check_least(config, images=2, rounds=1)
    console = Console()
    console.print(devices.describe(), markup=False, highlight=False, soft_wrap=True)
    cases = SMALL if config.smoke else {n: NETWORKS[n] for n in config.networks}
    table = Table(*_COLUMNS, box=box.SIMPLE)
    with one_line_errors():
        for name, build in cases.items():
            case, rounds = build(config.images), 1 if config.smoke else config.rounds
            table.add_row(name, *measure(case, rounds))
    console.print(table)


def measure(case: Case, rounds: int) -> list[str]:
    """Return the columns of a network's row, without its name.

    Args:
        case: the network.
        rounds: how many gradients are timed, after one that compiles.
    """
    gradient = jax.jit(jax.grad(case.loss))
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        jax.block_until_ready(gradient(case.params, *case.args))
        seconds.append(time.perf_counter() - began)
    loss, calls = _counted(case.loss)
    began = time.perf_counter()
    found = normopt.find_scale_invariance(loss, case.params, *case.args)
    searched = time.perf_counter() - began
    jax.effects_barrier()
    leaves = jax.tree.leaves(case.params)
    return [
        f"{sum(leaf.size for leaf in leaves):,}",
        f"{len(leaves)}",
        f"{min(seconds[1:]):.3f}",
        f"{searched:.1f}",
        f"{calls['gradient']}",
        f"{calls['loss']}",
        f"{len(found)}",
    ]


def _counted(
    loss: Callable[..., jax.Array],
) -> tuple[Callable[..., jax.Array], collections.Counter[str]]:
    """Return the loss, and what counts how often it and its gradient are computed."""
    calls: collections.Counter[str] = collections.Counter()

    @jax.custom_vjp
    def seen(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.update(["loss"]))
        return x

    def backwards(_: None, g: jax.Array) -> tuple[jax.Array]:
        jax.debug.callback(lambda: calls.update(["gradient"]))
        return (g,)

    seen.defvjp(lambda x: (x, None), backwards)
    return lambda *args: seen(loss(*args)), calls
