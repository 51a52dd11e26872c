"""Muon, NorMuon and Scion: what they step, and who takes the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

PARAMS = {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4), "scale": jnp.ones(())}


def grads(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        name: jax.random.normal(key, w.shape)
        for key, (name, w) in zip(keys, PARAMS.items(), strict=True)
    }


def stepped(tx, params=PARAMS, steps=3):
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, updates


@pytest.mark.parametrize(
    "tx",
    [
        normopt.muon(0.1),
        normopt.normuon(0.1),
        normopt.scion(0.1, norms={"kernel": "spectral"}),
    ],
    ids=["muon", "normuon", "scion"],
)
def test_leaves_that_nobody_takes_are_listed_at_init(tx):
    with pytest.raises(ValueError, match="no step for 'bias', 'scale'.*rest=optax"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: normopt.scion(0.1, norms="l2", radii=-1.0), "`radii` must be at leas"),
        (
            lambda: normopt.scion(0.1, norms="l2", radii={"kernle": 2.0}),
            "^`radii`: no parameter path matches 'kernle'",
        ),
        (
            lambda: normopt.scion(0.1, norms={"kernle": "l2"}),
            "^`norms`: no parameter path matches 'kernle'",
        ),
        (
            lambda: normopt.muon(0.1, scale={"kernle": 2.0}, rest=optax.sgd(0.1)),
            "^the callable `scale` .*`scale`: no parameter path matches 'kernle'",
        ),
        (
            lambda: normopt.muon(0.1, matrices={"kernel": (0, 2)}),
            "needs an axis .*'kernel'.*from -2 to 1, `None` leaves it alone$",
        ),
    ],
)
def test_errors_name_the_option_that_was_given(build, message):
    with pytest.raises(ValueError, match=message):
        build().init(PARAMS)


def test_injected_steps_have_to_be_static():
    params = {"kernel": jnp.ones((2, 2))}
    tx = optax.inject_hyperparams(normopt.muon)(0.1)
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"static_args=\('steps',\)"):
        jax.eval_shape(tx.update, params, state, params)


@pytest.mark.parametrize("build", [normopt.muon, normopt.normuon])
def test_the_rest_is_stepped_by_its_own_optimizer(build):
    params, _ = stepped(build(0.1, rest=optax.adam(0.01)))
    alone = {name: PARAMS[name] for name in ("bias", "scale")}
    tx = optax.adam(0.01)
    state = tx.init(alone)
    for step in range(3):
        own = {name: grads(step)[name] for name in alone}
        updates, state = tx.update(own, state, alone)
        alone = optax.apply_updates(alone, updates)
    for name, w in alone.items():
        np.testing.assert_allclose(params[name], w, rtol=1e-6)


def test_scales_are_named_by_their_formula():
    lengths = {}
    for scale in ("shape", "rms", "spectral", None, 3.0):
        tx = normopt.muon(1.0, scale={"kernel": scale}, rest=optax.sgd(0.0))
        _, updates = stepped(tx, steps=1)
        lengths[scale] = float(jnp.linalg.norm(updates["kernel"]))
    plain = lengths.pop(None)
    wanted = {"shape": 1.0, "rms": 0.2 * 6**0.5, "spectral": (4 / 6) ** 0.5, 3.0: 3.0}
    for scale, factor in wanted.items():
        np.testing.assert_allclose(lengths[scale] / plain, factor, rtol=1e-5)
    with pytest.raises(ValueError, match="`scale` must be one of shape, rms, spectral"):
        normopt.muon(0.1, scale="spectrum")


def test_a_step_of_normuon_is_as_long_as_that_of_muon_and_even_over_outputs():
    _, even = stepped(normopt.normuon(0.1, rest=optax.sgd(0.0)), steps=1)
    _, plain = stepped(normopt.muon(0.1, rest=optax.sgd(0.0)), steps=1)
    norms = [float(normopt.block_norms(u["kernel"])) for u in (even, plain)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    rows = normopt.block_norms(even["kernel"], (-1,))
    np.testing.assert_allclose(rows, rows[0], rtol=1e-5)


def test_scion_stays_within_its_radius():
    tx = normopt.scion(0.3, norms="max", radii=0.5, constrained=True)
    params = jax.tree.map(lambda w: 0.4 * w, PARAMS)
    params, _ = stepped(tx, params, steps=10)
    assert all(float(jnp.abs(w).max()) <= 0.5 + 1e-6 for w in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "build",
    [
        lambda rate: normopt.muon(rate, rest=optax.sgd(rate)),
        lambda rate: normopt.normuon(rate, rest=optax.sgd(rate)),
        lambda rate: normopt.scion(rate, norms={"kernel": "spectral", "": "avg_l2"}),
    ],
    ids=["muon", "normuon", "scion"],
)
def test_the_loss_falls(build):
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = (
        jax.random.normal(key, (16, n)) for key, n in zip(keys, (6, 4), strict=True)
    )

    def loss(p):
        return jnp.mean((x @ p["kernel"] * p["scale"] + p["bias"] - y) ** 2)

    tx, params = build(0.03), PARAMS
    state = tx.init(params)
    first = loss(params)
    for _ in range(30):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < first / 2


def test_what_makes_no_sense_is_refused_when_built():
    with pytest.raises(TypeError, match="`muon` wraps an optimizer.*rest=0.1"):
        normopt.muon(0.1, rest=0.1)
    with pytest.raises(ValueError, match="`momentum`"):
        normopt.muon(0.1, 1.0)
    with pytest.raises(ValueError, match="`b2`"):
        normopt.normuon(0.1, 0.9, 1.0)
    with pytest.raises(TypeError, match="`constrained`"):
        normopt.scion(0.1, norms="max", constrained="no")
    with pytest.raises(ValueError, match="steepest descent"):
        normopt.scion(0.1, norms={"kernel": "std"})


# Length and direction apart.


def test_a_length_keeps_its_own_optimizer():
    tx = normopt.decouple_length(optax.sgd(0.1), optax.sgd(0.0), {"kernel": (-1,)})
    params, _ = stepped(tx)
    before, after = (normopt.block_norms(p["kernel"], (-1,)) for p in (PARAMS, params))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert float(jnp.abs(params["kernel"] - PARAMS["kernel"]).max()) > 1e-2


def test_it_is_weight_normalization():
    def unpacked(parts):
        v, g = parts
        return g * v / jnp.linalg.norm(v, axis=0)

    target = jax.random.normal(jax.random.key(5), (6, 4))
    w = jax.random.normal(jax.random.key(6), (6, 4))

    def loss(w):
        return jnp.sum((w - target) ** 2)

    tx = normopt.decouple_length(optax.sgd(0.05), optax.sgd(0.02), (-1,))
    state, parts, ours = tx.init(w), (w, jnp.linalg.norm(w, axis=0)), w
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        of_v, of_g = jax.grad(lambda parts: loss(unpacked(parts)))(parts)
        parts = parts[0] - 0.05 * of_v, parts[1] - 0.02 * of_g
    np.testing.assert_allclose(ours, unpacked(parts), rtol=2e-5)


def test_a_block_of_length_zero_starts_by_the_directions_step():
    tx = normopt.decouple_length(optax.sgd(0.5), optax.sgd(0.1), (-1,))
    w = jnp.zeros((3, 2))
    updates, state = tx.update(jnp.ones((3, 2)), tx.init(w), w)
    np.testing.assert_allclose(updates, -0.5)
    updates, _ = tx.update(jnp.ones((3, 2)), state, updates)
    assert bool(jnp.isfinite(updates).all())
