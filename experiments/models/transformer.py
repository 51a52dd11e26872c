"""A transformer that foresees the next byte of a text, as they are built today.

Each layer normalizes what it reads (RMSNorm, Zhang and Sennrich 2019), turns queries
and keys by their places (rotary embeddings, Su et al. 2021), and gates its second half
(SwiGLU, Shazeer 2020). Queries and keys are normalized per head before they meet
(QK-norm, Henry et al. 2020), so the loss ignores the length of each head of their
kernels. Paths read as `layers/0/attention/query/kernel`, of shape (width, heads, size);
scanned layers are one stack, whose kernels have the layers for their first axis.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-6  # added to the mean square in each norm
SLOWEST = 10_000.0  # how much slower than the first pair of a head the last one turns


class Attention(nnx.Module):
    """Causal attention of several heads, without biases."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, rngs: nnx.Rngs):
        """Build it for vectors of `width` numbers."""
        if width % (2 * heads):
            raise ValueError(
                f"`width` must be a multiple of twice `heads`, of which positions turn "
                f"pairs, got width={width} and heads={heads}"
            )
        size = width // heads
        project = functools.partial(
            nnx.LinearGeneral, width, (heads, size), use_bias=False, rngs=rngs
        )
        self.query, self.key, self.value = project(), project(), project()
        self.out = nnx.LinearGeneral(
            (heads, size), width, axis=(-2, -1), use_bias=False, rngs=rngs
        )
        self.qk_norm = qk_norm
        if qk_norm:
            self.query_norm, self.key_norm = norm(size, rngs), norm(size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, length, width) to the same shape."""
        query, key = self.query(x), self.key(x)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        seen = jax.nn.dot_product_attention(
            rotated(query), rotated(key), self.value(x), is_causal=True
        )
        return self.out(seen)


class SwiGLU(nnx.Module):
    """Two layers, of which the first is gated; about as many weights as GELU's."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        """Build it with 8/3 times `width` hidden units, a multiple of 16."""
        hidden = -(-8 * width // 48) * 16
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.gate, self.up = linear(width, hidden), linear(width, hidden)
        self.down = linear(hidden, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., width) to the same shape."""
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class GELU(nnx.Module):
    """Two layers with GELU between them."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        """Build it with 4 times `width` hidden units."""
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., width) to the same shape."""
        return self.down(nnx.gelu(self.up(x)))


class Layer(nnx.Module):
    """Attention, then the two dense layers, each added to what it has read."""

    def __init__(
        self, width: int, heads: int, *, gated: bool, qk_norm: bool, rngs: nnx.Rngs
    ):
        """Build it for vectors of `width` numbers."""
        self.attention_norm, self.dense_norm = norm(width, rngs), norm(width, rngs)
        self.attention = Attention(width, heads, qk_norm=qk_norm, rngs=rngs)
        self.dense = (SwiGLU if gated else GELU)(width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, length, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.dense(self.dense_norm(x))


class Transformer(nnx.Module):
    """The network; the head has weights of its own."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        *,
        gated: bool = True,
        qk_norm: bool = True,
        scanned: bool = False,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        """Build it.

        Args:
            layers: how many there are.
            width: numbers in the vector of a place, a multiple of twice the heads.
            heads: of the attention.
            gated: SwiGLU if true, GELU if not.
            qk_norm: whether queries and keys are normalized.
            scanned: whether the layers are one stack under `lax.scan`, which compiles
                one layer instead of all.
            num_classes: how many different tokens there are.
            rngs: where the initial weights come from.
        """
        if min(layers, width, heads) < 1:
            raise ValueError(
                "`layers`, `width` and `heads` must be at least 1, got "
                f"layers={layers}, width={width} and heads={heads}"
            )

        def layer(rngs: nnx.Rngs) -> Layer:
            return Layer(width, heads, gated=gated, qk_norm=qk_norm, rngs=rngs)

        self.embed = nnx.Embed(
            num_classes, width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )
        if scanned:
            self.layers = nnx.split_rngs(splits=layers)(nnx.vmap(layer))(rngs)
        else:
            self.layers = nnx.List(layer(rngs) for _ in range(layers))
        self.norm = norm(width, rngs)
        self.head = nnx.Linear(width, num_classes, use_bias=False, rngs=rngs)
        self.scanned = scanned

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map integers (n, length) to logits (n, length, num_classes) of the next."""
        x = self.embed(tokens)
        if self.scanned:
            axes = {"in_axes": (nnx.Carry, 0), "out_axes": nnx.Carry}
            x = nnx.scan(lambda x, layer: layer(x), **axes)(x, self.layers)
        else:
            for layer in self.layers:
                x = layer(x)
        return self.head(self.norm(x))


def norm(size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Build a norm over the last axis, with a gain for each number."""
    return nnx.RMSNorm(size, epsilon=EPSILON, rngs=rngs)


def rotated(x: jax.Array) -> jax.Array:
    """Turn the pairs of each head by angles that grow with the place.

    Args:
        x: (n, length, heads, size), of which the pair `i` is `i` and `i + size / 2`.
    """
    half = x.shape[-1] // 2
    speeds = SLOWEST ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None, None] * speeds  # (length, 1, half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# 0.14, 0.4 and 26 million weights for bytes; the last one for a GPU or TPU.
nano = functools.partial(Transformer, 2, 64, 2)
micro = functools.partial(Transformer, 3, 96, 3)
small = functools.partial(Transformer, 8, 512, 8, scanned=True)
