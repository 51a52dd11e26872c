"""Parameters at random around the given ones: moved, scaled by block, perturbed.

Random numbers are a hash of each element's number: drawing a point is then a fraction
of a gradient, which with the generators of `jax.random` took longer than the gradients,
and a point can be had again from its seed instead of being kept.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from normopt.blocks import block_dot
from normopt.numerics import real_dtype, safe_sqrt, widened

# Steps of the hash: Chris Wellons' triple of 2018, of low bias.
_SHIFTS_AND_FACTORS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))


def seed_of(key: jax.Array, *numbers: int) -> np.ndarray:
    """Derives a seed for one leaf and one purpose from a key of `jax.random`."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.SeedSequence([*words, *numbers]).generate_state(2)


@jax.jit
def moved(w: jax.Array, seed: jax.Array, size: float, jitter: float) -> jax.Array:
    """Adds noise with a root mean square of `size` to a leaf.

    A `jitter` of 1 changes the last bits of what results, at random, 0 does not: what
    then differs is rounding.
    """
    x = widened((widened(w) + size * _noise(seed, w)).astype(w.dtype))
    last = jitter * jnp.finfo(w.dtype).eps * uniform(seed, w.shape, 2)
    return (x * (1 + last.astype(real_dtype(w.dtype)))).astype(w.dtype)


@functools.partial(jax.jit, static_argnames="axes")
def scaled(w: jax.Array, seed: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Multiplies each block of a leaf by a factor of its own around 1/2 or 2."""
    return (widened(w) * _factors(w, seed, axes)).astype(w.dtype)


@functools.partial(jax.jit, static_argnames="axes")
def perturbed(w: jax.Array, seed: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Moves each block as far as `scaled` does with this seed, in a random direction."""
    wide, noise = widened(w), _noise(seed[::-1], w)
    squares = block_dot(noise, noise, axes)
    unit = noise / jnp.where(squares > 0, safe_sqrt(squares), 1)
    top = jnp.max(jnp.abs(wide))  # in units of the largest, so that no square underflows
    top = jnp.where(top > 0, top, 1)
    lengths = top * safe_sqrt(block_dot(wide / top, wide / top, axes))
    steps = jnp.abs(_factors(w, seed, axes) - 1) * lengths
    return (wide + steps * unit).astype(w.dtype)


def _factors(w: jax.Array, seed: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(w.shape))
    x = uniform(seed, shape, 0)
    # An exponent of 0.75 to 1.25, or minus that.
    return (2 ** (x / 2 + 0.75 * jnp.sign(x))).astype(real_dtype(w.dtype))


def _noise(seed: jax.Array, w: jax.Array) -> jax.Array:
    """Draws numbers with a mean square of one, for each element of a leaf."""
    x = uniform(seed, w.shape, 0)
    dtype = widened(w).dtype
    if jnp.iscomplexobj(w):
        return (math.sqrt(1.5) * jax.lax.complex(x, uniform(seed, w.shape, 1))).astype(
            dtype
        )
    return (math.sqrt(3) * x).astype(dtype)


def uniform(seed: jax.Array, shape: tuple[int, ...], stream: int) -> jax.Array:
    """Draws numbers from -1 to 1; the streams of a seed differ."""
    x = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    for word in (seed[0], seed[1] + np.uint32(stream)):
        x ^= word.astype(jnp.uint32)
        for shift, factor in _SHIFTS_AND_FACTORS:
            x = (x ^ (x >> shift)) * np.uint32(factor)
        x ^= x >> 14
    return x.astype(jnp.float32) * 2.0**-31 - 1
