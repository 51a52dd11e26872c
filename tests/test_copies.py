"""XLA's CPU stores nothing of the size of a leaf between a sum and what follows it."""

import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normopt
from normopt import copies
from tests.versions import (
    needs_mixed_places,
    needs_one_platform,
    needs_shard_map,
    needs_sums_of_parts,
    set_mesh,
)

AXES = (-1,)
CHAINS = {
    "adams": lambda: normopt.adams(0.1, weight_decay=0.1, channel_axes=AXES),
    "adamsrt": lambda: normopt.adamsrt(0.1, weight_decay=0.1, channel_axes=AXES),
    "adamg": lambda: normopt.adamg(0.1, channel_axes=AXES),
    "adamp": lambda: normopt.adamp(0.1, weight_decay=0.1),
    "a chain of one's own": lambda: optax.chain(
        normopt.add_decay(0.1),
        normopt.scale_by_path(0.5),
        normopt.scale_by_block_adam(channel_axes=AXES),
        optax.scale(-0.1),
    ),
}
# A sum over fewer numbers than XLA hands to its library would be fused either way.
PARAMS = jax.random.normal(jax.random.key(0), (512, 256))


def stepper(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


@needs_sums_of_parts
@pytest.mark.parametrize("name", CHAINS)
def test_no_place_is_taken_for_what_is_summed(name):
    tx = CHAINS[name]()
    state = jax.eval_shape(tx.init, PARAMS)
    program = stepper(tx).lower(PARAMS, state, PARAMS).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.1 * PARAMS.nbytes
    assert " conditional(" not in program.as_text()


BEHIND_ADAM = {
    "hyperball": lambda adam: normopt.hyperball(adam, 0.1),
    "rotational": lambda adam: normopt.rotational(adam, 0.1),
    "bound_relative_step": lambda adam: optax.chain(
        adam, normopt.bound_relative_step(ceiling=0.1)
    ),
    "observe": normopt.observe,
}


@needs_sums_of_parts
@pytest.mark.parametrize("name", BEHIND_ADAM)
def test_what_several_sums_read_is_stored_once_in_memory_for_a_few_leaves(name):
    """Of six, as XLA orders them, at most three are there at once."""
    tx = BEHIND_ADAM[name](optax.adam(0.1))
    params = [PARAMS, jnp.ones(8), PARAMS, jnp.ones(8), *[PARAMS] * 4]
    traced = stepper(tx).trace(params, jax.eval_shape(tx.init, params), params)
    program = traced.lower().compile()
    assert program.memory_analysis().temp_size_in_bytes < 3.1 * PARAMS.nbytes
    for platform, has in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert bool(re.search("compare.*512x256", text)) == has


@pytest.mark.parametrize("other", [1.0, jnp.nan, jnp.inf, 1j, True])
def test_what_is_stored_or_comes_after_stays_as_it_is(other):
    x = PARAMS.at[0, :5].set(jnp.array([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan]))
    beside = jnp.full_like(x, jnp.real(other))
    stored = jax.jit(copies.stored)(x, beside, jnp.full(3, other))
    after = jax.jit(copies.after)(x, jnp.full(1, other), jnp.full(256, other))
    bits = [np.asarray(one).view(np.uint32) for one in (x, stored, after)]
    np.testing.assert_array_equal(bits[1:], [bits[0]] * 2)


@needs_mixed_places
def test_a_step_may_differ_from_the_weights_in_dtype_or_place():
    """As types that hold a sharding tell, also of a single device."""
    signs = optax.stateless(lambda u, _: jnp.sign(u).astype(jnp.int8))
    tx = normopt.observe(signs, AXES)
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates, jnp.sign(PARAMS))
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    with set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec("x")))
        grads = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
        tx = normopt.hyperball(optax.sgd(0.1), 0.1, AXES)
        ours, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    expected, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BEHIND_ADAM)
def test_one_leaf_of_two_is_mapped(name):
    """Inside and outside of `jit`; the other one is computed once."""
    tx = BEHIND_ADAM[name](optax.sgd(0.1))

    def step(*params):
        grads = [leaf[::-1] for leaf in params]
        return tx.update(grads, tx.init([*params]), [*params])[0]

    several = jnp.stack([PARAMS, 2 * PARAMS])
    expected = [*zip(*[step(first, PARAMS) for first in several], strict=True)]
    how = {"in_axes": (0, None), "out_axes": [0, None]}
    for call in (jax.jit(jax.vmap(step, **how)), jax.vmap(jax.jit(step), **how)):
        ours = call(several, PARAMS)
        for one, each in zip((ours[0], [ours[1]] * 2), expected, strict=True):
            np.testing.assert_allclose(one, each, rtol=1e-5, atol=1e-6)


@needs_shard_map
@pytest.mark.parametrize("name", [*BEHIND_ADAM, "adamg"])
def test_one_leaf_of_two_differs_between_devices(name):
    tx = CHAINS[name]() if name in CHAINS else BEHIND_ADAM[name](optax.sgd(0.1))

    def step(*params):
        grads = [leaf[::-1] for leaf in params]
        return tx.update(grads, tx.init([*params]), [*params])[0]

    specs = [PartitionSpec("x"), PartitionSpec()]
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    how = {"mesh": mesh, "in_specs": (*specs,), "out_specs": specs}
    mapped = jax.jit(jax.shard_map(step, **how))
    both = PARAMS, PARAMS
    for ours, expected in zip(mapped(*both), step(*both), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        normopt.hyperball(optax.sgd(0.1), 0.1, (0, -1)),
        normopt.orthogonalize(((1,), (2,))),
    ],
    ids=["hyperball", "orthogonalize"],
)
def test_leaves_alike_on_an_explicit_mesh(tx):
    """What one leaf hands to the next, or both to a batch, lies on its mesh."""
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    layers = PARAMS.reshape(8, 64, 256)
    expected, _ = tx.update([layers] * 2, tx.init([layers] * 2), [layers] * 2)
    with set_mesh(mesh):
        spec = PartitionSpec("x", None, "y")
        params = [jax.device_put(layers, NamedSharding(mesh, spec))] * 2
        ours, _ = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow("five steps of a large leaf, with copies and without")
@pytest.mark.parametrize("name", CHAINS)
def test_the_numbers_are_those_of_steps_without_copies(name, monkeypatch):
    def train():
        tx = CHAINS[name]()
        params, state = PARAMS, tx.init(PARAMS)
        step = jax.jit(tx.update)
        for seed in range(5):
            grads = jax.random.normal(jax.random.key(seed), PARAMS.shape)
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = train()
    monkeypatch.setattr(copies, "remember", lambda *_: None)
    monkeypatch.setattr("normopt.leafwise.remember", lambda *_: None)
    jax.clear_caches()
    np.testing.assert_allclose(ours, train(), rtol=0, atol=2.4e-7)


@needs_one_platform
def test_elsewhere_than_on_a_cpu_there_is_no_barrier():
    tx = CHAINS["adams"]()
    state = jax.eval_shape(tx.init, PARAMS)
    traced = stepper(tx).trace(PARAMS, state, PARAMS)
    for platform, has in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) == has


def test_nothing_of_a_trace_outlives_it():
    # Axes of its own: nothing is known yet of its steps.
    tx = normopt.adamp(0.1, weight_decay=0.1, channel_axes=(0,))
    with jax.checking_leaks():
        stepper(tx).lower(PARAMS, jax.eval_shape(tx.init, PARAMS), PARAMS)
    gc.collect()
    assert not copies._MADE


def test_a_step_outside_jit_and_under_a_derivative():
    tx = CHAINS["adamsrt"]()
    state = tx.init(PARAMS)

    def length(decay):
        tx = normopt.adamsrt(0.1, weight_decay=decay, channel_axes=AXES)
        updates, _ = tx.update(jnp.ones_like(PARAMS), state, PARAMS)
        return jnp.sum(updates * PARAMS)

    near = (length(0.11) - length(0.09)) / 0.02
    np.testing.assert_allclose(jax.grad(length)(0.1), near, rtol=2e-2)
    several = jax.vmap(length)(jnp.array([0.09, 0.11]))
    np.testing.assert_allclose(several, [length(0.09), length(0.11)], rtol=1e-4)


@pytest.mark.parametrize("build", [normopt.adamg, normopt.adamp, normopt.adamsrt])
def test_steps_of_large_leaves_are_mapped(build):
    """Over rates, where what a copy would be made of may be gone."""
    params = jnp.ones((256, 256)) * jnp.arange(1.0, 257)

    def step(rate):
        tx = build(rate, weight_decay=0.1, channel_axes=(-1,))
        return tx.update(params, tx.init(params), params)[0]

    rates = jnp.array([0.1, 0.2])
    each = jnp.stack([step(rate) for rate in rates])
    np.testing.assert_allclose(jax.vmap(step)(rates), each, rtol=1e-5)
