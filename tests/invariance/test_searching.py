import itertools
import json
import math
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normopt import adamg, describe, find_scale_invariance, normalize_blocks
from normopt.invariance.evidence import SAMPLE, Products, Sample, partitions
from normopt.invariance.pieces import PIECE, length, pieces
from tests.invariance.oracle import Oracle
from tests.modern_networks import (
    HOMOGENEOUS,
    MODERN_NETWORKS,
    SCALES,
    SIZES,
    SMOOTH,
    before_rms,
)
from tests.networks import NETWORKS, Network, check_truth
from tests.odd_networks import ODD_NETWORKS
from tests.stranger_networks import STRANGER_NETWORKS
from tests.versions import FLAX_SCANS, enable_x64

EVERY_NETWORK = NETWORKS + ODD_NETWORKS + MODERN_NETWORKS + STRANGER_NETWORKS
EVERY = [
    pytest.param(
        *(network, key),
        id=f"{network.name}-{key}",
        marks=[]
        if network.quick and key == 0
        else pytest.mark.slow("one of each kind is quick"),
    )
    for network in EVERY_NETWORK
    for key in range(network.keys)
]


@pytest.fixture(autouse=True, scope="module")
def _compiles_fast():
    """Each network is compiled once and run on a few numbers."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def anchored(paths: dict[str, Any]) -> dict[str, Any]:
    return {f"^{re.escape(path)}$": axes for path, axes in paths.items()}


@pytest.mark.parametrize(("network", "key"), EVERY)
def test_finds_the_truth(network: Network, key: int):
    if network.scans and not FLAX_SCANS:
        pytest.skip("flax scans from jax 0.6.2 on")
    loss_fn, params, args = network.build(jax.random.key(key))
    check_truth(network, params)
    found = find_scale_invariance(loss_fn, params, *args, has_aux=network.has_aux)
    assert found == anchored(network.invariant)


IN_FLOAT64 = [
    pytest.param(
        network,
        id=network.name,
        marks=[]
        if network.name in ("gelu_before_rms", "gemma")
        else pytest.mark.slow("two show that the truths are held against it"),
    )
    for network in EVERY_NETWORK
    if network.in_float64
]


@pytest.mark.parametrize("network", IN_FLOAT64)
def test_the_truth_is_that_of_brute_force(network: Network):
    loss_fn, params, args = network.build(jax.random.key(0))
    oracle = Oracle(loss_fn, params, args, network.has_aux)
    assert oracle.mistakes(network.invariant) == {}


@pytest.mark.slow("24 tries of each; one of each is quick above")
@pytest.mark.parametrize("name", SMOOTH | HOMOGENEOUS)
def test_smooth_activations_before_a_norm(name: str):
    for size, scale, key in itertools.product(SIZES, SCALES, range(4)):
        build = before_rms((SMOOTH | HOMOGENEOUS)[name], size, scale)
        loss_fn, params, args = build(jax.random.key(key))
        found = find_scale_invariance(loss_fn, params, *args)
        # With the smaller weights the epsilon of 1e-6 can be seen in w2.
        assert ("^w1$" in found) <= (name in HOMOGENEOUS), (size, scale, key)
        oracle = Oracle(loss_fn, params, args, has_aux=False)
        plain = {pattern[1:-1]: axes for pattern, axes in found.items()}
        assert oracle.mistakes(plain) == {}, (size, scale, key)


def scale_free(params: Any, x: jax.Array) -> jax.Array:
    h = x @ params["kernel"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) + params["bias"]
    return jnp.mean((jnp.tanh(h) @ params["head"]) ** 2 + h @ params["head"])


def weights() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "kernel": jax.random.normal(keys[0], (5, 4)),
        "bias": jnp.zeros(4),
        "head": jax.random.normal(keys[1], (4, 1)),
    }


BATCH = jax.random.normal(jax.random.key(9), (16, 5))
FOUND = {"^kernel$": (1,)}


def test_result_is_json_and_goes_into_channel_axes():
    found = find_scale_invariance(scale_free, weights(), BATCH)
    assert found == FOUND
    assert json.loads(json.dumps(found)) == {"^kernel$": [1]}
    assert "4 of 5" in describe(weights(), channel_axes=found)
    normalize_blocks(channel_axes=found).init(weights())


def test_pattern_is_anchored():
    params = {"tail": weights()} | weights()
    found = find_scale_invariance(
        lambda p, x: scale_free(p, x) + jnp.sum(p["tail"]["kernel"] ** 2), params, BATCH
    )
    assert found == FOUND
    names = ["a.b", "a+b", "a b"]
    params = {name: weights()["kernel"] for name in names} | weights()
    found = find_scale_invariance(
        lambda p, x: sum(scale_free(p | {"kernel": p[name]}, x) for name in names),
        params,
        BATCH,
    )
    assert found == anchored(dict.fromkeys(sorted(names), (1,)))
    assert describe(params, channel_axes=found).count("4 of 5") == 3


def test_is_deterministic_and_holds_for_other_keys():
    for key in (None, None, jax.random.key(7), jax.random.PRNGKey(3)):
        assert find_scale_invariance(scale_free, weights(), BATCH, key=key) == FOUND


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_units_of_the_weights_do_not_matter(size):
    params = weights()
    params["kernel"] *= size

    def loss_fn(params, x):
        h = x @ params["kernel"]
        return jnp.mean(jnp.sin(h / jnp.linalg.norm(h, axis=0)) @ params["head"])

    params.pop("bias")
    assert find_scale_invariance(loss_fn, params, BATCH) == FOUND


def test_arguments_may_be_anything_and_python_numbers_are_kept():
    def loss_fn(params, x, act, options, labels):
        assert isinstance(params["rate"], float)
        assert options == {"train": True, "names": ["a"]}
        assert labels.dtype.kind == "U"
        return act(scale_free(params, x))

    args = (np.asarray(BATCH), jnp.tanh, {"train": True, "names": ["a"]})
    params = weights() | {"rate": 0.5}
    found = find_scale_invariance(loss_fn, params, *args, np.array(["x", "y"]))
    assert found == FOUND
    assert "rate" not in found.left_out


def whole_equinox_module():
    model = eqx.nn.MLP(
        *(5, 3, 8, 1), use_bias=False, use_final_bias=False, key=jax.random.key(1)
    )
    norm = eqx.nn.RMSNorm(3, eps=1e-8, use_bias=False)

    def loss_fn(model, x):
        mlp, norm = model
        return jnp.mean((jax.vmap(lambda x: norm(mlp(x)))(x) - 1) ** 2)

    return loss_fn, (model, norm)


class Stateful(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.gelu(self.norm(self.dense(x)))))


def mean_square(model, x):
    return jnp.mean((model(x) - 1) ** 2)


def whole_state():
    graph, state = nnx.split(Stateful())
    return lambda state, x: mean_square(nnx.merge(graph, state), x), state


WHOLE = {
    "equinox": (
        whole_equinox_module,
        anchored({f"0/layers/{i}/weight": () for i in (0, 1)}),
    ),
    "nnx": (lambda: (mean_square, Stateful()), anchored({"dense/kernel": (1,)})),
    "state": (whole_state, anchored({"dense/kernel": (1,)})),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_modules_and_states_are_taken_and_described(kind):
    build, expected = WHOLE[kind]
    loss_fn, model = build()
    found = find_scale_invariance(loss_fn, model, BATCH)
    assert found == expected
    blocks = "1 of 24" if kind == "equinox" else "4 of 5"
    assert blocks in describe(model, channel_axes=found)


def test_what_is_left_out_is_told_with_the_reason():
    found = find_scale_invariance(scale_free, weights(), BATCH)
    assert set(found.left_out) == {"bias", "head"}
    assert re.match("its gradient is not orthogonal .* chance", found.left_out["head"])
    params = {"w": jnp.arange(1.0, 7.0), "unused": jnp.ones(3), "one": jnp.ones(1)}

    def lies(p):
        tangent = p["w"] / jnp.linalg.norm(p["w"])
        w = tangent * jax.lax.stop_gradient(jnp.linalg.norm(p["w"]))
        return jnp.sum(jnp.sin(w)) + p["one"][0]

    left_out = find_scale_invariance(lies, params).left_out
    assert re.match(r"scaling its blocks by \(\) changes the loss", left_out["w"])
    assert left_out["unused"] == "its gradient is zero or rounding"
    assert left_out["one"] == "it is no block: one element"


def test_float64():
    with enable_x64(True):
        params = jax.tree.map(lambda w: w.astype(jnp.float64), weights())
        batch = jnp.asarray(np.asarray(BATCH), jnp.float64)
        assert find_scale_invariance(scale_free, params, batch) == FOUND


def test_trees_without_anything_to_find():
    assert find_scale_invariance(lambda p: 0.0, {}) == {}
    assert find_scale_invariance(lambda p: 1.0, {"steps": jnp.arange(3)}) == {}
    assert find_scale_invariance(lambda p: 1.0, {"unused": jnp.ones(3)}) == {}
    # A leaf that is the whole tree has the empty path; a scalar is no block.
    assert find_scale_invariance(lambda w: w[0] / jnp.linalg.norm(w), jnp.ones(3)) == {
        "^$": ()
    }
    assert find_scale_invariance(lambda w: w / jnp.abs(w), jnp.array(2.0)) == {}


def test_moves_that_leave_the_domain_are_halved():
    def loss_fn(params):
        inside = jnp.sqrt(params["narrow"] - 0.9)  # NaN below
        return jnp.sum(inside * jnp.sin(params["w"] / jnp.linalg.norm(params["w"])))

    params = {"narrow": jnp.ones(6), "w": jnp.arange(1.0, 7.0)}
    assert find_scale_invariance(loss_fn, params) == {"^w$": ()}


class Bad(NamedTuple):
    name: str
    loss_fn: Any
    error: type[Exception]
    match: str
    params: Any = {"w": jnp.ones(3)}
    has_aux: bool = False


BAD = [
    Bad("not_callable", 3, TypeError, "must be callable, got 3"),
    Bad("pair", lambda p: (jnp.sum(p["w"]), 1), TypeError, "has_aux=True"),
    Bad("vector", lambda p: p["w"], TypeError, r"one real number.*float32\[3\]"),
    Bad("one", lambda p: p["w"][:1], TypeError, r"float32\[1\]; take its mean, or the"),
    Bad(
        "dict",
        lambda p: {"loss": p["w"][0], "accuracy": 1},
        TypeError,
        "a dict with 'loss', 'accuracy'; return the entry that is the loss",
    ),
    Bad(
        "branch",
        lambda p: p["w"][0] if p["w"][0] > 0 else 0.0,
        TypeError,
        r"needs one \(test_searching.py, line \d+\): no `if`",
    ),
    Bad("numpy", lambda p: np.sum(p["w"]) + np.asarray(p["w"])[0], TypeError, "NumPy"),
    Bad("complex", lambda p: p["w"][0] * 1j, TypeError, "complex64"),
    Bad("integer", lambda p: jnp.int32(1), TypeError, "int32"),
    Bad("none", lambda p: None, TypeError, "None"),
    Bad("no_pair", lambda p: p["w"][0], TypeError, "pair", has_aux=True),
    Bad(
        "shapes",
        lambda p: jnp.sum(p["w"]),
        TypeError,
        "needs arrays, got ShapeDtypeStruct.* at 'w'",
        {"w": jax.ShapeDtypeStruct((3,), jnp.float32)},
    ),
    Bad("nan", lambda p: jnp.sum(p["w"]) * jnp.nan, ValueError, "finite.*nan"),
    Bad("gradient", lambda p: jnp.sqrt(jnp.sum(p["w"] - 1)), ValueError, "finite"),
    Bad(
        "paths",
        lambda p: jnp.sum(p["a/b"]),
        ValueError,
        "path 'a/b'",
        {"a": {"b": jnp.ones(3)}, "a/b": jnp.ones(3)},
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_refuses(bad: Bad):
    with pytest.raises(bad.error, match=bad.match) as caught:
        find_scale_invariance(bad.loss_fn, bad.params, has_aux=bad.has_aux)
    assert "Tracer" not in str(caught.value)


def test_partitions_are_the_finest_first_and_then_the_later():
    assert partitions((3, 3)) == [(1,), (0,), ()]
    assert partitions((3, 1, 2)) == [(0,), (2,), ()]
    assert partitions((2, 3, 4)) == [(1, 2), (0, 2), (0, 1), (2,), (1,), (0,), ()]
    assert partitions((5,)) == [()]
    assert partitions((5, 1)) == [()]
    for shape in [(), (1,), (1, 1)]:
        assert partitions(shape) == []


def test_the_measure_is_of_random_lengths_beside_random_moves():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 3, 4, 5))
    g[:, :, 0] = 0
    for axes in partitions((3, 4, 5)):
        within = tuple({0, 1, 2} - set(axes))
        dots = (w * g).sum(within)
        squares = (w**2).sum(within) * (g**2).sum(within) / (w.size / dots.size)
        for unit in (1.0, 1e-30):
            found = Products(w * unit, g).radials([axes])[axes]
            np.testing.assert_allclose(found.dots, dots.ravel() * unit)
            np.testing.assert_allclose(
                found.measure, np.sqrt((dots**2).sum() / squares.sum())
            )


@pytest.mark.parametrize(
    "shape", [(), (1, 4), (5, PIECE + 3), (2, 3, PIECE), (70, 999)]
)
def test_pieces_are_the_whole_in_order(shape):
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    parts = [(part, x[index]) for index, part in pieces(x)]
    np.testing.assert_array_equal(
        np.concatenate([p.ravel() for p, _ in parts]), x.ravel()
    )
    assert all(part.shape == there.shape for part, there in parts)
    assert max(part.size for part, _ in parts) <= PIECE


def test_rounding_is_what_differs_between_two_gradients():
    g = np.random.default_rng(1).normal(size=(6, 4))
    assert Sample.of(g).rounding(g * 1.01) == pytest.approx(0.01)
    assert Sample.of(g).rounding(g * 3.03, factor=3.0) == pytest.approx(0.01)
    assert Sample.of(0 * g).rounding(g) == np.inf
    long = np.resize([0.0, 1.0, 2.0], 2 * PIECE + 1)
    chosen = np.flatnonzero(long)
    step = len(chosen) // SAMPLE
    np.testing.assert_array_equal(Sample.of(long).chosen, chosen[::step])
    assert length(g * 1e-200) == pytest.approx(1e-200 * np.linalg.norm(g))


def test_found_blocks_can_be_brought_to_the_sphere_without_a_change_of_loss():
    params = weights()
    found = find_scale_invariance(scale_free, params, BATCH)
    optimizer = adamg(0.0, channel_axes=found)
    grads = jax.grad(scale_free)(params, BATCH)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.linalg.norm(moved["kernel"], axis=0), 1, rtol=1e-5)
    before, after = scale_free(params, BATCH), scale_free(moved, BATCH)
    np.testing.assert_allclose(before, after, rtol=1e-4)
