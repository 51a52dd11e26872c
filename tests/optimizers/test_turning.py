import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

W, G, M = jax.random.normal(jax.random.key(0), (3, 6, 4, 5))
AXES = {"kernel": (-1,)}
HYPERBALL = [normopt.normalize_blocks(channel_axes=AXES, eps=0.0)]
ROTATIONAL = [
    normopt.center_blocks(AXES),
    normopt.project_tangent(AXES),
    normopt.scale_by_block_adam(0.0, 0.9, 1e-8, AXES),
]
BUILDERS = {
    "hyperball": (normopt.hyperball, HYPERBALL),
    "rotational": (normopt.rotational, ROTATIONAL),
}
every = pytest.mark.parametrize("name", BUILDERS)


def trained(optimizer, params, grads):
    """Params after each of some steps, all of them compiled as one."""

    def step(carry, g):
        updates, state = optimizer.update(g, carry[1], carry[0])
        after = optax.apply_updates(carry[0], updates)
        return (after, state), after

    start = (params, optimizer.init(params))
    return jax.jit(lambda s, g: jax.lax.scan(step, s, g)[1])(start, grads)


def noise(like, steps, scale=1.0, seed=1):
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        scale * jax.random.normal(key, (steps, *w.shape))
        for key, w in zip(keys, leaves, strict=True)
    )


@every
def test_it_is_the_chain_of_links(name):
    """That of the docstring, on blocks; the others are left to the inner optimizer."""
    build, links = BUILDERS[name]
    inner, params = optax.adam(0.01), {"kernel": W + 0.3}
    chain = optax.chain(
        inner,
        *links,
        normopt.scale_by_param_norm(AXES, min_norm=0.0),
        optax.scale(0.05),
    )
    chain = normopt.retract_to_sphere(chain, AXES, "initial")
    grads = noise(params, 10)
    ours = trained(build(inner, 0.05, AXES), params, grads)
    expected = trained(chain, params, grads)
    np.testing.assert_allclose(ours["kernel"], expected["kernel"], rtol=2e-4, atol=2e-5)


@every
def test_what_has_no_blocks_or_no_length_takes_the_inner_step(name):
    build, _ = BUILDERS[name]
    params = {
        "kernel": W.at[..., 0].set(0),
        "bias": jnp.ones(3),
        "count": jnp.arange(2),
    }
    params.pop("count")
    grads = noise(params, 3)
    inner = optax.sgd(0.1, momentum=0.9)
    ours = trained(build(inner, 0.05, AXES), params, grads)
    own = trained(inner, params, grads)
    np.testing.assert_allclose(ours["bias"], own["bias"], rtol=1e-6)
    np.testing.assert_allclose(ours["kernel"][..., 0], own["kernel"][..., 0], rtol=1e-6)


@every
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lengths_stay_in_low_precision(name, dtype):
    build, _ = BUILDERS[name]
    params = {"kernel": W.astype(dtype)}
    grads = jax.tree.map(lambda g: g.astype(dtype), noise(params, 300))
    after = trained(build(optax.adam(1e-3), 0.02, AXES), params, grads)["kernel"][-1]
    lengths = (normopt.block_norms(w, (-1,)) for w in (after, params["kernel"]))
    np.testing.assert_allclose(*lengths, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.slow("the same in low precision shows the drift, were there one")
@every
def test_lengths_equal_the_radius_over_ten_thousand_steps(name):
    build, _ = BUILDERS[name]
    tx, params = build(optax.adam(1e-3), 0.02, AXES), {"kernel": W}

    def step(carry, key):
        params, state = carry
        g = {"kernel": jax.random.normal(key, W.shape)}
        updates, state = tx.update(g, state, params)
        after = optax.apply_updates(params, updates)
        return (after, state), normopt.block_norms(after["kernel"], (-1,))

    keys = jax.random.split(jax.random.key(2), 10_000)
    scan = jax.jit(lambda start: jax.lax.scan(step, start, keys)[1])
    lengths = scan((params, tx.init(params)))
    expected = jnp.broadcast_to(normopt.block_norms(W, (-1,)), lengths.shape)
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)


STACKED = {
    "conv": (jnp.ones((3, 3, 8, 6)), (-1,)),
    "dense": (jnp.ones((48, 6)), (-1,)),
    "stack": (jnp.ones((2, 60, 4)), (0, -1)),
}


@pytest.mark.parametrize(
    "scale",
    [
        1.0,
        pytest.param(1e-6, marks=pytest.mark.slow("1 shows the angle")),
        pytest.param(1e6, marks=pytest.mark.slow("1 shows the angle")),
    ],
)
def test_the_learning_rate_is_the_angle_of_a_step(scale):
    axes = {f"^{leaf}$": own for leaf, (_, own) in STACKED.items()}
    like = {leaf: w for leaf, (w, _) in STACKED.items()}
    params = normopt.centered(jax.tree.map(lambda w: w[0], noise(like, 1)), axes)
    after = trained(
        normopt.rotational(optax.adam(1e-3), 0.01, axes),
        params,
        noise(params, 1000, scale),
    )
    for leaf, (w, own) in STACKED.items():
        kept = {axis % w.ndim + 1 for axis in own}
        within = tuple({*range(1, w.ndim + 1)} - kept)
        x = np.asarray(after[leaf][99:], np.float64)
        unit = x / np.sqrt((x**2).sum(within, keepdims=True))
        chords = np.sqrt((np.diff(unit, axis=0) ** 2).sum(within))
        found = np.sqrt(np.mean((2 * np.arcsin(chords / 2)) ** 2))
        assert abs(found / 0.01 - 1) < 0.01, (leaf, found)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_learning_rate_is_the_relative_length_of_a_step(scale):
    tx = normopt.hyperball(optax.sgd(1.0), 0.1)
    params = {"kernel": W, "bias": jnp.ones(3)}
    grads = {"kernel": scale * G, "bias": jnp.ones(3)}
    updates, state = tx.update(grads, tx.init(params), params)
    assert sorted(state[1].radius) == ["kernel@"]
    radius = normopt.block_norms(W)
    q = W - 0.1 * radius * G / normopt.block_norms(G)
    after = optax.apply_updates(params, updates)["kernel"]
    expected = radius * q / normopt.block_norms(q)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_a_step_along_the_weights_turns_nothing():
    params = {"kernel": W - W.mean((0, 1))}
    tx = normopt.rotational(optax.sgd(1.0), 0.1, AXES)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jnp.abs(updates["kernel"]).max() < 1e-6


@every
def test_the_loss_of_a_small_network_falls(name):
    build, _ = BUILDERS[name]
    x = jax.random.normal(jax.random.key(3), (64, 6))
    y = jnp.sin(x @ jnp.arange(6.0))[:, None]
    params = {"hidden": W[:, 0], "bias": jnp.zeros(5), "out": jnp.ones((5, 1))}

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["hidden"] + p["bias"]) @ p["out"] - y) ** 2)

    start, tx = float(loss(params)), build(optax.adam(1e-2), 0.02)
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    for _ in range(100):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert float(loss(params)) < 0.8 * start


@every
def test_a_state_of_other_blocks_is_refused(name):
    build, _ = BUILDERS[name]
    params, inner = {"kernel": W}, optax.sgd(0.1)
    state = build(inner, 0.1, (0,)).init(params)
    with pytest.raises(ValueError, match=f"`{name}`: the state was made for other"):
        build(inner, 0.1, AXES).update(params, state, params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner": "adam"}, TypeError, "`{}` wraps an optimizer such as"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate` must be at least 0"),
        ({"channel_axes": 1.5}, TypeError, "`channel_axes` must be None or"),
    ],
)
@every
def test_bad_options_are_refused_when_built(name, options, error, message):
    build, _ = BUILDERS[name]
    plain = {"inner": optax.sgd(0.1), "learning_rate": 0.1}
    with pytest.raises(error, match=message.format(name)):
        build(**{**plain, **options})


def test_bad_numbers_of_the_average_are_refused():
    for option, value in {"b2": 1.0, "eps": -1.0}.items():
        with pytest.raises(ValueError, match=f"`{option}` must be at least 0"):
            normopt.rotational(optax.sgd(0.1), 0.1, **{option: value})
    with pytest.raises(TypeError, match="`center` must be True or False"):
        normopt.rotational(optax.sgd(0.1), 0.1, center="yes")


@every
def test_defaults_can_be_written_down_and_injected(name):
    build, _ = BUILDERS[name]
    inner = {"name": "sgd", "learning_rate": 0.1}
    written = normopt.config(name, inner=inner, learning_rate=0.1)
    rule = {"hyperball": "whole_leaves", "rotational": "output_channels"}[name]
    assert written["channel_axes"]["name"] == rule
    injected = optax.inject_hyperparams(build)(optax.sgd(0.1), learning_rate=0.1)
    params = {"kernel": W, "bias": jnp.ones(3)}
    grads = {"kernel": G, "bias": jnp.ones(3)}
    found = [
        tx.update(grads, tx.init(params), params)[0]
        for tx in (normopt.make(**written), injected, build(optax.sgd(0.1), 0.1))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other["kernel"], found[0]["kernel"], rtol=1e-5)
