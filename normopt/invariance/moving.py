"""Parameters at random around the given ones: moved, scaled by block, perturbed.

Random numbers are drawn by NumPy, in a fraction of the time of a gradient; with the
generators of `jax.random` they took longer than the gradients on a CPU. A point can be
had again from its seed instead of being kept, and nothing is compiled for it.
"""

import copy
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from normopt.invariance.pieces import (
    Array,
    Index,
    empty,
    in_units,
    largest,
    pieces,
    squared,
)
from normopt.numerics import real_dtype

Axes = tuple[int, ...]


class Randomness:
    """Random numbers for each leaf and purpose, from one key of `jax.random`."""

    def __init__(self, key: jax.Array):
        """Read the key."""
        self._words = np.asarray(jax.random.key_data(key)).ravel().tolist()

    def __call__(self, *numbers: int) -> np.random.Generator:
        """Makes the generator of a purpose, always in the same state."""
        seeds = np.random.SeedSequence([*self._words, *numbers])
        return np.random.Generator(np.random.SFC64(seeds))


def moved(w: jax.Array, rng: np.random.Generator, size: float) -> jax.Array:
    """Adds noise with a root mean square of `size` to a leaf."""
    return _changed(w, lambda _, x: x + x.real.dtype.type(size) * _noise(x, rng))


def jittered(w: jax.Array, rng: np.random.Generator) -> jax.Array:
    """Changes the last bits of numbers: what then differs is rounding."""
    eps = float(jnp.finfo(w.dtype).eps)

    def with_last_bits(_: Index, x: Array) -> Array:
        last = rng.random(x.shape, np.float32) * np.float32(eps)
        return x * (1 + last.astype(x.real.dtype))

    return _changed(w, with_last_bits)


def factors(w: jax.Array, rng: np.random.Generator, axes: Axes) -> Array:
    """Draws a factor around 1/2 or 2 for each block of a leaf."""
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(w.shape))
    exponents = rng.uniform(0.75, 1.25, shape) * rng.choice([-1, 1], shape)
    return (2**exponents).astype(real_dtype(w.dtype))


def scaled(w: jax.Array, by: Array) -> jax.Array:
    """Multiplies each block of a leaf by its factor."""
    by = np.broadcast_to(by, w.shape)
    return _changed(w, lambda index, x: x * by[index])


def perturbed(
    w: jax.Array, by: Array, rng: np.random.Generator, axes: Axes
) -> jax.Array:
    """Moves each block as far as its factor does, in a random direction."""
    steps, numbers = np.abs(by - 1), np.asarray(w)
    top, again = largest(numbers), copy.deepcopy(rng)
    squares = np.zeros((2, *steps.shape))
    for index, x in pieces(numbers):
        add_sums(squares[0], squared(in_units(x, top)), index, axes)
        add_sums(squares[1], squared(_noise(x, rng)), index, axes)
    steps *= (top * np.sqrt(squares[0] / squares[1])).astype(steps.dtype)
    steps = np.broadcast_to(steps, w.shape)
    return _changed(w, lambda index, x: x + steps[index] * _noise(x, again))


def add_sums(total: Array, part: Array, index: Index, axes: Axes) -> None:
    """Adds the sums over each block of a piece to those of the whole leaf."""
    within = tuple(axis for axis in range(part.ndim) if axis not in axes)
    place = tuple(
        index[axis] if axis in axes else slice(None) for axis in range(part.ndim)
    )
    total[place] += part.sum(within, keepdims=True)


def _changed(w: jax.Array, change: Callable[[Index, Array], Array]) -> jax.Array:
    """Changes a leaf piece by piece, and puts it where it was, in its dtype."""
    out = empty(w.shape, w.dtype)
    for index, x in pieces(np.asarray(w)):
        out[index] = change(index, x)
    # What nobody put on a device goes where the other arguments are.
    return jax.device_put(out, w.sharding) if w.committed else jax.device_put(out)


def _noise(x: Array, rng: np.random.Generator) -> Array:
    """Draws numbers with a mean square of one for each element of a piece."""
    parts = [rng.random(x.shape, np.float32) for _ in range(1 + np.iscomplexobj(x))]
    noise = [
        (part - np.float32(0.5)) * np.float32(math.sqrt(12 / len(parts)))
        for part in parts
    ]
    whole = noise[0] if len(parts) == 1 else noise[0] + 1j * noise[1]
    return whole.astype(x.dtype, copy=False)
