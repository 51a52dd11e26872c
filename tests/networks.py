"""Small networks, and which of their leaves the loss is scale-invariant in.

Each is built from a key: a loss, its parameters, and the arrays that it is called with.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

from normopt import leaf_paths

Built = tuple[Callable[..., Any], Any, tuple[Any, ...]]


class Network(NamedTuple):
    name: str
    build: Callable[[jax.Array], Built]
    invariant: dict[str, tuple[int, ...]]  # path to channel axes; all other leaves not
    keys: int = 1
    has_aux: bool = False
    scans: bool = False  # with flax
    in_float64: bool = True  # whether it can be asked there, by brute force
    quick: bool = False  # whether `make test` has it, for others of its kind


def images(key: jax.Array, channels: int = 3) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(key, (8, 6, 6, channels))
    return x, jnp.arange(8) % 4


def vectors(key: jax.Array, features: int = 7) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(key, (16, features)), jnp.arange(16) % 4


def sequences(key: jax.Array, width: int = 8) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(key, (4, 5, width)), jnp.arange(4) % 4


def tokens(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ten of twelve words occur."""
    words = jax.random.permutation(key, jnp.tile(jnp.arange(10), 2)).reshape(4, 5)
    return words, jnp.arange(4) % 4


def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.reshape(-1, logits.shape[-1]), jnp.broadcast_to(labels, logits.shape[:1])
    )
    return jnp.mean(losses)


def linen(
    forward: Callable[[jax.Array], jax.Array],
    data: Callable[..., tuple[jax.Array, jax.Array]] = vectors,
    change: Callable[[Any], Any] = lambda params: params,
    score: Callable[[jax.Array, jax.Array], jax.Array] = entropy,
) -> Callable[[jax.Array], Built]:
    """Wraps a compact Linen forward pass; batch statistics are thrown away."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return forward(x)

    def build(key: jax.Array) -> Built:
        k_data, k_init = jax.random.split(key)
        x, labels = data(k_data)
        variables = dict(Model().init(k_init, x))
        params = change(variables.pop("params"))
        state = list(variables)

        def loss_fn(params, x, labels):
            out = Model().apply({"params": params, **variables}, x, mutable=state)
            return score(out[0], labels)

        return loss_fn, params, (x, labels)

    return build


def plain(
    init: Callable[[jax.Array], Any],
    forward: Callable[[Any, jax.Array], jax.Array],
    data: Callable[..., tuple[jax.Array, jax.Array]] = vectors,
    score: Callable[[jax.Array, jax.Array], jax.Array] = entropy,
) -> Callable[[jax.Array], Built]:
    def build(key: jax.Array) -> Built:
        k_data, k_init = jax.random.split(key)
        x, labels = data(k_data)

        def loss_fn(params, x, labels):
            return score(forward(params, x), labels)

        return loss_fn, init(k_init), (x, labels)

    return build


def squared(out: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean((out - jax.nn.one_hot(labels, out.shape[-1])) ** 2)


def normal(key: jax.Array, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), shape)
        / jnp.sqrt(max(shape[:1] or (1,)))
        for i, (name, shape) in enumerate(shapes.items())
    }


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)


def batch_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    over = tuple(range(x.ndim - 1))
    centred = x - jnp.mean(x, over, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, over, keepdims=True) + eps)


def unit(x: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    return x / jnp.sqrt(jnp.sum(x**2, axis, keepdims=True) + 1e-12)


def bn(**options) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=False, **options)


def bare(features: int, **options) -> nn.Dense:
    return nn.Dense(features, use_bias=False, **options)


def head() -> nn.Dense:
    return nn.Dense(4, name="head")


def conv(features: int, **options) -> nn.Conv:
    return nn.Conv(features, (3, 3), **options)


def pooled(x: jax.Array) -> jax.Array:
    return head()(jnp.mean(x, (1, 2)))


# --- convolutions -------------------------------------------------------------------


def conv_bn(x):
    x = nn.relu(bn()(conv(6, use_bias=False)(x)))
    return pooled(nn.relu(bn()(conv(8, use_bias=False)(x))))


def conv_bias_bn(x):
    return pooled(nn.relu(bn()(conv(6)(x))))


def conv_group_norm(x):
    x = nn.relu(nn.GroupNorm(2)(conv(6, use_bias=False)(x)))
    return pooled(nn.relu(nn.GroupNorm(8)(conv(8, use_bias=False)(x))))


def conv_instance_norm(x):
    return pooled(nn.relu(nn.InstanceNorm()(conv(6, use_bias=False)(x))) ** 2)


def depthwise(x):
    x = nn.relu(bn()(conv(6, use_bias=False)(x)))
    x = nn.relu(bn()(conv(6, feature_group_count=6, use_bias=False)(x)))
    return pooled(nn.relu(bn()(nn.Conv(5, (1, 1), use_bias=False)(x))))


def branches(x):
    x = nn.relu(bn()(conv(6, use_bias=False)(x)))
    y = conv(6, use_bias=False)(x) + nn.Conv(6, (1, 1), use_bias=False)(x)
    return pooled(nn.relu(bn()(y)))


def residual_zero_gamma(x):
    x = bn()(conv(6, use_bias=False)(x))
    y = nn.relu(bn()(conv(6, use_bias=False)(x)))
    y = bn(scale_init=nn.initializers.zeros)(conv(6, use_bias=False)(y))
    return pooled(nn.relu(x + y))


def standardized(params, x):
    for name in ("conv1", "conv2"):
        w = params[name]
        w = w - jnp.mean(w, (0, 1, 2), keepdims=True)
        w = w / jnp.sqrt(jnp.mean(w**2, (0, 1, 2), keepdims=True) + 1e-8)
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = nn.relu(x * params["gain"] + params["bias"])
    return jnp.mean(x, (1, 2)) @ params["head"]


# --- dense layers -------------------------------------------------------------------


def dense_bn(x):
    x = nn.relu(bn()(nn.Dense(8)(x)))
    return head()(nn.tanh(bn()(bare(9)(x))))


def dense_ln(x):
    return head()(nn.relu(nn.LayerNorm()(bare(9)(x))))


def dense_bias_ln(x):
    return head()(nn.relu(nn.LayerNorm()(nn.Dense(9)(x))))


def dense_rms(x):
    return head()(nn.gelu(nn.RMSNorm()(bare(9)(x))))


def two_dense_ln(x):
    x = nn.relu(bare(8)(x))
    return head()(nn.LayerNorm()(bare(9)(x)))


def mlp(x):
    x = nn.tanh(nn.Dense(8)(x))
    return head()(nn.relu(nn.Dense(9)(x)))


def mlp_without_biases(x):
    return bare(4, name="head")(nn.relu(bare(9)(nn.relu(bare(8)(x)))))


def weight_norm(x):
    x = nn.relu(nn.WeightNorm(nn.Dense(8))(x))
    return nn.WeightNorm(nn.Dense(4))(x)


def keras_like(x):
    x = nn.relu(bn(epsilon=1e-3)(bare(8, kernel_init=nn.initializers.normal(0.05))(x)))
    x = bare(9, kernel_init=nn.initializers.normal(0.02))(x)
    return head()(nn.LayerNorm(epsilon=1e-3)(x))


def dead_units(params):
    return params | {
        "Dense_0": params["Dense_0"] | {"bias": 8 * jnp.array([-1.0, 0] * 4)}
    }


def dead(x):
    x = nn.relu(nn.Dense(8)(x))
    return head()(jax.nn.silu(bn()(bare(9)(jnp.concatenate([x, x**2], -1)))))


# --- sequences ----------------------------------------------------------------------


def attention(x, normalized: bool, bias: bool = False):
    def project(name):
        return nn.DenseGeneral((2, 4), use_bias=bias, name=name)(x)

    q, k, v = project("query"), project("key"), project("value")
    if normalized:
        q = nn.RMSNorm(use_scale=False, name="query_norm")(q)
        k = nn.RMSNorm(use_scale=False, name="key_norm")(k)
    mixed = nn.dot_product_attention(q, k, v)
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=bias, name="out")(mixed)


def qk_norm(x):
    return head()(jnp.mean(x + attention(x, normalized=True), 1))


def pre_ln(x):
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    x = x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
    return head()(jnp.mean(nn.LayerNorm()(x), 1))


def post_ln(x):
    x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x))
    x = nn.LayerNorm()(x + nn.Dense(8)(nn.gelu(nn.Dense(12)(x))))
    return head()(jnp.mean(x, 1))


def lstm(x):
    return head()(nn.RNN(nn.OptimizedLSTMCell(6))(x)[:, -1])


def simple_rnn(x):
    return head()(nn.RNN(nn.SimpleCell(6))(x)[:, -1])


def embedding_ln(x):
    x = nn.LayerNorm()(nn.Embed(12, 8)(x))
    return head()(jnp.mean(nn.tanh(x), 1))


def tied(params, x):
    h = jax.nn.relu(params["embed"][x] @ params["kernel"])
    return jnp.mean(layer_norm(h), 1) @ params["embed"].T


def scanned(x):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(bn()(bare(7)(x))), None

    stack = nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )
    return head()(stack(name="layers")(x, None)[0])


# --- everything else ----------------------------------------------------------------


def equinox_net(key):
    k_data, k_1, k_2, k_3 = jax.random.split(key, 4)
    x, labels = vectors(k_data)
    model = {
        "conv": eqx.nn.Linear(7, 8, key=k_1),
        "norm": eqx.nn.LayerNorm(9),
        "middle": eqx.nn.Linear(8, 9, use_bias=False, key=k_2),
        "head": eqx.nn.Linear(9, 4, key=k_3),
    }
    params, static = eqx.partition(model, eqx.is_array)

    def loss_fn(params, x, labels):
        net = eqx.combine(params, static)
        h = jax.nn.relu(batch_norm(jax.vmap(net["conv"])(x)))
        h = jax.vmap(lambda h: net["head"](net["norm"](net["middle"](h))))(h)
        return entropy(h, labels)

    return loss_fn, params, (x, labels)


def nnx_net(key):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)
            self.dense = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
            self.rms = nnx.RMSNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            return self.head(self.rms(self.dense(jnp.mean(x, (1, 2)))))

    k_data, k_init = jax.random.split(key)
    x, labels = images(k_data)
    graphdef, params, rest = nnx.split(Net(nnx.Rngs(k_init)), nnx.Param, ...)

    def loss_fn(params, rest, x, labels):
        return entropy(nnx.merge(graphdef, params, rest)(x), labels)

    return loss_fn, params, (rest, x, labels)


def nnx_stack(key):
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(7, 7, rngs=rngs)
            self.norm = nnx.BatchNorm(7, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.dense(x)))

    k_data, k_init = jax.random.split(key)
    x, labels = vectors(k_data)

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
        return Layer(rngs)

    graphdef, params, rest = nnx.split(stack(nnx.Rngs(k_init)), nnx.Param, ...)

    def loss_fn(params, rest, x, labels):
        for i in range(3):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], (params, rest))
            x = nnx.merge(graphdef, *one)(x)
        return entropy(x, labels)

    return loss_fn, params, (rest, x, labels)


def aux_net(key):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv_bn(x)

    x, labels = images(key)
    variables = Model().init(key, x)

    def loss_fn(params, stats, x, labels):
        logits, updates = Model().apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return entropy(logits, labels), updates

    return loss_fn, variables["params"], (variables["batch_stats"], x, labels)


def odd_leaves(key):
    x, labels = vectors(key)
    params = normal(key, kernel=(7, 9), head=(9, 4)) | {
        "gain": jnp.array(1.0),
        "empty": jnp.zeros((0, 3)),
        "steps": jnp.arange(3),
        "nothing": None,
        "unused": jnp.ones((3, 4)),
        "frozen": jnp.ones((9, 9)),
        "column": jnp.ones((9, 1)),
    }

    def loss_fn(params, x, labels):
        h = layer_norm(x @ params["kernel"]) @ jax.lax.stop_gradient(params["frozen"])
        h = batch_norm(params["gain"] * h)
        h = h * unit(params["column"], None)[:, 0]
        return entropy(h @ params["head"], labels)

    return loss_fn, params, (x, labels)


def complex_net(key):
    x, labels = vectors(key)
    real = normal(key, re=(7, 9), im=(7, 9), phase=(9,), head=(9, 4))
    params = {
        "kernel": real["re"] + 1j * real["im"],
        "shift": real["phase"] * (1 + 1j),
        "head": real["head"],
    }

    def loss_fn(params, x, labels):
        h = x @ params["kernel"]
        h = h / jnp.sqrt(jnp.mean(jnp.abs(h) ** 2, 0) + 1e-6) + params["shift"]
        return entropy(jnp.abs(h) @ params["head"], labels)

    return loss_fn, params, (x, labels)


def low_precision(key, store, compute):
    x, labels = vectors(key)
    params = normal(key, conv=(7, 8), middle=(8, 9), head=(9, 4)) | {
        "scale": jnp.ones(8),
        "shift": jnp.zeros(8),
    }
    params = jax.tree.map(lambda w: w.astype(store), params)

    def loss_fn(params, x, labels):
        p = jax.tree.map(lambda w: w.astype(compute), params)
        h = batch_norm((x.astype(compute) @ p["conv"]).astype(jnp.float32))
        h = jax.nn.gelu(h.astype(compute) * p["scale"] + p["shift"]) @ p["middle"]
        h = layer_norm(h.astype(jnp.float32)).astype(compute)
        return entropy((h @ p["head"]).astype(jnp.float32), labels)

    return loss_fn, params, (x, labels)


def pixels(key):
    x, labels = vectors(key, 20)
    return 255 * jax.nn.sigmoid(x), labels


def one_hot(key):
    words, labels = tokens(key)
    return jax.nn.one_hot(words[:, 0], 12), labels


def cosine_head(params, x):
    h = jax.nn.relu(x @ params["kernel"] + params["bias"])
    return params["temperature"] * unit(h) @ unit(params["head"], 0)


def one_scale(factor):
    return lambda out, labels: factor * entropy(out, labels)


def timed_transformer(**sizes: int) -> Callable[[jax.Array], Built]:
    """Builds the one whose search is timed: 8 layers and 256 wide unless told."""

    def build(key: jax.Array) -> Built:
        del key
        time = pytest.importorskip("experiments.benchmarks.invariance_time")
        return time.transformer(**sizes)

    return build


def queries_and_keys(layers: int) -> dict[str, tuple[int, ...]]:
    names = itertools.product(range(layers), ("query", "key"))
    return {f"layers/{i}/{name}": (1,) for i, name in names}


DENSE_BN = {"Dense_0/kernel": (1,), "Dense_1/kernel": (1,)}
CONV_BN = {"Conv_0/kernel": (3,), "Conv_1/kernel": (3,)}

NETWORKS = [
    Network("conv_bn", linen(conv_bn, images), CONV_BN),
    Network("conv_bias_bn", linen(conv_bias_bn, images), {"Conv_0/kernel": (3,)}),
    Network(
        "group_norm",
        linen(conv_group_norm, images),
        {"Conv_0/kernel": (), "Conv_1/kernel": (3,)},
    ),
    Network(
        "instance_norm", linen(conv_instance_norm, images), {"Conv_0/kernel": (3,)}
    ),
    Network("depthwise", linen(depthwise, images), CONV_BN | {"Conv_2/kernel": (3,)}),
    Network("branches", linen(branches, images), {"Conv_0/kernel": (3,)}),
    Network(
        "residual_zero_gamma",
        linen(residual_zero_gamma, images),
        CONV_BN | {"Conv_2/kernel": (3,)},
    ),
    Network(
        "weight_standardization",
        plain(
            lambda key: (
                normal(
                    key, conv1=(3, 3, 3, 6), conv2=(3, 3, 6, 6), gain=(6,), head=(6, 4)
                )
                | {"bias": jnp.zeros(6)}
            ),
            standardized,
            images,
        ),
        {"conv1": (3,), "conv2": (3,)},
    ),
    Network("dense_bn", linen(dense_bn), DENSE_BN, keys=2, quick=True),
    Network("dense_bn_squared", linen(dense_bn, score=squared), DENSE_BN),
    Network("loss_1e-6", linen(dense_bn, score=one_scale(1e-6)), DENSE_BN, quick=True),
    Network("loss_1e6", linen(dense_bn, score=one_scale(1e6)), DENSE_BN),
    Network("dense_ln", linen(dense_ln), {"Dense_0/kernel": ()}, quick=True),
    Network("dense_bias_ln", linen(dense_bias_ln), {}, quick=True),
    # Its bias matters only once it has grown as large as what the pixels lead to.
    Network("dense_bias_ln_pixels", linen(dense_bias_ln, pixels), {}, in_float64=False),
    Network("dense_ln_pixels", linen(dense_ln, pixels), {"Dense_0/kernel": ()}),
    Network("dense_rms", linen(dense_rms), {"Dense_0/kernel": ()}),
    Network(
        "two_dense_ln",
        linen(two_dense_ln),
        {"Dense_0/kernel": (), "Dense_1/kernel": ()},
    ),
    Network("mlp", linen(mlp), {}, keys=2, quick=True),
    Network("mlp_pixels", linen(mlp, pixels), {}),
    Network("mlp_without_biases", linen(mlp_without_biases), {}),
    Network(
        "weight_norm",
        linen(weight_norm),
        {"Dense_0/kernel": (1,), "Dense_1/kernel": (1,)},
        quick=True,
    ),
    # Weights so small that an epsilon of 1e-3 outweighs their variance.
    Network("keras_like", linen(keras_like), {}),
    Network(
        "dead", linen(dead, change=dead_units), {"Dense_1/kernel": (1,)}, quick=True
    ),
    Network("one_hot", linen(dense_bn, one_hot), DENSE_BN),
    Network("mlp_one_hot", linen(mlp, one_hot), {}),
    Network(
        "qk_norm",
        linen(qk_norm, sequences),
        {"query/kernel": (1,), "key/kernel": (1,)},
    ),
    Network("transformer", timed_transformer(), queries_and_keys(8), in_float64=False),
    Network(
        "small_transformer",
        timed_transformer(layers=2, width=16, words=50),
        queries_and_keys(2),
    ),
    Network("pre_ln", linen(pre_ln, sequences), {}),
    Network("post_ln", linen(post_ln, sequences), {}),
    Network("lstm", linen(lstm, sequences), {}, scans=True, in_float64=False),
    Network(
        "simple_rnn",
        linen(simple_rnn, sequences),
        {},
        scans=True,
        in_float64=False,
    ),
    Network(
        "embedding_ln",
        linen(embedding_ln, tokens),
        {"Embed_0/embedding": (0,)},
        quick=True,
    ),
    Network(
        "tied",
        plain(lambda key: normal(key, embed=(12, 8), kernel=(8, 8)), tied, tokens),
        {"kernel": ()},
        quick=True,
    ),
    Network(
        "scanned",
        linen(scanned),
        {"layers/Dense_0/kernel": (0, 2)},
        scans=True,
        quick=True,
    ),
    Network(
        "cosine_head",
        plain(
            lambda key: (
                normal(key, kernel=(7, 8), head=(8, 4))
                | {"bias": jnp.zeros(8), "temperature": jnp.array(5.0)}
            ),
            cosine_head,
        ),
        {"head": (1,)},
        quick=True,
    ),
    Network(
        "equinox", equinox_net, {"conv/weight": (0,), "middle/weight": ()}, quick=True
    ),
    Network("nnx", nnx_net, {"conv/kernel": (3,), "dense/kernel": ()}, quick=True),
    Network("nnx_stack", nnx_stack, {"dense/kernel": (0, 2)}),
    Network("has_aux", aux_net, CONV_BN, has_aux=True, quick=True),
    # A frozen leaf has no gradient, whatever the loss does not see of it.
    Network("odd_leaves", odd_leaves, {"kernel": (), "column": ()}, in_float64=False),
    Network("complex", complex_net, {"kernel": (1,)}, quick=True),
    Network(
        "bfloat16_params",
        lambda key: low_precision(key, jnp.bfloat16, jnp.float32),
        {"conv": (1,), "middle": ()},
    ),
    Network(
        "bfloat16_compute",
        lambda key: low_precision(key, jnp.float32, jnp.bfloat16),
        {"conv": (1,), "middle": ()},
    ),
    Network(
        "bfloat16",
        lambda key: low_precision(key, jnp.bfloat16, jnp.bfloat16),
        {"conv": (1,), "middle": ()},
        keys=2,
        quick=True,
    ),
]


def check_truth(network: Network, params: Any) -> None:
    assert set(network.invariant) <= set(leaf_paths(params))
