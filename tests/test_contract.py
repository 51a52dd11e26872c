"""What every optimizer of the library keeps to, whatever it computes."""

import functools
import inspect
import json

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import normopt
from tests.contract_cases import (
    BLOCKS,
    CASES,
    FULL,
    RATE,
    SMALL,
    assert_close,
    differs,
    follow,
    gradients,
    is_finite,
    kinds,
    needs_value,
    run,
    second_moments,
    tree,
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_optimizer_has_a_case():
    assert [case.name for case in CASES] == normopt.names()
    for case in CASES:
        parameters = inspect.signature(case.build).parameters.values()
        floats = {p.name for p in parameters if isinstance(p.default, float)}
        assert floats <= set(case.numbers), case.name


@pytest.mark.parametrize(
    "dtypes", [["float32"], ["bfloat16"], ["bfloat16", "float32"]], ids="-".join
)
@every_case
def test_updates_and_state_keep_structure_shapes_and_dtypes(case, dtypes):
    optimizer, params = case.make(), tree(FULL, dtypes)
    state = optimizer.init(params)
    updates, stepped = jax.eval_shape(optimizer.update, params, state, params)
    assert kinds(updates) == kinds(params)
    assert kinds(stepped) == kinds(state)
    kept = second_moments(state)
    assert bool(kept) == bool(case.second_moments)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(kept))
    by_block = {path for nu, _ in kept for path in getattr(nu, "blocks", ())}
    assert by_block == BLOCKS.get(case.second_moments, set())


@every_case
def test_many_steps_are_compiled_once(case):
    chex.clear_trace_counter()
    params = tree(SMALL)
    grads, optimizer = gradients(params), case.make()
    step = jax.jit(chex.assert_max_traces(optimizer.update, n=1), donate_argnums=1)
    state = optimizer.init(params)
    given = jax.tree.leaves(state)
    after, state = follow(step, params, state, grads)
    assert is_finite((after, state)) and differs(params, after)
    # The old state's memory was there to be taken: no array was handed over twice.
    assert all(leaf.is_deleted() for leaf in given)
    assert_close(after, run(optimizer, params, grads)[0])


@every_case
def test_schedules_are_followed(case):
    params = tree(SMALL)
    grads = gradients(params)
    constant, _ = run(case.make(), params, grads)
    assert_close(run(case.make(lambda count: RATE), params, grads)[0], constant)
    schedule = optax.piecewise_constant_schedule(RATE, {2: 0.5})
    changed, _ = run(case.make(schedule), params, grads)
    # A constant rate has no state: another one can go on with what there is.
    halfway, state = run(case.make(), params, grads[:2])
    assert_close(changed, run(case.make(RATE / 2), halfway, grads[2:], state)[0])
    assert differs(changed, constant)


def injected(case, **settings):
    inject = functools.partial(optax.inject_hyperparams, **settings)
    # The momentum of optax's own SGD changes its dtype with that of its decay.
    inner = functools.partial(inject, static_args="momentum")
    return inject(case.build)(**case.arguments(inject=inner))


@every_case
def test_every_number_can_be_injected(case):
    params = tree(SMALL)
    grads = gradients(params)
    optimizer = injected(case)
    once, _ = run(optimizer, params, grads)
    assert_close(once, run(case.make(), params, grads)[0])
    halves = {name: value / 2 for name, value in case.numbers.items()}

    def trained(**values):
        values = {name: jnp.asarray(value) for name, value in values.items()}
        state = optax.tree.set(optimizer.init(params), **values)
        with jax.disable_jit():
            return follow(optimizer.update, params, state, grads)[0]

    for name, half in {**halves, "learning_rate": RATE / 2}.items():
        assert differs(trained(**{name: half}), once), name
    expected, _ = run(case.make(RATE / 2, **halves), params, grads)
    assert_close(trained(**halves, learning_rate=RATE / 2), expected)


@every_case
def test_injected_numbers_keep_float32_beside_bfloat16(case):
    params = tree(SMALL, ["bfloat16"])
    grads = gradients(params)
    after, _ = run(injected(case, hyperparam_dtype=jnp.float32), params, grads)
    expected, _ = run(case.make(), params, grads)
    # 8 bits of weights of about 2, rounded at other places.
    as_float32 = functools.partial(optax.tree.cast, dtype=jnp.float32)
    assert_close(as_float32(after), as_float32(expected), 0.05)


@every_case
def test_a_learning_rate_can_be_vmapped(case):
    params = tree(SMALL)
    grads = gradients(params, 2)

    def train(rate):
        optimizer = case.make(rate)
        return follow(optimizer.update, params, optimizer.init(params), grads)[0]

    rates = jnp.array([0.05, 0.1, 0.2])
    together = jax.jit(jax.vmap(train))(rates)
    for index, rate in enumerate(rates):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        assert_close(one, run(case.make(float(rate)), params, grads)[0])


@every_case
def test_gradients_can_be_averaged_over_steps(case):
    params = tree(SMALL)
    grads = gradients(params, 2)
    parts = [optax.tree.scale(part, g) for g in grads for part in (0.5, 1.5)]
    after, _ = run(optax.MultiSteps(case.make(), 2), params, parts)
    assert_close(after, run(case.make(), params, grads)[0])


@every_case
def test_a_bad_gradient_can_be_skipped(case):
    params = tree(SMALL)
    grads = gradients(params, 2)
    bad = [grads[0], optax.tree.scale(jnp.nan, grads[0]), grads[1]]
    after, _ = run(optax.apply_if_finite(case.make(), 2), params, bad)
    assert_close(after, run(case.make(), params, grads)[0])


@every_case
def test_a_mask_leaves_leaves_out(case):
    params = tree(SMALL)
    grads = gradients(params)
    mask = normopt.by_path({"head": False}, default=True)
    # A rule for a leaf that is left out is none without a match.
    rules = case.rules("head/kernel$", "kernel$")
    optimizer = optax.masked(case.make(**rules), mask)
    after, _ = run(optimizer, params, grads)
    expected, _ = run(case.make(**rules), params, grads)
    assert_close(after["body"], expected["body"])
    added = [g["head"] for g in grads]
    assert_close(after["head"], functools.reduce(optax.tree.add, added, params["head"]))


@every_case
def test_parts_of_a_partition_share_rules(case):
    params = tree(SMALL)
    grads = gradients(params)
    rules = case.rules("^head/kernel$", "^body/kernel$")
    whole = case.make(**rules)
    parts = {"body": whole, "head": case.make(2 * RATE, **rules)}
    labels = normopt.by_path({"^body": "body"}, default="head")
    after, _ = run(optax.partition(parts, labels), params, grads)
    assert_close(after["body"], run(whole, params, grads)[0]["body"])
    assert_close(after["head"], run(parts["head"], params, grads)[0]["head"])


@every_case
def test_extra_args_are_let_through(case):
    params, seen = tree(SMALL), []
    optimizer = optax.chain(case.make(), needs_value(seen))
    plain = case.make()
    assert isinstance(plain, optax.GradientTransformationExtraArgs)
    for tx in (optimizer, plain):
        update = functools.partial(tx.update, value=3.0, unknown="yes")
        jax.eval_shape(update, params, tx.init(params), params)
    assert seen == [3.0]


@pytest.mark.parametrize(
    "wrap",
    [
        normopt.normalized,
        lambda inner: normopt.clipped(inner, 1.0),
        lambda inner: normopt.retract_to_sphere(inner, (), moment=None),
        normopt.project_if_invariant,
        normopt.compensate_rounding,
    ],
    ids=[
        "normalized",
        "clipped",
        "retract_to_sphere",
        "project_if_invariant",
        "compensate_rounding",
    ],
)
def test_extra_args_reach_what_is_wrapped(wrap):
    params, seen = tree(SMALL), []
    optimizer = wrap(needs_value(seen))
    update = functools.partial(optimizer.update, value=3.0)
    jax.eval_shape(update, params, optimizer.init(params), params)
    assert seen == [3.0]


@every_case
def test_complex_leaves(case):
    real = tree(SMALL)
    grads = gradients(real)
    as_complex = functools.partial(jax.tree.map, lambda leaf: leaf + 0j)
    after, state = run(case.make(), as_complex(real), as_complex(grads))
    # Complex numbers that are real go where these go.
    assert_close(after, as_complex(run(case.make(), real, grads)[0]))
    turned = functools.partial(jax.tree.map, lambda leaf: leaf * (0.6 + 0.8j))
    # A phase that weights and gradients share changes no angle and no length.
    assert_close(run(case.make(), turned(real), turned(grads))[0], turned(after))
    after, state = run(case.make(), turned(real), as_complex(grads))
    assert is_finite((after, state)) and differs(after, turned(real))
    kept = jax.tree.leaves(second_moments(state))
    assert all(leaf.dtype == jnp.float32 for leaf in kept)


@every_case
def test_integer_leaves_are_masked_out(case):
    params = {**tree(SMALL), "table": jnp.arange(3)}
    grads = {**gradients(tree(SMALL), 1)[0], "table": np.zeros(3, jax.dtypes.float0)}
    mask = functools.partial(
        jax.tree.map, lambda w: jnp.issubdtype(w.dtype, jnp.inexact)
    )
    optimizer = optax.masked(case.make(), mask)
    updates, _ = jax.eval_shape(
        lambda: optimizer.update(grads, optimizer.init(params), params)
    )
    table = updates.pop("table")
    assert table.dtype == jax.dtypes.float0
    assert kinds(updates) == kinds(tree(SMALL))


@every_case
def test_blocks_of_zeros_stay_finite(case):
    # Of one column of each kernel, of all other leaves: no weight and no gradient.
    def emptied(leaf):
        return leaf.at[..., 0].set(0) if leaf.ndim > 1 else jnp.zeros_like(leaf)

    params = jax.tree.map(emptied, tree(FULL))
    grads = [jax.tree.map(emptied, g) for g in gradients(params, 3)]
    # The hardest case for a division.
    optimizer = case.make(**({"eps": 0.0} if "eps" in case.options else {}))
    after, state = run(optimizer, params, grads)
    assert is_finite((after, state))
    chex.assert_trees_all_equal(jax.tree.map(emptied, after), after)
    nothing = [optax.tree.zeros_like(params)] * 3
    assert is_finite(run(optimizer, params, nothing))


@every_case
def test_derivatives_at_blocks_of_zeros_are_finite(case):
    params = tree(SMALL)
    params["body"]["kernel"] = params["body"]["kernel"].at[:, 0].set(0)
    grads = optax.tree.zeros_like(params)
    optimizer = case.make(**({"eps": 0.0} if "eps" in case.options else {}))

    def length(params, grads):
        state = optimizer.init(params)
        after, _ = follow(optimizer.update, params, state, [grads, grads])
        return optax.tree.norm(after, squared=True)

    with jax.disable_jit():
        derivatives = jax.grad(length, argnums=(0, 1))(params, grads)
    assert is_finite(derivatives) and differs(derivatives[0], grads)


def test_states_survive_a_checkpoint(tmp_path):
    params = tree(SMALL, ["float32", "bfloat16"])
    grads = gradients(params)
    saved = {case.name: run(case.make(), params, grads[:2]) for case in CASES}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", saved)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        restored = checkpointer.restore(tmp_path / "states", shapes)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    chex.assert_trees_all_equal(restored, saved)
    for case in CASES:
        halfway, state = restored[case.name]
        after = run(case.make(), halfway, grads[2:], state)
        chex.assert_trees_all_equal(after, run(case.make(), params, grads))


@every_case
def test_a_json_configuration_gives_the_same_trajectory(case):
    params = tree(SMALL)
    grads = gradients(params)
    rebuilt = normopt.make(**json.loads(json.dumps(normopt.config(**case.config))))
    chex.assert_trees_all_equal(
        run(rebuilt, params, grads), run(case.make(), params, grads)
    )


@every_case
def test_params_are_asked_for_where_they_are_needed(case):
    params, optimizer = tree(SMALL), case.make()
    state = optimizer.init(params)
    if case.needs_params:
        with pytest.raises(ValueError, match=f"`{case.needs_params}` needs the par"):
            optimizer.update(params, state)
    else:
        with jax.disable_jit():
            chex.assert_trees_all_equal(
                optimizer.update(params, state), optimizer.update(params, state, params)
            )


class Net(nnx.Module):
    """A layer whose parameters carry a sharding, and one whose do not."""

    def __init__(self):
        rngs, normal = nnx.Rngs(0), nnx.initializers.normal()
        kernel_init = nnx.with_partitioning(normal, (None, "x"))
        bias_init = nnx.with_partitioning(normal, ("x",))
        self.layers = nnx.List(
            [nnx.Linear(3, 4, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)]
        )
        self.head = nnx.Conv(4, 2, (2, 1), rngs=rngs)


@pytest.fixture
def mesh():
    of_one = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(of_one):
        yield of_one


@every_case
def test_rules_hit_the_same_leaves_in_every_container(case, mesh):
    key = jax.random.key(0)
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=key), eqx.nn.Lambda(jnp.tanh)])
    params = {
        "linen": nn.Dense(4).init(key, jnp.ones(3))["params"],
        "nnx": nnx.state(Net(), nnx.Param),
        "equinox": eqx.partition(model, eqx.is_inexact_array)[0],
    }
    grads = gradients(params)

    def plain(containers):
        layer = containers["equinox"][0]
        return {
            "linen": containers["linen"],
            "nnx": nnx.to_pure_dict(containers["nnx"]),
            "equinox": [{"weight": layer.weight, "bias": layer.bias}],
        }

    after, _ = run(case.make(), params, grads)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    expected, _ = run(case.make(), plain(params), [plain(g) for g in grads])
    chex.assert_trees_all_equal(plain(after), expected)


@every_case
def test_an_nnx_optimizer_follows_the_run_on_plain_dictionaries(case, mesh):
    model = Net()
    start = nnx.state(model, nnx.Param)
    grads = gradients(start, 2)
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    params, *plain = (
        jax.tree.map(jnp.copy, nnx.to_pure_dict(state)) for state in (start, *grads)
    )
    with jax.disable_jit():
        for g in grads:
            optimizer.update(model, g)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    chex.assert_trees_all_equal(after, run(case.make(), params, plain)[0])
