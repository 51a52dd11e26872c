"""What every optimizer and link of the library keeps to, whatever it computes."""

import functools
import inspect
import json

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import normopt
from normopt import transforms
from tests.contract_cases import (
    CASES,
    LINKS,
    RATE,
    SMALL,
    a_few_cases,
    assert_close,
    differs,
    expected,
    follow,
    gradients,
    is_finite,
    kinds,
    needs_value,
    of_each,
    run,
    tree,
)
from tests.versions import SUMS_KEEP_DTYPE, enable_x64


def test_every_optimizer_and_every_link_has_a_case():
    assert [case.name for case in CASES] == normopt.names()
    links = filter(inspect.isfunction, vars(transforms).values())
    assert [case.name for case in LINKS] == sorted(link.__name__ for link in links)
    for case in CASES + LINKS:
        parameters = inspect.signature(case.build).parameters.values()
        floats = {p.name for p in parameters if isinstance(p.default, float)}
        assert floats <= set(case.numbers), case.name


@a_few_cases
def test_many_steps_are_compiled_once_and_reuse_memory(case):
    chex.clear_trace_counter()
    params = case.params()
    grads, optimizer = gradients(params), case.make()

    def train(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    # The value of a schedule is written and never read.
    has_unread = case.restarts is not None
    once = chex.assert_max_traces(train, n=1)
    step = jax.jit(once, donate_argnums=(0, 1), keep_unused=has_unread)
    after, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    for g in grads:
        given = jax.tree.leaves((after, state))
        after, state = step(after, state, g)
        # The memory was there to be taken: no array was handed over twice.
        assert all(leaf.is_deleted() for leaf in given)
    assert is_finite((after, state)) and differs(params, after)
    case.assert_close(after, expected(case)[0])


@a_few_cases
def test_dtypes_stay_under_x64(case):
    with enable_x64(True):
        tx, params = case.make(), tree(SMALL)
        state = tx.init(params)
        updates, stepped = jax.eval_shape(
            tx.update, gradients(params)[0], state, params
        )
        assert kinds(stepped) == kinds(state) and kinds(updates) == kinds(params)
        # Numbers of float64 beside float32 leaves.
        tx, params = injected(case), tree(SMALL, ["float64", "float32"])
        state = tx.init(params)
        _, stepped = jax.eval_shape(tx.update, gradients(params)[0], state, params)
        assert kinds(stepped) == kinds(state)


@a_few_cases
def test_schedules_are_followed(case):
    params = case.params()
    grads = gradients(params, 3)
    constant, _ = expected(case, 3)
    case.assert_close(run(case.make(lambda count: RATE), params, grads)[0], constant)
    schedule = optax.piecewise_constant_schedule(RATE, {2: 0.5})
    changed, _ = run(case.make(schedule), params, grads)
    # A constant rate has no state: another one can go on with what there is.
    halfway, state = expected(case, 2)
    case.assert_close(changed, run(case.make(RATE / 2), halfway, grads[2:], state)[0])
    assert differs(changed, constant)


def injected(case, options=(), **settings):
    def inject(build):
        # The momentum of optax's own SGD changes its dtype with that of its decay.
        # Optax hands integers over traced, too.
        static_args = ("momentum",) if build is optax.sgd else ("steps",)
        static_args = tuple(set(static_args) & set(inspect.signature(build).parameters))
        return optax.inject_hyperparams(build, static_args, **settings)

    return case.make(inject=inject, **dict(options))


@a_few_cases
def test_every_number_can_be_injected(case):
    params = case.params()
    grads = gradients(params)
    optimizer = injected(case)
    once, _ = run(optimizer, params, grads)
    case.assert_close(once, expected(case)[0])
    halves = {name: value / 2 for name, value in case.numbers.items()}

    def trained(**values):
        values = {name: jnp.asarray(value) for name, value in values.items()}
        state = optax.tree.set(optimizer.init(params), **values)
        with jax.disable_jit():
            return follow(optimizer.update, params, state, grads)[0]

    for name, half in {**halves, "learning_rate": RATE / 2}.items():
        assert differs(trained(**{name: half}), once), name
    halved, _ = run(case.make(RATE / 2, **halves), params, grads)
    case.assert_close(trained(**halves, learning_rate=RATE / 2), halved)


@a_few_cases
def test_injected_numbers_keep_float32_beside_bfloat16(case):
    params = tree(SMALL, ["bfloat16"])
    grads = gradients(params)
    # In bfloat16 it is 1, which is refused: nothing would be averaged.
    usual = {"b2": 0.999} if "b2" in case.numbers else {}
    as_float32 = functools.partial(optax.tree.cast, dtype=jnp.float32)
    static = as_float32(run(case.make(**usual), params, grads)[0])
    settings = {"hyperparam_dtype": jnp.float32}
    optimizer = injected(case, usual, **settings)
    if case.own_rate:
        # An array of float32 times one of bfloat16 would be one of float32.
        updates, _ = jax.eval_shape(
            optimizer.update, grads[0], optimizer.init(params), params
        )
        assert kinds(updates) == kinds(params)
    after = as_float32(run(optimizer, params, grads)[0])
    # 8 bits of weights of about 2, rounded at other places.
    assert_close(after, static, 0.05)
    if usual:
        with pytest.raises(ValueError, match="`b2` must be .* below 1, got b2=1"):
            run(injected(case, usual), params, grads)


@a_few_cases
def test_runs_can_be_vmapped(case):
    params = case.params(SMALL["body"])
    # Of two runs with the same rate, one has other weights and gradients.
    rates = (0.05, 0.1, 0.1)
    twice = optax.tree.scale(2.0, params)
    data = [(params, gradients(params))] * 2 + [(twice, gradients(params, 3)[1:])]

    def train(rate, params, grads):
        optimizer = case.make(rate)
        return follow(optimizer.update, params, optimizer.init(params), grads)[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    together = jax.jit(jax.vmap(train))(jnp.array(rates), *stacked)
    for index, (rate, own) in enumerate(zip(rates, data, strict=True)):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        case.assert_close(one, run(case.make(rate), *own)[0])


@a_few_cases
def test_gradients_can_be_averaged_over_steps(case):
    if case.widens and not SUMS_KEEP_DTYPE:
        pytest.skip("optax.MultiSteps of 0.2.5 changes the dtype of its sums")
    params = case.params()
    grads = gradients(params)
    parts = [optax.tree.scale(part, g) for g in grads for part in (0.5, 1.5)]
    after, _ = run(optax.MultiSteps(case.make(), 2), params, parts)
    case.assert_close(after, expected(case)[0])


@a_few_cases
def test_a_bad_gradient_can_be_skipped(case):
    params = case.params()
    grads = gradients(params)
    bad = [grads[0], optax.tree.scale(jnp.nan, grads[0]), grads[1]]
    optimizer = optax.apply_if_finite(case.make(), 2)
    if case.widens:
        # Optax's own updates of zero have the dtype of the gradients.
        with pytest.raises(TypeError, match="cond"):
            run(optimizer, params, bad)
        return
    after, _ = run(optimizer, params, bad)
    case.assert_close(after, expected(case)[0])


@a_few_cases
def test_a_mask_leaves_leaves_out(case):
    params = case.params()
    grads = gradients(params)
    mask = normopt.by_path({"head": False}, default=True)
    # A rule for a leaf that is left out is none without a match.
    rules = case.rules("head/kernel$", "kernel$")
    optimizer = optax.masked(case.make(**rules), mask)
    after, _ = run(optimizer, params, grads)
    unmasked, _ = run(case.make(**rules), params, grads)
    case.assert_close(after["body"], unmasked["body"])
    added = [g["head"] for g in grads]
    case.assert_close(
        after["head"], functools.reduce(optax.tree.add, added, params["head"])
    )


@a_few_cases
def test_parts_of_a_partition_share_rules(case):
    params = case.params()
    grads = gradients(params)
    rules = case.rules("^head/kernel$", "^body/kernel$")
    whole = case.make(**rules)
    parts = {"body": whole, "head": case.make(2 * RATE, **rules)}
    labels = normopt.by_path({"^body": "body"}, default="head")
    after, _ = run(optax.partition(parts, labels), params, grads)
    case.assert_close(after["body"], run(whole, params, grads)[0]["body"])
    case.assert_close(after["head"], run(parts["head"], params, grads)[0]["head"])


@a_few_cases
def test_extra_args_are_let_through(case):
    params, seen = tree(SMALL), []
    optimizer = optax.chain(case.make(), needs_value(seen))
    plain = case.alone()
    assert isinstance(plain, optax.GradientTransformationExtraArgs)
    for tx in (optimizer, plain):
        update = functools.partial(tx.update, value=3.0, unknown="yes")
        jax.eval_shape(update, params, tx.init(params), params)
    assert seen == [3.0]


@of_each([case for case in CASES + LINKS if case.inner is not None])
def test_extra_args_reach_what_is_wrapped(case):
    params, seen = tree(SMALL), []
    options = (
        {**case.options, "moment": None} if "moment" in case.options else case.options
    )
    optimizer = case.build(needs_value(seen), **case.built, **options)
    update = functools.partial(optimizer.update, value=3.0)
    jax.eval_shape(update, params, optimizer.init(params), params)
    assert seen == [3.0]


def test_states_survive_a_checkpoint(tmp_path):
    params = tree(SMALL, ["float32", "bfloat16"])
    grads = gradients(params)
    saved = {case.name: run(case.make(), params, grads) for case in CASES + LINKS}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", saved)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        restored = checkpointer.restore(tmp_path / "states", shapes)
    # What is equal in all that a step depends on goes on in the same way.
    assert kinds(restored) == kinds(saved)
    chex.assert_trees_all_equal(restored, saved)


@of_each(CASES)
def test_a_json_configuration_gives_the_same_trajectory(case):
    params = case.params()
    grads = gradients(params)
    rebuilt = normopt.make(**json.loads(json.dumps(normopt.config(**case.config))))
    chex.assert_trees_all_equal(run(rebuilt, params, grads), expected(case))
