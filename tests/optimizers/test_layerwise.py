import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import normopt
from tests.contract_cases import SMALL, assert_close, follow, gradients, run, tree
from tests.trajectories import cases, largest_miss, load

SYSTEM = "D_novograd"
OPTIONS = {
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
    "grad_averaging": "grad_averaging",
}


def rebuilt(recording):
    meta = recording.meta
    used = meta["hyper_values_used"]
    options = {OPTIONS[name]: used[name] for name in OPTIONS}
    rates = jnp.asarray(meta["lr_used"])
    amsgrad = meta["kwargs"].get("amsgrad", False)
    return normopt.novograd(lambda count: rates[count], **options, amsgrad=amsgrad)


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 8


# Its first gradient of `conv` is zero: the original's v starts by the step count, and
# its next steps are 1 / sqrt(1 - b2) times too long.
NOT_FOLLOWED = {"novograd_zero_first": {"conv"}}


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    without = NOT_FOLLOWED.get(case, ())
    miss = largest_miss(recording, lambda: rebuilt(recording), without)
    # float32: rounding of 40 steps; float64: what the files' readme allows.
    assert miss <= (1e-5 if recording.meta["dtype"] == "float32" else 1e-6)


def test_a_block_whose_first_gradient_is_zero_follows_the_corrected_rule():
    recording = load(SYSTEM, "novograd_zero_first")
    b1, b2, eps, decay = (
        recording.meta["hyper_values_used"][name]
        for name in ("beta_1", "beta_2", "epsilon", "weight_decay")
    )
    grads = recording.grads["conv"].astype(np.float64)
    assert not grads[0].any() and grads[1].any()
    assert recording.meta["kwargs"]["grad_averaging"]
    w, m, v = recording.params["conv"].astype(np.float64), 0.0, 0.0
    after: list[np.ndarray] = []
    for rate, g in zip(recording.meta["lr_used"], grads, strict=True):
        square = np.sum(g * g)
        v = square if v == 0 else b2 * v + (1 - b2) * square
        share = 1 - b1 if after else 1
        m = b1 * m - share * rate * (g / (np.sqrt(v) + eps) + decay * w)
        w = w + m
        after.append(w)
    corrected = recording._replace(
        params={"conv": recording.params["conv"]},
        grads={"conv": recording.grads["conv"]},
        after={"conv": np.array(after)},
    )
    assert largest_miss(corrected, lambda: rebuilt(recording)) <= 1e-5


def test_follows_the_original_with_a_schedule_of_optax():
    recording = load(SYSTEM, "novograd_polydecay")
    schedule = optax.polynomial_schedule(0.02, 0.001, 2.0, 30)
    rates = [schedule(count) for count in range(40)]
    np.testing.assert_allclose(rates, recording.meta["lr_used"], rtol=1e-5)
    used = recording.meta["hyper_values_used"]
    options = {OPTIONS[name]: used[name] for name in OPTIONS}
    assert (
        largest_miss(recording, lambda: normopt.novograd(schedule, **options)) <= 1e-5
    )


def test_a_schedule_acts_inside_the_momentum():
    """optax has it outside: there past gradients are scaled by the present rate."""
    rates = optax.linear_schedule(0.1, 0.0, 2)
    params, g = jnp.zeros(1), jnp.ones(1)
    updates = {}
    for make in (normopt.novograd, optax.novograd):
        tx = make(rates, 0.5, 0.5, 0.0)
        _, state = tx.update(g, tx.init(params), params)
        updates[make], _ = tx.update(g, state, params)
    np.testing.assert_allclose(updates[normopt.novograd], -(0.5 * 0.1 + 0.05), 1e-5)
    np.testing.assert_allclose(updates[optax.novograd], -(0.5 + 1) * 0.05, 1e-5)


def second_moment_of(state):
    (kept,) = (s for s in state if isinstance(s, normopt.ScaleByBlockRmsState))
    return kept


def test_its_state_is_the_momentum_and_a_float_for_each_layer():
    params = tree(SMALL)
    state = normopt.novograd(0.1).init(params)
    leaves = jax.tree.leaves(state)
    layers = len(jax.tree.leaves(params))
    elements = sum(p.size for p in jax.tree.leaves(params))
    momentum = [leaf.size for leaf in leaves if leaf.ndim]
    assert sum(momentum) == elements
    floats = [leaf for leaf in leaves if not leaf.ndim and leaf.dtype == jnp.float32]
    assert len(floats) == layers
    assert len(leaves) == 2 * layers


def test_without_decay_and_averaging_it_is_optax_novograd():
    params = tree(SMALL)
    grads = gradients(params, 10)
    ours, theirs = (
        make(0.1, 0.9, 0.25, 1e-8) for make in (normopt.novograd, optax.novograd)
    )
    expected, _ = follow(theirs.update, params, theirs.init(params), grads)
    assert_close(run(ours, params, grads)[0], expected, 2e-5)


def test_bfloat16_params_with_a_float32_momentum():
    """optax.scale_by_novograd refuses to mix them."""
    params = tree(SMALL, ["bfloat16"])
    grads = gradients(params, 5)
    theirs = optax.scale_by_novograd(mu_dtype=jnp.float32)
    with pytest.raises(TypeError, match="dtype"):
        theirs.update(grads[0], theirs.init(params), params)
    optimizer = normopt.novograd(0.1, weight_decay=0.1, mu_dtype="float32")
    after, state = run(optimizer, params, grads)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(after))
    momentum = state[-1].trace
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(momentum))
    as_float32 = functools.partial(optax.tree.cast, dtype=jnp.float32)
    wide = [as_float32(g) for g in grads]
    _, expected = run(normopt.novograd(0.1, weight_decay=0.1), as_float32(params), wide)
    # What entered had 8 bits, and so had the weights that decayed.
    assert_close(momentum, expected[-1].trace, 0.01)


def test_second_moments_are_float32_for_bfloat16_gradients():
    """In bfloat16 a b2 of 0.999 rounds away, and v would never decay."""
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    optimizer = normopt.novograd(0.1)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    zeros = optax.tree.zeros_like(params)
    for _ in range(10):
        _, state = optimizer.update(zeros, state, params)
    v = second_moment_of(state).nu.blocks["w@"]
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, 4 * 0.999**10, rtol=1e-5)


def test_second_moments_of_complex_params_are_real():
    params = {"w": jnp.array([3.0 + 4.0j, 0.0])}
    optimizer = normopt.novograd(0.1, eps=0.0)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    v = second_moment_of(state).nu.blocks["w@"]
    assert v.dtype == jnp.float32 and v == 25.0
    np.testing.assert_allclose(updates["w"], [-0.06 - 0.08j, 0.0], rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("zeros_before", [1, 7])
def test_first_gradients_of_zero(eps, zeros_before):
    """v starts at the first square that is not zero, so that no step is too long."""
    params, g = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, 2.0, 2.0])}
    optimizer = normopt.novograd(0.1, 0.9, 0.99, eps)
    zeros, state = optax.tree.zeros_like(params), optimizer.init(params)
    for _ in range(zeros_before):
        updates, state = optimizer.update(zeros, state, params)
        assert (updates["w"] == 0).all()
    updates, state = optimizer.update(g, state, params)
    np.testing.assert_allclose(second_moment_of(state).nu.blocks["w@"], 9.0)
    np.testing.assert_allclose(updates["w"], -0.1 * g["w"] / 3, rtol=1e-6)


def test_stacked_layers_are_layers():
    layers = tree({"a": (3, 4), "b": (3, 4)})
    grads = gradients(layers, 5)
    # Layers whose gradients have different scales: one v for both would show.
    grads = [{"a": g["a"], "b": 100 * g["b"]} for g in grads]

    def stacked(tree):
        return {"w": jnp.stack([tree["a"], tree["b"]])}

    make = functools.partial(normopt.novograd, 0.1, b2=0.9, weight_decay=0.1)
    after, _ = run(make(), layers, grads)
    together = stacked(layers), [stacked(g) for g in grads]
    stack, state = run(make(channel_axes=(0,)), *together)
    assert second_moment_of(state).nu.blocks["w@0"].shape == (2,)
    assert_close(stack, stacked(after))
    with pytest.raises(AssertionError):
        assert_close(run(make(), *together)[0], stacked(after))


def test_the_second_moment_of_optax_has_the_dtype_of_the_gradient():
    """What the tests of dtypes above are about."""
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    theirs = optax.novograd(0.1)
    _, state = theirs.update(params, theirs.init(params), params)
    (nu,) = jax.tree.leaves(optax.tree.get(state, "nu"))
    assert nu.dtype == jnp.bfloat16


def test_weights_of_the_optimizer_out_and_in(tmp_path):
    """What get_weights and set_weights did: the state is a tree that orbax stores."""
    params = tree(SMALL)
    grads = gradients(params, 4)
    optimizer = normopt.novograd(0.1, amsgrad=True, grad_averaging=True)
    halfway, state = run(optimizer, params, grads[:2])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        fresh = jax.eval_shape(optimizer.init, params)
        restored = checkpointer.restore(tmp_path / "state", fresh)
    after, _ = run(optimizer, halfway, grads[2:], restored)
    expected, _ = run(optimizer, params, grads)
    assert_close(after, expected, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b1": 1.0}, ValueError, "`b1` must be at least 0 and below 1"),
        ({"b2": -0.1}, ValueError, "`b2` must be at least 0"),
        ({"eps": -1e-8}, ValueError, "eps=-1e-08"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay=-0.1"),
        ({"grad_averaging": 1}, TypeError, "True or False"),
        ({"channel_axes": "rows"}, TypeError, "`channel_axes` must be"),
        ({"mu_dtype": "int8"}, TypeError, "`mu_dtype` must be.*floating-point"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1"),
    ],
)
def test_bad_options_are_refused_when_built(options, error, message):
    with pytest.raises(error, match=message):
        normopt.novograd(**{"learning_rate": 0.1, **options})
