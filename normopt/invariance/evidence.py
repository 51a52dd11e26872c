"""What one gradient says about scale invariance, for every partition of a leaf.

The measure of a block of d elements is sqrt(d) |cos(gradient, weight)|: about 1 for
random vectors of any size, 0 where the loss is invariant to the block's length.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normopt.blocks import block_size
from normopt.invariance.probing import NOISE_LIMIT, Point
from normopt.numerics import widened

Partition = tuple[int, ...]  # the axes that index the blocks

# Rounding explains this many times its own size. Measured, it makes up 1 to 30 times
# less than its size, for it is not aligned with the weights.
ROUNDING = 5.0
# One block counts as at most this many random ones.
LARGE = 3.0


class Evidence(NamedTuple):
    """What one gradient says about one partition of a leaf."""

    live: int  # blocks whose gradient is more than rounding; the others abstain
    square: float  # mean over the live blocks of the square of the measure
    worst: float  # largest measure that rounding does not explain


@functools.cache
def partitions(shape: tuple[int, ...]) -> list[Partition]:
    """Lists the axes that can index blocks of more than one element, finest first.

    Axes of size one are left out; among equally many blocks the later axes come first.
    """
    axes = [axis for axis, n in enumerate(shape) if n > 1]
    subsets = (s for n in range(len(axes)) for s in itertools.combinations(axes, n))
    sized = [(block_size(shape, s), [-a for a in reversed(s)], s) for s in subsets]
    return [s for size, _, s in sorted(sized) if size > 1]


def evidence(point: Point) -> list[dict[Partition, Evidence]]:
    """Gathers, for each leaf, what the point says about each of its partitions."""
    found = jax.device_get(
        [
            _leaf_evidence(*leaf) if partitions(leaf[0].shape) else ([], [], [])
            for leaf in zip(*point, strict=True)
        ]
    )
    return [
        {
            axes: Evidence(int(live), float(square), float(worst))
            for axes, live, square, worst in zip(
                partitions(w.shape), *fields, strict=True
            )
        }
        for w, fields in zip(point.weights, found, strict=True)
    ]


@jax.jit
def _leaf_evidence(
    w: jax.Array, g: jax.Array, again: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the fields of `Evidence`, one array over the partitions for each."""
    # The blocks of all partitions stand in one row: a kernel for each partition took
    # eight times as long to compile.
    sums = _block_sums(w, g, again)
    counts = [x.shape[1] for x in sums]
    owner = jnp.concatenate([jnp.full(n, i) for i, n in enumerate(counts)])
    d = jnp.concatenate([jnp.full(n, w.size / n) for n in counts])
    dot, gg, ww, nn = jnp.concatenate(sums, axis=1)
    # A block of few elements may by chance show little rounding: the leaf's is added.
    noise = jnp.sqrt(nn + nn[-1] * (d / w.size))
    g_norm, w_norm = jnp.sqrt(gg), jnp.sqrt(ww)
    live = (g_norm > 0) & (w_norm > 0) & (noise < NOISE_LIMIT * g_norm)
    g_norm, w_norm = jnp.where(live, g_norm, 1), jnp.where(live, w_norm, 1)
    measure = jnp.where(live, jnp.sqrt(d) * jnp.abs(dot) / (g_norm * w_norm), 0)
    unexplained = jnp.where(measure > ROUNDING * noise / g_norm, measure, 0)

    both = jnp.stack([live.astype(d.dtype), jnp.minimum(measure, LARGE) ** 2], axis=1)
    lives, squares = jax.ops.segment_sum(both, owner, len(counts)).T
    worst = jax.ops.segment_max(unexplained, owner, len(counts))
    return lives, squares / jnp.maximum(lives, 1), worst


def _block_sums(w: jax.Array, g: jax.Array, again: jax.Array) -> list[jax.Array]:
    """Sums g w, |g|^2, |w|^2 and squared rounding over the blocks of each partition.

    Lengths are in units of the leaf's largest element, so that no square underflows. A
    coarser sum is taken from the smallest finer one: only the finest read the leaf.
    Re(g w), without a conjugate, is Euler's product for complex leaves too: JAX returns
    the conjugate of the direction of ascent.
    """
    weights, grads = widened(w), widened(g)
    noise = (grads - again) / _largest(grads)
    weights, grads = weights / _largest(weights), grads / _largest(grads)
    squares = [jnp.abs(x) ** 2 for x in (grads, weights, noise)]
    whole = tuple(range(w.ndim))
    known = {whole: jnp.stack([jnp.real(grads * weights), *squares])}
    for axes in partitions(w.shape):
        finer = min(
            (k for k in known if set(axes) <= set(k)), key=lambda k: known[k].size
        )
        within = tuple(1 + axis for axis in finer if axis not in axes)
        known[axes] = jnp.sum(known[finer], axis=within, keepdims=True)
    del known[whole]
    return [x.reshape(4, -1) for x in known.values()]


def _largest(x: jax.Array) -> jax.Array:
    top = jnp.max(jnp.abs(x))
    return jnp.where(top > 0, top, 1)
