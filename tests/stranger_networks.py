"""Networks that are invariant by no layer's name, and some that only seem to be.

Which leaves are was written down before any run, and is held against a brute force.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tests.modern_networks import attend, heads, named, project_out, rms, weights
from tests.networks import (
    Network,
    batch_norm,
    head,
    images,
    layer_norm,
    linen,
    normal,
    plain,
    sequences,
    tokens,
    unit,
)


def with_ones(init, **sizes: int):
    """Adds gains of one to what an initializer makes."""
    return lambda key: init(key) | {name: jnp.ones(n) for name, n in sizes.items()}


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, h):
        start = nn.initializers.constant(1e-6)
        return h * self.param("gain", start, (h.shape[-1],))


def layer_scaled(x):
    """A ConvNeXt block: at first it changes nothing, and hides what is before it."""
    x = nn.LayerNorm()(nn.Conv(6, (2, 2), (2, 2), name="stem")(x))
    deep = nn.Conv(6, (3, 3), feature_group_count=6, use_bias=False, name="deep")
    h = nn.Dense(24, name="up")(nn.LayerNorm()(deep(x)))
    h = LayerScale(name="scale")(nn.Dense(6, name="down")(nn.gelu(h)))
    return head()(nn.LayerNorm()(jnp.mean(x + h, (1, 2))))


def linear_attention(p, x):
    """Divides by the sum of its weights, which are linear in queries and keys."""
    q, k, v = (heads(x, p[name]) for name in ("q", "k", "v"))
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    values = jnp.einsum("bthk,bthv->bhkv", k, v)
    total = jnp.einsum("bthk,bhk->bth", q, k.sum(1)) + 1e-6
    mixed = jnp.einsum("bthk,bhkv->bthv", q, values) / total[..., None]
    return jnp.mean(x + project_out(mixed, p["o"]), 1) @ p["head"]


def retention(p, x):
    """Has no softmax, and normalizes each head of what it mixes."""
    q, k, v = (heads(x, p[name]) for name in ("q", "k", "v"))
    past = np.arange(5)[:, None] - np.arange(5)
    decay = np.where(past >= 0, 0.8 ** np.maximum(past, 0), 0)
    h = rms(jnp.einsum("bihk,bjhk,ij,bjhv->bihv", q, k, decay, v))
    h = h.reshape(x.shape) * jax.nn.silu(x @ p["gate"])
    return jnp.mean(x + h @ p["o"], 1) @ p["head"]


def whole_qk_norm(p, x):
    """Normalizes queries and keys of all heads at once, and what each half puts out."""
    q, k, v = (x @ p[name] for name in ("q", "k", "v"))
    q, k = rms(q) * p["gain_q"], rms(k) * p["gain_k"]
    parts = (h.reshape(*h.shape[:-1], 2, 4) for h in (q, k, v))
    x = x + rms(attend(*parts).reshape(x.shape) @ p["o"])
    x = x + rms((jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"])
    return rms(jnp.mean(x, 1)) @ p["head"]


def modulated(p, x):
    """A block of a diffusion transformer: its condition's weights start at zero."""
    condition = jax.nn.silu(jnp.mean(x, 1) @ p["c"]) @ p["modulate"]
    shift, scale, gate = jnp.split(condition[:, None], 3, -1)
    h = layer_norm(x) * (1 + scale) + shift
    q, k, v = (heads(h, p[name]) for name in ("q", "k", "v"))
    x = x + gate * project_out(attend(rms(q), rms(k), v), p["o"])
    return jnp.mean(layer_norm(x), 1) @ p["head"]


def demodulated(p, x):
    """Divides the weights of each example by their length, as StyleGAN2 does."""
    style = jnp.mean(x, (1, 2)) @ p["style"] + 1
    w = p["conv"] * style[:, None, None, :, None]
    w = w / jnp.sqrt(jnp.sum(w**2, (1, 2, 3), keepdims=True) + 1e-8)

    def convolved(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], w, (1, 1), "SAME", dimension_numbers=layout
        )[0]

    h = jax.vmap(convolved)(x, w) + p["b"]
    return jnp.mean(jax.nn.leaky_relu(h, 0.2), (1, 2)) @ p["head"]


def of_at_most_one(p, x):
    """Shortens the rows that are longer than one, and those only."""
    length = jnp.linalg.norm(p["embed"], axis=-1, keepdims=True)
    rows = p["embed"] / jnp.maximum(length, 1)
    return jnp.tanh(jnp.mean(rows[x], 1) @ p["w"]) @ p["head"]


def rows_of(length: float):
    def init(key):
        params = normal(key, embed=(12, 8), w=(8, 9), head=(9, 4))
        return params | {"embed": length * unit(params["embed"])}

    return init


def siamese(p, x):
    """Stops the gradient of one of two views, each of which is normalized."""

    def encode(x):
        return batch_norm(jax.nn.relu(batch_norm(x @ p["w1"]) * p["gain"]) @ p["w2"])

    def predict(z):
        return unit(jax.nn.relu(batch_norm(z @ p["p1"]) * p["gain_p"]) @ p["p2"])

    one, other = encode(x), encode(x + 0.5 * jnp.roll(x, 1, 1))
    still = jax.lax.stop_gradient
    return predict(one) * unit(still(other)) + predict(other) * unit(still(one))


def minus_mean(out, labels):
    del labels
    return -jnp.mean(jnp.sum(out, -1))


def decorrelated(p, x):
    """Compares the normalized outputs of two views, each with each."""

    def encode(x):
        return batch_norm(jax.nn.relu(x @ p["w1"]) @ p["w2"])

    return encode(x).T @ encode(x + 0.3 * jnp.roll(x, 1, 1)) / len(x)


def off_diagonal(out, labels):
    del labels
    is_same = jnp.eye(len(out)) > 0
    return jnp.sum(jnp.where(is_same, (1 - out) ** 2, 0.05 * out**2))


def joint_length(p, x):
    """Is blind to a common factor of two leaves, and to none of one."""
    length = jnp.sqrt(jnp.sum(p["w1"] ** 2) + jnp.sum(p["w2"] ** 2))
    return jnp.tanh(4 * x @ p["w1"] / length) @ (4 * p["w2"] / length)


def ternary(p, x):
    """Is blind to the length, but has the gradient of other weights."""
    size = jnp.mean(jnp.abs(p["w"]))
    rounded = jnp.round(jnp.clip(p["w"] / size, -1, 1)) * size
    w = p["w"] + jax.lax.stop_gradient(rounded - p["w"])
    return jax.nn.relu(rms(x @ w)) @ p["head"]


HEADS = {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4)}
STRANGER_NETWORKS = [
    Network("layer_scaled", linen(layer_scaled, images), named("deep/kernel")),
    Network(
        "linear_attention",
        plain(weights(**HEADS, o=(2, 4, 8), head=(8, 4)), linear_attention, sequences),
        named("q", "k", axes=(1,)),
    ),
    Network(
        "retention",
        plain(
            weights(**HEADS, gate=(8, 8), o=(8, 8), head=(8, 4)), retention, sequences
        ),
        named("q", "k", "v", axes=(1,)),
    ),
    Network(
        "whole_qk_norm",
        plain(
            with_ones(
                weights(
                    **dict.fromkeys(("q", "k", "v", "o"), (8, 8)),
                    **{"gate": (8, 12), "up": (8, 12), "down": (12, 8), "head": (8, 4)},
                ),
                gain_q=8,
                gain_k=8,
            ),
            whole_qk_norm,
            sequences,
        ),
        named("q", "k", "v", "o", "up", "down"),
    ),
    Network(
        "modulated",
        plain(
            lambda key: (
                normal(key, c=(8, 9), **HEADS, o=(2, 4, 8), head=(8, 4))
                | {"modulate": jnp.zeros((9, 24))}
            ),
            modulated,
            sequences,
        ),
        named("q", "k", axes=(1,)),
    ),
    Network(
        "demodulated",
        plain(
            lambda key: (
                normal(key, style=(3, 3), conv=(3, 3, 3, 6), head=(6, 4))
                | {"b": jnp.zeros(6)}
            ),
            demodulated,
            images,
        ),
        named("conv", axes=(3,)),
    ),
    Network("long_rows", plain(rows_of(3.0), of_at_most_one, tokens), {"embed": (0,)}),
    Network("short_rows", plain(rows_of(1.3), of_at_most_one, tokens), {}),
    Network(
        "siamese",
        plain(
            with_ones(
                weights(w1=(7, 9), w2=(9, 6), p1=(6, 5), p2=(5, 6)), gain=9, gain_p=5
            ),
            siamese,
            score=minus_mean,
        ),
        named("w1", "w2", "p1", axes=(1,)) | named("p2", "gain", "gain_p"),
    ),
    Network(
        "decorrelated",
        plain(weights(w1=(7, 9), w2=(9, 6)), decorrelated, score=off_diagonal),
        {"w1": (), "w2": (1,)},
    ),
    Network("joint_length", plain(weights(w1=(7, 9), w2=(9, 4)), joint_length), {}),
    Network(
        "ternary",
        plain(weights(w=(7, 9), head=(9, 4)), ternary),
        {},
        in_float64=False,  # there w is invariant; its gradient hides that
    ),
]
