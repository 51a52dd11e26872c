"""Parameters at random around the given ones: moved, scaled by block, perturbed.

Random numbers are drawn by NumPy, in a fraction of the time of a gradient; with the
generators of `jax.random` they took longer than the gradients on a CPU. A point can be
had again from its seed instead of being kept, and nothing is compiled for it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.numerics import wide_dtype

Array = Any  # of NumPy; pyright knows no `real` of one


class Randomness:
    """Random numbers for each leaf and purpose, from one key of `jax.random`."""

    def __init__(self, key: jax.Array):
        """Read the key."""
        self._words = np.asarray(jax.random.key_data(key)).ravel().tolist()

    def __call__(self, *numbers: int) -> np.random.Generator:
        """Makes the generator of a purpose, always in the same state."""
        seeds = np.random.SeedSequence([*self._words, *numbers])
        return np.random.Generator(np.random.SFC64(seeds))


def host(x: jax.Array) -> Array:
    """Gives a leaf as a NumPy array, in float32 at least, without a copy if it is."""
    numbers: Array = np.asarray(x)
    return numbers.astype(wide_dtype(numbers.dtype), copy=False)


def like(x: Array, w: jax.Array) -> jax.Array:
    """Puts numbers where a leaf is, in its dtype."""
    x = x.astype(w.dtype, copy=False)
    # What nobody put on a device goes where the other arguments are.
    return jax.device_put(x, w.sharding) if w.committed else jax.device_put(x)


def moved(w: jax.Array, rng: np.random.Generator, size: float) -> Array:
    """Adds noise with a root mean square of `size` to a leaf."""
    noise = _noise(w, rng)
    noise *= size
    noise += host(w)
    return noise


def jittered(x: Array, rng: np.random.Generator, dtype: np.dtype) -> Array:
    """Changes the last bits of numbers: what then differs is rounding."""
    last = rng.random(x.shape, np.float32)
    last *= float(jnp.finfo(dtype).eps)
    return x.astype(dtype).astype(x.dtype) * (1 + last.astype(x.real.dtype))


def scaled(w: jax.Array, rng: np.random.Generator, axes: tuple[int, ...]) -> Array:
    """Multiplies each block of a leaf by a factor of its own around 1/2 or 2."""
    x = host(w)
    return x * _factors(x, rng, axes)


def perturbed(w: jax.Array, rng: np.random.Generator, axes: tuple[int, ...]) -> Array:
    """Moves each block as far as `scaled` does, in a random direction."""
    x = host(w)
    steps = np.abs(_factors(x, rng, axes) - 1)
    noise = _noise(w, rng)
    steps *= _lengths(x, axes) / _lengths(noise, axes)
    return x + steps * noise


def in_units(x: Array) -> tuple[Array, float]:
    """Divides by the largest element, so that no square under- or overflows."""
    top = float(max(x.max(), -x.min()) if x.dtype.kind == "f" else np.abs(x).max())
    return x * x.real.dtype.type(1 / top if top else 1), top


def squared(x: Array) -> Array:
    """Takes |x|^2 of each element."""
    return np.square(x) if x.dtype.kind == "f" else np.abs(x) ** 2


def _lengths(x: Array, axes: tuple[int, ...]) -> Array:
    unit, top = in_units(x)
    within = tuple(axis for axis in range(x.ndim) if axis not in axes)
    squares = np.sum(squared(unit), axis=within, keepdims=True)
    return unit.real.dtype.type(top) * np.sqrt(squares)


def _factors(x: Array, rng: np.random.Generator, axes: tuple[int, ...]) -> Array:
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(x.shape))
    exponents = rng.uniform(0.75, 1.25, shape) * rng.choice([-1, 1], shape)
    return (2**exponents).astype(x.real.dtype)


def _noise(w: jax.Array, rng: np.random.Generator) -> Array:
    """Draws numbers with a mean square of one for each element of a leaf."""
    dtype = wide_dtype(w.dtype)
    parts = [rng.random(w.shape, np.float32) for _ in range(1 + np.iscomplexobj(w))]
    for x in parts:
        x -= 0.5
        x *= math.sqrt(12 / len(parts))
    return (parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]).astype(dtype)
