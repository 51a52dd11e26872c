"""What a gradient says about scale invariance, for every partition of a leaf.

The loss does not see the length of a block b if its gradient g is orthogonal to the
block w. The measure of a partition compares what the loss changes by, to first order,
when every block gets longer or shorter at random, with what it changes by when every
block moves as far in a random direction:

    sqrt(sum_b <g_b, w_b>^2) / sqrt(sum_b |g_b|^2 |w_b|^2 / d_b)

It is about 1 for random vectors of any size d_b, and 0 for an invariance.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normopt.blocks import block_size, reduce_blocks
from normopt.invariance.moving import uniform
from normopt.numerics import widened

Partition = tuple[int, ...]  # the axes that index the blocks


@functools.cache
def partitions(shape: tuple[int, ...]) -> list[Partition]:
    """Lists the axes that can index blocks of more than one element, finest first.

    Axes of size one are left out; among equally many blocks the later axes come first.
    """
    axes = [axis for axis, n in enumerate(shape) if n > 1]
    subsets = (s for n in range(len(axes)) for s in itertools.combinations(axes, n))
    sized = [(block_size(shape, s), [-a for a in reversed(s)], s) for s in subsets]
    return [s for size, _, s in sorted(sized) if size > 1]


class Radial(NamedTuple):
    """What one gradient says about one partition of a leaf."""

    dots: np.ndarray  # <g_b, w_b> of each block
    reference: float  # the root of the sum of |g_b|^2 |w_b|^2 / d_b

    @property
    def measure(self) -> float:
        """Gives 0 for an invariance, about 1 for random vectors, inf without any."""
        if self.reference == 0:
            return math.inf
        return float(np.linalg.norm(self.dots)) / self.reference

    def rounding(self, other: "Radial") -> float:
        """Gives the share of the measure that is rounding, from a second gradient."""
        if self.reference == 0:
            return math.inf
        return float(np.linalg.norm(self.dots - other.dots)) / self.reference


class Summary(NamedTuple):
    """What one gradient says about a leaf as a whole."""

    length: float  # of the gradient
    sketch: np.ndarray  # its sums with random signs, to compare it with another one
    whole: Radial

    def rounding(self, other: "Summary") -> float:
        """Gives the share of the gradient that is rounding, from a second one.

        It changes the sketch in proportion to the gradient's length, as it changes the
        gradient, of which no copy has to be kept.
        """
        if self.length == 0:
            return math.inf
        return float(np.linalg.norm(self.sketch - other.sketch)) / self.length


def summaries(
    weights: list[jax.Array], grads: list[jax.Array], seeds: list[np.ndarray]
) -> list[Summary]:
    """Sums up the gradient of each leaf."""
    told = [
        _summary(w, g, seed) for w, g, seed in zip(weights, grads, seeds, strict=True)
    ]
    found = []
    for tops, dot, squares, sketch in jax.device_get(told):
        lengths = [
            float(top) * math.sqrt(square)
            for top, square in zip(tops, squares, strict=True)
        ]
        dots = np.float64(dot).reshape(1) * float(tops[0]) * float(tops[1])
        size = math.sqrt(weights[len(found)].size)
        whole = Radial(dots, lengths[0] * lengths[1] / size)
        found.append(Summary(lengths[1], np.float64(1) * sketch * float(tops[1]), whole))
    return found


def radials(
    weights: list[jax.Array],
    grads: list[jax.Array],
    chosen: dict[int, tuple[Partition, ...]],
) -> dict[int, dict[Partition, Radial]]:
    """Measures gradients by the blocks of the chosen partitions of each leaf."""
    told = {i: _by_block(weights[i], grads[i], axes) for i, axes in chosen.items()}
    found = {}
    for i, (tops, sums) in jax.device_get(told).items():
        scale = float(tops[0]) * float(tops[1])
        found[i] = {
            axes: Radial(np.float64(1) * dots * scale, math.sqrt(square) * scale)
            for axes, (dots, square) in zip(chosen[i], sums, strict=True)
        }
    return found


@jax.jit
def _summary(w: jax.Array, g: jax.Array, seed: jax.Array) -> Any:
    tops, (w, g) = _in_units(w, g)
    signs = jnp.sign(uniform(seed, g.shape, 0)).astype(g.dtype)
    sketch = jnp.sum(signs * g, axis=tuple(range(g.ndim - 1)))
    squares = [jnp.sum(jnp.abs(x) ** 2) for x in (w, g)]
    return tops, jnp.sum(_product(g, w)), squares, sketch


@functools.partial(jax.jit, static_argnames="chosen")
def _by_block(w: jax.Array, g: jax.Array, chosen: tuple[Partition, ...]) -> Any:
    tops, (w, g) = _in_units(w, g)
    sums = []
    for axes in chosen:
        dots, ww, gg = (
            reduce_blocks(jnp.sum, x, axes, keepdims=False).ravel()
            for x in (_product(g, w), jnp.abs(w) ** 2, jnp.abs(g) ** 2)
        )
        sums.append((dots, jnp.sum(gg * ww) / block_size(w.shape, axes)))
    return tops, sums


def _product(g: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies without a conjugate, which is Euler's product for complex leaves, too.

    JAX returns the conjugate of the direction of ascent.
    """
    return jnp.real(g * w)


def _in_units(*arrays: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """Divides arrays by their largest elements, so that no square underflows."""
    wide = [widened(x) for x in arrays]
    tops = [jnp.max(jnp.abs(x)) for x in wide]
    return tops, [x / jnp.where(t > 0, t, 1) for x, t in zip(wide, tops, strict=True)]
