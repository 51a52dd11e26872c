"""Networks made of no known layers: their truths were written down before any run."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.networks import (
    Network,
    batch_norm,
    head,
    images,
    layer_norm,
    linen,
    normal,
    pixels,
    plain,
    sequences,
    unit,
)


def weights(*zeros: str, **shapes: tuple[int, ...]):
    """Makes an initializer; the leaves named in `zeros` start at zero."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = normal(key, **shapes)
        return params | {name: jnp.zeros_like(params[name]) for name in zeros}

    return init


def spectral_norm(p, x):
    u, v = unit(jnp.arange(1.0, 8)), unit(jnp.cos(jnp.arange(9.0)))
    return jax.nn.relu(x @ p["w"] / (u @ p["w"] @ v) + p["b"]) @ p["head"]


def convnext(x):
    x = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False, name="deep")(x)
    x = nn.gelu(nn.Dense(10)(nn.LayerNorm()(x)))
    return head()(nn.LayerNorm()(jnp.mean(nn.Dense(6)(x), (1, 2))))


def norm_lstm(p, x):
    """Normalizes every gate by itself."""

    def step(carry, x):
        h, c = carry
        z = layer_norm(jnp.einsum("bd,dgh->bgh", x, p["w"])) + p["b"]
        z += layer_norm(jnp.einsum("bd,dgh->bgh", h, p["u"]))
        i, f, o = jax.nn.sigmoid(z[:, 0]), jax.nn.sigmoid(z[:, 1]), z[:, 2]
        c = f * c + i * jnp.tanh(z[:, 3])
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    start = jnp.broadcast_to(p["start"], (x.shape[0], 6))
    (h, _), _ = jax.lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))
    return h @ p["head"]


def fused_attention(p, x):
    """Normalizes queries and keys, but not the values in the same leaf."""
    q, k, v = jnp.einsum("btd,dchk->cbthk", x, p["qkv"])
    scores = jnp.einsum("bihk,bjhk->bhij", 3 * unit(q), unit(k))
    mixed = jnp.einsum("bhij,bjhk->bihk", jax.nn.softmax(scores), v)
    return jnp.mean(mixed.reshape(x.shape) + x, 1) @ p["head"]


def experts(p, x):
    gate = jax.nn.softmax(x @ p["gate"])
    h = jnp.einsum("bd,edh->beh", x, p["w"])
    h = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6) * p["scale"]
    return jnp.einsum("be,beh->bh", gate, jnp.tanh(h)) @ p["head"]


def contrast(p, x):
    def encode(x):
        h = jax.nn.relu(batch_norm(x @ p["w"]) * p["scale"] + p["b"])
        return unit(h @ p["projection"])

    return 5 * encode(x) @ encode(x + 0.3 * jnp.roll(x, 1, 1)).T


def diagonal(out, labels):
    del labels
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(out)))


def correlation(out, labels):
    wanted = batch_norm(jax.nn.one_hot(labels, out.shape[-1]))
    return -jnp.mean(batch_norm(out, 1e-8) * wanted)


def largest_norm(p, x):
    h = x @ p["w"]
    return jax.nn.relu(h / jnp.max(jnp.abs(h), -1, keepdims=True) + p["b"]) @ p["head"]


def mixture(p, x):
    share = p["share"] ** 2 / jnp.sum(p["share"] ** 2)
    mask = p["mask"] / jnp.sum(jnp.abs(p["mask"]))
    h = jnp.einsum("n,nbh->bh", share, jnp.tanh(jnp.einsum("bd,ndh->nbh", x, p["w"])))
    return h @ p["head"] + x * mask @ p["skip"]


def hyper(p, x):
    kernel = jnp.einsum("z,zdh->dh", jnp.tanh(p["z"]), p["w"])
    return jax.nn.relu(batch_norm(x @ kernel) + p["b"]) @ p["head"]


def low_rank(norm, base):
    def forward(p, x):
        h = x @ (base * jnp.eye(7, 9) + p["down"] @ p["up"])
        return jax.nn.relu(norm(h) + p["b"]) @ p["head"]

    return forward


def normed(p, x):
    return jax.nn.relu(batch_norm(x @ p["w"]) * p["scale"] + p["b"]) @ p["head"]


def tiny_bias(key):
    return weights(w=(20, 9), b=(9,), head=(9, 4))(key) | {"b": jnp.full(9, 1e-6)}


NORMED = {"w": (7, 9), "scale": (9,), "b": (9,), "head": (9, 4)}
DENSE = {"w": (7, 9), "b": (9,), "head": (9, 4)}
LOW_RANK = {"down": (7, 3), "up": (3, 9), "b": (9,), "head": (9, 4)}
LSTM = {"w": (8, 4, 6), "u": (6, 4, 6), "b": (4, 6), "start": (6,), "head": (6, 4)}

ODD_NETWORKS = [
    Network(
        "spectral_norm",
        plain(weights("b", **DENSE), spectral_norm),
        {"w": ()},
    ),
    Network("convnext", linen(convnext, images), {"deep/kernel": ()}),
    Network(
        "norm_lstm",
        plain(weights("b", **LSTM), norm_lstm, sequences),
        {"w": (1,), "u": (1,)},
    ),
    Network(
        "fused_attention",
        plain(weights(qkv=(8, 3, 2, 4), head=(8, 4)), fused_attention, sequences),
        {},
    ),
    Network(
        "experts",
        plain(weights(w=(3, 7, 9), gate=(7, 3), scale=(9,), head=(9, 4)), experts),
        {"w": (0,)},
    ),
    Network(
        "contrast",
        plain(
            weights("b", w=(7, 9), scale=(9,), b=(9,), projection=(9, 5)),
            contrast,
            score=diagonal,
        ),
        {"w": (1,), "projection": ()},
    ),
    Network(
        "correlation",
        plain(
            weights("b", **DENSE, out=(4,)),
            lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["head"] + p["out"],
            score=correlation,
        ),
        {"head": (1,)},
    ),
    Network(
        "largest_norm",
        plain(weights("b", **DENSE), largest_norm),
        {"w": ()},
    ),
    Network(
        "ratio",
        plain(
            weights(a=(7, 4), b=(7, 5)),
            lambda p, x: x @ p["a"] / jnp.linalg.norm(x @ p["b"], axis=-1)[:, None],
        ),
        {},
    ),
    Network(
        "mixture",
        plain(
            weights(share=(5,), mask=(7,), w=(5, 7, 9), head=(9, 4), skip=(7, 4)),
            mixture,
        ),
        {"share": (), "mask": ()},
    ),
    Network(
        "hyper",
        plain(weights("b", z=(5,), w=(5, 7, 9), b=(9,), head=(9, 4)), hyper),
        {"w": (2,)},
    ),
    Network(
        "low_rank",
        plain(weights("up", "b", **LOW_RANK), low_rank(batch_norm, 0)),
        {"down": (), "up": (1,)},
    ),
    # The two factors, scaled together, outgrow the constant beside them twice as fast.
    Network(
        "low_rank_update",
        plain(weights("up", "b", **LOW_RANK), low_rank(batch_norm, 1)),
        {},
        quick=True,
    ),
    # Saturated units look invariant at a glance.
    Network(
        "saturated",
        plain(
            weights("b", w=(20, 9), b=(9,), head=(9, 4)),
            lambda p, x: jax.nn.sigmoid(x @ p["w"] + p["b"]) @ p["head"],
            pixels,
        ),
        {},
    ),
    Network(
        "tiny_bias",
        plain(
            tiny_bias,
            lambda p, x: jax.nn.relu(layer_norm(x @ p["w"] + p["b"])) @ p["head"],
            pixels,
        ),
        {},
        quick=True,
        in_float64=False,  # there a bias of 1e-6 stays as small as it is
    ),
    Network("zero_head", plain(weights("b", "head", **NORMED), normed), {"w": (1,)}),
    Network(
        "all_zero", plain(weights(*NORMED, **NORMED), normed), {"w": (1,)}, quick=True
    ),
]
