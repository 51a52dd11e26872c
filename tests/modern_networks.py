"""Today's networks in small: smooth activations, attention and gates before a norm.

Which leaves are invariant was written down before any run, and is held against a brute
force in float64.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tests.networks import (
    Network,
    bare,
    batch_norm,
    bn,
    conv,
    entropy,
    head,
    images,
    layer_norm,
    linen,
    normal,
    plain,
    sequences,
    tokens,
    unit,
    vectors,
)

SMOOTH = {
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hard_swish": jax.nn.hard_swish,
    "softplus": jax.nn.softplus,
    "squareplus": jax.nn.squareplus,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
}
HOMOGENEOUS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "squared_relu": lambda x: jax.nn.relu(x) ** 2,
    "abs": jnp.abs,
}
SIZES = ((7, 9, 8), (20, 40, 30), (12, 64, 16))
SCALES = (1.0, 0.2)


def rms(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps)


def before_rms(activation: Callable, sizes=SIZES[0], scale=1.0):
    inputs, hidden, outputs = sizes
    shapes = {"w1": (inputs, hidden), "w2": (hidden, outputs), "head": (outputs, 4)}
    return plain(
        lambda key: jax.tree.map(lambda w: scale * w, normal(key, **shapes)),
        lambda p, x: rms(activation(x @ p["w1"]) @ p["w2"]) @ p["head"],
        lambda key: vectors(key, inputs),
    )


def heads(x, w):
    return jnp.einsum("btd,dhk->bthk", x, w)


def attend(q, k, v):
    scores = jnp.einsum("bihk,bjhk->bhij", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhij,bjhk->bihk", jax.nn.softmax(scores), v)


def project_out(x, w):
    return jnp.einsum("bthk,hkd->btd", x, w)


def attention_before_norm(p, x):
    mixed = attend(*(heads(x, p[name]) for name in ("q", "k", "v")))
    return jnp.mean(rms(project_out(mixed, p["o"])), 1) @ p["head"]


ATTENTION = {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (2, 4, 8)}
GLU = {"gate": (8, 12), "up": (8, 12), "down": (12, 8)}


def gemma_layer(p, x):
    """Normalizes what goes into each half of a layer, and what comes out of it."""
    h = rms(x) * (1 + p["before_attention"])
    mixed = attend(*(heads(h, p[name]) for name in ("q", "k", "v")))
    x = x + rms(project_out(mixed, p["o"])) * (1 + p["after_attention"])
    h = rms(x) * (1 + p["before_mlp"])
    h = (jax.nn.gelu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
    return x + rms(h) * (1 + p["after_mlp"])


GAINS = ("before_attention", "after_attention", "before_mlp", "after_mlp")


def gemma_init(key):
    def layer(key):
        return normal(key, **ATTENTION, **GLU) | {name: jnp.zeros(8) for name in GAINS}

    keys = jax.random.split(key, 4)
    return {
        "embed": jax.random.normal(keys[2], (12, 8)),
        "layers": [layer(k) for k in keys[:2]],
    }


def gemma(p, x):
    h = p["embed"][x]
    for layer in p["layers"]:
        h = gemma_layer(layer, h)
    logits = jnp.mean(rms(h), 1) @ p["embed"].T
    return 3 * jnp.tanh(logits / 3)


def gemma_scanned_init(key):
    params = gemma_init(key)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])
    return params | {"layers": stacked}


def gemma_scanned(p, x):
    h, _ = jax.lax.scan(
        lambda h, layer: (gemma_layer(layer, h), None), p["embed"][x], p["layers"]
    )
    return jnp.mean(rms(h), 1) @ p["embed"].T


def qk_transformer(post: bool) -> Callable:
    """Two layers with normalized queries and keys, the norm after or before each."""

    def forward(x):
        norm = nn.RMSNorm if not post else nn.LayerNorm

        def around(x, part):
            return norm()(x + part(x)) if post else x + part(norm()(x))

        def attention(x):
            q, k, v = (nn.DenseGeneral((2, 4), use_bias=False)(x) for _ in range(3))
            q, k = nn.RMSNorm()(q), nn.RMSNorm()(k)
            mixed = nn.dot_product_attention(q, k, v)
            return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=False)(mixed)

        for _ in range(2):
            x = around(x, attention)
            x = around(x, lambda x: bare(8)(nn.gelu(bare(12)(x))))
        return head()(jnp.mean(x if post else norm()(x), 1))

    return forward


def unet(x):
    """Down and up once, with a skip connection, and a GroupNorm behind every conv."""

    def block(x, features):
        return nn.silu(nn.GroupNorm(features)(conv(features, use_bias=False)(x)))

    top = block(x, 4)
    low = block(nn.avg_pool(top, (2, 2), (2, 2)), 6)
    up = nn.ConvTranspose(4, (2, 2), (2, 2), use_bias=False)(low)
    x = block(jnp.concatenate([top, up], -1), 4)
    return jnp.mean(nn.Conv(4, (1, 1))(x) * x[..., :1], (1, 2))


def graph(key):
    """Four nodes of a class each, in one of four graphs of four nodes."""
    x = jax.random.normal(key, (16, 7))
    return x, jnp.arange(16) % 4


def ring(n: int) -> np.ndarray:
    near = np.eye(n) + np.roll(np.eye(n), 1, 1) + np.roll(np.eye(n), -1, 1)
    near[0, n // 2] = near[3, n - 2] = 1
    return near


def graph_norm(h, p):
    centred = h - p["share"] * jnp.mean(h, 0)
    return p["gain"] * centred / jnp.sqrt(jnp.mean(centred**2, 0) + 1e-5) + p["shift"]


def gat(p, x):
    """One layer of a convolution and one of attention, each with a GraphNorm."""
    near = ring(16)
    h = (near / near.sum(1, keepdims=True)) @ x @ p["conv"]
    h = jax.nn.relu(graph_norm(h, p["norm1"]))
    z = h @ p["w"]
    scores = jax.nn.leaky_relu(z @ p["from"] + (z @ p["to"]).T, 0.2)
    weights = jax.nn.softmax(jnp.where(near > 0, scores, -1e9))
    return jax.nn.elu(graph_norm(weights @ z, p["norm2"])) @ p["head"]


def gat_init(key):
    shapes = {"conv": (7, 8), "w": (8, 9), "from": (9, 1), "to": (9, 1), "head": (9, 4)}
    return normal(key, **shapes) | {
        f"norm{i}": {"share": jnp.ones(n), "gain": jnp.ones(n), "shift": jnp.zeros(n)}
        for i, n in ((1, 8), (2, 9))
    }


def weight_and_spectral(p, x):
    """Divides one layer by its columns' lengths, one by its largest singular value."""
    h = jax.nn.relu(x @ (p["length"] * unit(p["direction"], 0)) + p["bias"])
    u = jnp.ones(9)
    for _ in range(3):
        u = unit(jax.lax.stop_gradient(p["spectral"].T @ (p["spectral"] @ u)))
    largest = jnp.sqrt(jnp.sum((p["spectral"] @ u) ** 2))
    return jax.nn.relu(h @ (p["spectral"] / largest)) @ p["head"]


def straight_through(p, x):
    """Has a tangent gradient, and a loss that cares."""
    w = p["w"]
    w = unit(w, 0) * jax.lax.stop_gradient(jnp.linalg.norm(w, axis=0))
    return jax.nn.gelu(x @ w + p["b"]) @ p["head"]


def separable(x):
    """Normalizes with an epsilon of 1e-3, as MobileNets do."""

    def block(x, features):
        norm = {"epsilon": 1e-3}
        depth = conv(x.shape[-1], feature_group_count=x.shape[-1], use_bias=False)
        x = nn.relu6(bn(**norm)(depth(x)))
        return nn.relu6(bn(**norm)(nn.Conv(features, (1, 1), use_bias=False)(x)))

    x = nn.relu6(bn(epsilon=1e-3)(conv(8, use_bias=False)(x)))
    return pooled_head(block(block(x, 16), 24))


def pooled_head(x):
    return head()(jnp.mean(x, (1, 2)))


def scanned_gelu(x):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = bare(12, name="up")(x)
            return x + nn.RMSNorm(use_scale=False)(
                bare(7, name="down")(nn.gelu(h))
            ), None

    stack = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    return head()(stack(name="layers")(x, None)[0])


def shared(p, x):
    """Uses one matrix in every layer, as ALBERT does."""
    h = x @ p["inputs"]
    for gain in p["gains"]:
        h = h + gain * jnp.tanh(layer_norm(h @ p["kernel"]))
    return h @ p["head"]


def normalized_weights(p, x):
    """Divides every vector of weights by its length before use, as nGPT does."""
    h = unit(unit(p["embed"])[x])
    up = jax.nn.silu(h @ unit(p["gate"], 0) * 3) * (h @ unit(p["up"], 0))
    h = unit(h + p["rate"] * (unit(up @ unit(p["down"]) + 0.1 * h) - h))
    return p["scale"] * jnp.mean(h, 1) @ unit(p["head"], 0)


def clip_like(p, x):
    one = unit(jnp.tanh(x @ p["w1"] + p["b1"]) @ p["image"])
    other = unit(jnp.tanh(jnp.roll(x, 1, 1) @ p["w1"] + p["b1"]) @ p["text"])
    return jnp.exp(p["temperature"]) * one @ other.T


def diagonal(out, labels):
    del labels
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(out)))


def deep_relu(p, x):
    for w in p["layers"]:
        x = jax.nn.relu(x @ w)
    return layer_norm(x) @ p["head"]


def penalized(p, x):
    return jnp.concatenate(
        [
            batch_norm(x @ p["w"]) @ p["head"],
            0.1 * jnp.sum(p["w"] ** 2) * jnp.ones((len(x), 1)),
        ],
        1,
    )


def penalized_score(out, labels):
    return entropy(out[:, :-1], labels) + jnp.mean(out[:, -1])


def nearly_constant(out, labels):
    return 1000 + 1e-2 * entropy(out, labels)


def with_dropout(key):
    x, labels = vectors(key)
    params = normal(key, w=(7, 9), head=(9, 4))

    def loss_fn(params, x, labels, key):
        h = batch_norm(x @ params["w"])
        h = jnp.where(jax.random.bernoulli(key, 0.8, h.shape), jax.nn.gelu(h), 0)
        return entropy(h @ params["head"], labels)

    return loss_fn, params, (x, labels, jax.random.key(3))


def running_statistics(p, x):
    return jnp.tanh((x @ p["w"] - 0.1) / 1.3 * p["scale"]) @ p["head"]


def maxout(p, x):
    h = jnp.max(jnp.einsum("bd,pdh->bph", x, p["w"]), 1)
    return layer_norm(h) @ p["head"]


def moe(p, x):
    """Routes to the two best of four experts."""
    gate = jax.nn.softmax(x @ p["router"])
    best = jnp.where(gate >= jnp.sort(gate)[:, -2:-1], gate, 0)
    h = jnp.einsum("bd,edh->beh", x, p["up"])
    h = rms(jnp.einsum("beh,ehd->bed", jax.nn.relu(h), p["down"]))
    return jnp.einsum("be,bed->bd", best, h) @ p["head"]


def half(name: str) -> Callable:
    """Computes a gelu before a norm in low precision."""
    build = before_rms(SMOOTH["gelu"], SIZES[1])

    def lowered(key):
        loss_fn, params, (x, labels) = build(key)
        dtype = jnp.dtype(name)
        return (
            lambda p, x, labels: loss_fn(p, x.astype(dtype), labels).astype("float32"),
            jax.tree.map(lambda w: w.astype(dtype), params),
            (x, labels),
        )

    return lowered


def named(*paths: str, axes: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(paths, axes)


def weights(**shapes: Any) -> Callable:
    return lambda key: normal(key, **shapes)


SANDWICH = ("v", "o", "up", "down")
MODERN_NETWORKS = [
    *(
        Network(
            f"{name}_before_rms",
            before_rms(act),
            {"w2": ()},
            quick=name not in ("celu", "elu"),
        )
        for name, act in SMOOTH.items()
    ),
    *(
        Network(f"{name}_before_rms", before_rms(act), {"w1": (), "w2": ()})
        for name, act in HOMOGENEOUS.items()
    ),
    Network("gelu_before_rms_bfloat16", half("bfloat16"), {"w2": ()}, keys=2),
    Network("gelu_before_rms_float16", half("float16"), {"w2": ()}),
    Network(
        "attention_before_norm",
        plain(weights(**ATTENTION, head=(8, 4)), attention_before_norm, sequences),
        named("v", "o"),
        quick=True,
    ),
    Network(
        "gemma",
        plain(gemma_init, gemma, tokens),
        named(*(f"layers/{i}/{name}" for i in range(2) for name in SANDWICH)),
        quick=True,
    ),
    Network(
        "gemma_scanned",
        plain(gemma_scanned_init, gemma_scanned, tokens),
        named(*(f"layers/{name}" for name in SANDWICH), axes=(0,)),
    ),
    Network(
        "qk_pre_norm",
        linen(qk_transformer(post=False), sequences),
        named(*(f"DenseGeneral_{i}/kernel" for i in (0, 1, 4, 5)), axes=(1,)),
        quick=True,
    ),
    Network(
        "qk_post_norm",
        linen(qk_transformer(post=True), sequences),
        named(*(f"DenseGeneral_{i}/kernel" for i in (0, 1, 4, 5)), axes=(1,)),
    ),
    Network(
        "unet",
        linen(unet, images),
        named("Conv_0/kernel", "Conv_1/kernel", "Conv_2/kernel", axes=(3,)),
    ),
    Network("gat", plain(gat_init, gat, graph), {"conv": (1,)}),
    Network(
        "weight_and_spectral",
        plain(
            weights(
                length=(8,), direction=(7, 8), bias=(8,), spectral=(8, 9), head=(9, 4)
            ),
            weight_and_spectral,
        ),
        {"direction": (1,), "spectral": ()},
        quick=True,
    ),
    Network(
        "straight_through",
        plain(weights(w=(7, 9), b=(9,), head=(9, 4)), straight_through),
        {},
        quick=True,
    ),
    # What comes out of the last kernel varies so little that its epsilon shows: scaling
    # it changes the loss by 2 % of what other moves do.
    Network(
        "separable",
        linen(separable, images),
        named(*(f"Conv_{i}/kernel" for i in range(4)), axes=(3,)),
    ),
    Network(
        "scanned_gelu",
        linen(scanned_gelu),
        {"layers/down/kernel": (0,)},
        scans=True,
    ),
    Network(
        "shared",
        plain(
            lambda key: (
                normal(key, inputs=(7, 8), kernel=(8, 8), head=(8, 4))
                | {"gains": [jnp.ones(8), jnp.ones(8)]}
            ),
            shared,
        ),
        {"kernel": ()},
    ),
    Network(
        "normalized_weights",
        plain(
            lambda key: (
                normal(
                    key,
                    embed=(12, 8),
                    gate=(8, 12),
                    up=(8, 12),
                    down=(12, 8),
                    head=(8, 4),
                )
                | {"rate": jnp.full(8, 0.3), "scale": jnp.array(4.0)}
            ),
            normalized_weights,
            tokens,
        ),
        {"embed": (0,), "gate": (1,), "up": (1,), "down": (0,), "head": (1,)},
    ),
    Network(
        "clip",
        plain(
            lambda key: (
                normal(key, w1=(7, 9), image=(9, 5), text=(9, 5))
                | {"b1": jnp.zeros(9), "temperature": jnp.array(1.0)}
            ),
            clip_like,
            score=diagonal,
        ),
        {"image": (), "text": ()},
    ),
    Network(
        "deep_relu",
        plain(
            lambda key: {
                "layers": [
                    2.0 * normal(k, w=(7, 7))["w"] for k in jax.random.split(key, 6)
                ],
                "head": normal(key, head=(7, 4))["head"],
            },
            deep_relu,
        ),
        named(*(f"layers/{i}" for i in range(6))),
    ),
    Network(
        "penalized",
        plain(weights(w=(7, 9), head=(9, 4)), penalized, score=penalized_score),
        {},
    ),
    Network("dropout", with_dropout, {"w": (1,)}),
    Network(
        "nearly_constant",
        plain(
            weights(w=(7, 9), head=(9, 4)),
            lambda p, x: batch_norm(x @ p["w"]) @ p["head"],
            score=nearly_constant,
        ),
        {"w": (1,)},
    ),
    Network(
        "running_statistics",
        plain(weights(w=(7, 9), scale=(9,), head=(9, 4)), running_statistics),
        {},
    ),
    Network("maxout", plain(weights(w=(3, 7, 9), head=(9, 4)), maxout), {"w": ()}),
    Network(
        "mixture_of_experts",
        plain(weights(router=(7, 4), up=(4, 7, 9), down=(4, 9, 8), head=(8, 4)), moe),
        {"up": (0,), "down": (0,)},
    ),
]
