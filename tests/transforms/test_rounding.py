import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normopt
from tests.contract_cases import follow


def after_decay(optimizer, dtype, steps=1000):
    """What is left of a few weights of different sizes."""
    start = jnp.array([1.0, -0.75, 3e-3, 100.0], dtype)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jnp.zeros_like(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))(
        (start, optimizer.init(start))
    )
    return (w / start).astype(jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "optimizer",
    [
        normopt.decay_weights(1e-3),
        optax.chain(normopt.add_decay(1e-3), optax.scale(-1.0)),
        normopt.adamw(0.1, weight_decay=1e-3),
        optax.adamw(0.01, weight_decay=0.1),
    ],
    ids=["decay_weights", "add_decay", "adamw", "optax.adamw"],
)
def test_small_decays_add_up(optimizer, dtype):
    left = after_decay(normopt.compensate_rounding(optimizer), dtype)
    np.testing.assert_allclose(left, 0.999**1000, rtol=0.02)


def test_without_it_a_decay_in_bfloat16_does_nothing():
    assert (after_decay(normopt.decay_weights(1e-3), jnp.bfloat16) == 1).all()
    assert (after_decay(optax.adamw(0.01, weight_decay=0.1), jnp.bfloat16) == 1).all()


@pytest.mark.parametrize(
    "dtype",
    [
        jnp.bfloat16,
        pytest.param(jnp.float16, marks=pytest.mark.slow("bfloat16 shows it")),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.sgd(0.003, momentum=0.9),
        lambda: normopt.adamw(0.003, weight_decay=1e-3),
        lambda: normopt.adamsrt(0.003, channel_axes=(-1,)),
    ],
    ids=["sgd", "adamw", "adamsrt"],
)
def test_weights_are_those_of_float32_training_rounded(make, dtype):
    key = jax.random.key(0)
    start = jax.random.normal(key, (8, 4)).astype(dtype)
    grads = jax.random.normal(jax.random.fold_in(key, 1), (60, 8, 4)).astype(dtype)
    wide = jax.jit(make().update)
    w32, state32 = start.astype(jnp.float32), make().init(start.astype(jnp.float32))
    compensated = normopt.compensate_rounding(make())
    low, step = start, jax.jit(compensated.update)
    state = compensated.init(start)
    for g in grads:
        updates, state = step(g, state, low)
        assert updates.dtype == jnp.float32
        low = optax.apply_updates(low, updates)
        assert low.dtype == dtype
        updates, state32 = wide(g.astype(jnp.float32), state32, w32)
        w32 = optax.apply_updates(w32, updates)
        # The sum of both is the weight of float32, to float32's rounding.
        exact = low.astype(jnp.float32) + state.residue
        np.testing.assert_allclose(exact, w32, rtol=1e-5, atol=1e-6)
        nearest = exact.astype(dtype)
        np.testing.assert_array_equal(nearest, low)


def test_the_rounding_is_one_that_a_compiler_must_not_take_out():
    """A cast to bfloat16 and back it may, and on GPU does: all residues would be 0."""
    optimizer = normopt.compensate_rounding(optax.sgd(0.1))
    w = jnp.ones(2, jnp.bfloat16)
    update = jax.make_jaxpr(optimizer.update)(w, optimizer.init(w), w)
    assert "reduce_precision[exponent_bits=8 mantissa_bits=7]" in str(update)
    assert "new_dtype=bfloat16" not in str(update)


def test_small_numbers_of_float16_are_kept():
    """Below the normal numbers a rounding of the exponent would make them zero."""
    w = jnp.array([3e-6, -5.96e-8, 1.0], jnp.float16)
    optimizer = normopt.compensate_rounding(optax.sgd(1.0))
    state = optimizer.init(w)
    updates, state = optimizer.update(jnp.zeros_like(w), state, w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates), w)
    assert (state.residue == 0).all()
    updates, _ = optimizer.update(jnp.full(3, -6e-8, jnp.float16), state, w)
    expected = (w.astype(jnp.float32) + jnp.float16(6e-8)).astype(jnp.float16)
    np.testing.assert_array_equal(optax.apply_updates(w, updates), expected)


@pytest.mark.parametrize(
    "inner",
    [optax.sgd(1.0), optax.chain(normopt.add_decay(1e-3), optax.sgd(1.0))],
    ids=["sgd", "decay"],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_weight_beyond_the_range_becomes_infinite_and_stays_so(inner, dtype):
    """Infinite less infinite is NaN: in the residue, the step and the decay."""
    large = jnp.finfo(dtype).max
    w = jnp.array([large, -large, 0.0], dtype)
    grads = jnp.array([-large, large, 0.0], dtype) / 4
    optimizer = normopt.compensate_rounding(inner)
    step, state = jax.jit(optimizer.update), optimizer.init(w)
    for g in (grads, jnp.zeros_like(w), -grads):
        updates, state = step(g, state, w)
        w = optax.apply_updates(w, updates)
        np.testing.assert_array_equal(w, jnp.array([jnp.inf, -jnp.inf, 0.0], dtype))
        assert jnp.isfinite(state.residue).all()


def test_other_leaves_are_as_without_it():
    params = {
        "low": jnp.ones(3, jnp.bfloat16),
        "wide": jnp.ones(3),
        "complex": jnp.ones(3) * 1j,
        "none": None,
        "empty": jnp.ones(0, jnp.bfloat16),
    }
    inner = normopt.sgdw(0.1, 0.9, weight_decay=0.01)
    optimizer = normopt.compensate_rounding(inner)
    state = optimizer.init(params)
    assert list(state.residue["low"]) == [0, 0, 0]
    # 4 bytes for an element of low precision, none for the others.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.residue)) == 12
    step = jax.jit(optimizer.update)
    after, stepped = follow(step, params, state, [params] * 3)
    assert jax.tree.structure(stepped) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(stepped)] == [
        leaf.dtype for leaf in jax.tree.leaves(state)
    ]
    expected, _ = follow(
        jax.jit(inner.update), params, inner.init(params), [params] * 3
    )
    for name in ("wide", "complex"):
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "updates_per_step"),
    [
        (lambda tx: tx, 1),
        (lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), 2),
        (lambda tx: optax.apply_if_finite(tx, 3), 1),
        (lambda tx: optax.masked(tx, {"w": True}), 1),
    ],
    ids=["alone", "MultiSteps", "apply_if_finite", "masked"],
)
def test_what_it_wraps_may_be_wrapped_itself(wrap, updates_per_step):
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    grads = {"w": jnp.full(2, 1e-3, jnp.bfloat16)}
    optimizer = normopt.compensate_rounding(wrap(optax.sgd(0.5)))
    many = [grads] * (20 * updates_per_step)
    state = optimizer.init(params)
    after, _ = follow(jax.jit(optimizer.update), params, state, many)
    # Twenty steps of 5e-4: more than one of bfloat16's, each much less than one.
    np.testing.assert_array_equal(after["w"], jnp.bfloat16(1 - 20 * 5e-4))


def test_under_an_nnx_optimizer():
    model = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    before = model.kernel[...].astype(jnp.float32)
    decay = normopt.compensate_rounding(normopt.decay_weights(1e-3))
    optimizer = nnx.Optimizer(model, decay, wrt=nnx.Param)
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, zeros))
    for _ in range(100):
        step(model, optimizer)
    assert model.kernel[...].dtype == jnp.bfloat16
    left = model.kernel[...].astype(jnp.float32) / before
    np.testing.assert_allclose(left, 0.999**100, rtol=0.01)


def test_what_it_cannot_wrap_and_what_it_needs():
    with pytest.raises(TypeError, match="`compensate_rounding` wraps an optimizer"):
        normopt.compensate_rounding({"name": "sgd"})
    optimizer = normopt.compensate_rounding(optax.sgd(0.1))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="`compensate_rounding` needs the parameters"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match=r"shape \(2,\) for the params 'w'"):
        optimizer.update(params, state, {"w": jnp.ones(3, jnp.bfloat16)})


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {"a": jnp.ones(2), "b": jnp.ones(2)},
            {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)},
            r"keeps nothing for the elements of 'b' \(2,\); weights of less",
        ),
        (
            {"a": jnp.ones(2, jnp.bfloat16)},
            {"a": jnp.ones(2)},
            r"an array \(2,\) for the elements of 'a' \(2,\); weights of less than 32",
        ),
        (
            {"a": jnp.ones(2, jnp.bfloat16)},
            {"a": jnp.ones((3, 2), jnp.bfloat16)},
            r"an array \(2,\) for the elements of 'a' \(3, 2\); .*call init again",
        ),
        (
            {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)},
            {"b": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.bfloat16)},
            "of it and the updates, only one of the two has 'a'",
        ),
        (
            {"a": jnp.ones(2, jnp.bfloat16)},
            {"a": optax.MaskedNode()},
            "'a' was not masked then",
        ),
    ],
    ids=["cast_down", "cast_up", "shape", "paths", "masked"],
)
def test_a_state_of_other_params(before, now, message):
    optimizer = normopt.compensate_rounding(optax.sgd(0.1))
    state = optimizer.init(before)
    told = f"`compensate_rounding`: the state was made for other params .*{message}"
    for update in (optimizer.update, jax.jit(optimizer.update)):
        with pytest.raises(ValueError, match=told):
            update(now, state, now)
