"""What every link gets from the combinators: dtypes, states, options, warnings."""

import functools
import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import normopt
from normopt.blocks import block_length
from normopt.checks import check_not_negative
from normopt.leafwise import Option, around, leafwise
from normopt.numerics import safe_quotient
from tests.contract_cases import (
    CASES,
    LINKS,
    a_few_cases,
    every_case,
    gradients,
    tree,
)

ROOT = Path(__file__).parents[1]
EMPTY = inspect.Parameter.empty
SQUARE = {"kernel": (4, 4), "bias": (4,)}


# What a state means stands in its names: with other options it is refused.

MEANINGS = {
    "adams, then adamsrt": (
        normopt.adams(0.1, channel_axes=(0,)),
        normopt.adamsrt(0.1, channel_axes=(0,)),
        "without `tangent`",
    ),
    "adamsrt, then adams": (
        normopt.adamsrt(0.1, channel_axes=(0,)),
        normopt.adams(0.1, channel_axes=(0,)),
        "with `tangent`",
    ),
    "rows, then columns": (
        normopt.adamsrt(0.1, channel_axes=(0,)),
        normopt.adamsrt(0.1, channel_axes=(1,)),
        "blocks of 'kernel'.*kernel@1.*kernel@0",
    ),
    "layers, then columns": (
        normopt.novograd(0.1),
        normopt.novograd(0.1, channel_axes=(-1,)),
        "blocks of 'bias'.*bias@0.*bias@ ",
    ),
    "without amsgrad, then with it": (
        normopt.novograd(0.1),
        normopt.novograd(0.1, amsgrad=True),
        "without `amsgrad`",
    ),
    "with amsgrad, then without": (
        normopt.adamw(0.1, amsgrad=True),
        normopt.adamw(0.1),
        "with `amsgrad`",
    ),
    "blocks, then elements": (
        normopt.scale_by_block_rms(channel_axes=(0,)),
        normopt.scale_by_block_rms(channel_axes=None),
        "numbers for the blocks of 'bias'",
    ),
    "one link, then another": (
        normopt.scale_by_block_rms(),
        normopt.scale_by_block_adam(channel_axes=()),
        "needs its ScaleByBlockAdamState, got ScaleByBlockRmsState",
    ),
    "no schedule, then one": (
        normopt.adamw(0.1),
        normopt.adamw(0.1, schedule=optax.constant_schedule(1.0)),
        "`schedule` needs a ScheduledState",
    ),
}


def stepped(optimizer, params):
    return optimizer.update(params, optimizer.init(params), params)[1]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize(("before", "now", "told"), MEANINGS.values(), ids=MEANINGS)
def test_a_state_of_other_options_is_refused(before, now, told, jitted):
    params = tree(SQUARE)
    state = stepped(before, params)
    update = jax.jit(now.update) if jitted else now.update
    with pytest.raises((TypeError, ValueError), match=told):
        update(params, state, params)


@pytest.mark.parametrize(("before", "now", "told"), MEANINGS.values(), ids=MEANINGS)
def test_a_checkpoint_of_other_options_is_refused(before, now, told, tmp_path):
    params = tree(SQUARE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", stepped(before, params))
        checkpointer.wait_until_finished()
        # Orbax itself refuses another structure; what it lets through, the link does.
        with pytest.raises((KeyError, TypeError, ValueError)):
            target = jax.eval_shape(now.init, params)
            restored = checkpointer.restore(tmp_path / "state", target)
            now.update(params, restored, params)
        # Without a target it comes as dictionaries, which say what is wrong.
        plain = checkpointer.restore(tmp_path / "state")
        with pytest.raises((KeyError, TypeError, ValueError)):
            now.update(params, plain, params)


def test_what_may_change_between_two_runs_goes_on():
    params = tree(SQUARE)
    state = stepped(normopt.adamsrt(0.1, channel_axes=(0,)), params)
    other = normopt.adamsrt(
        0.2, 0.5, 0.6, 1e-3, weight_decay=0.1, channel_axes={"kernel": -2}
    )
    updates, _ = other.update(params, state, params)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_a_dictionary_for_a_state_says_where_it_comes_from():
    link = normopt.scale_by_block_adam()
    with pytest.raises(TypeError, match="got dict of 'count', 'mu'.*without a target"):
        link.update(jnp.ones(2), {"count": 1, "mu": jnp.ones(2)})


# Dtypes.


@a_few_cases
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_updates_have_the_wider_dtype_of_gradients_and_weights(case, low):
    params, optimizer = tree(SQUARE), case.make()
    grads = optax.tree.cast(tree(SQUARE, seed=1), low)
    state = optimizer.init(params)
    updates, after = jax.eval_shape(optimizer.update, grads, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    has_inner = case.inner is not None or "inner" in case.options
    if not case.needs_params and not has_inner:
        updates, _ = jax.eval_shape(optimizer.update, grads, state)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(low)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1e3), tx),
        lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
        lambda tx: optax.partition({"a": tx}, {"kernel": "a", "bias": "a"}),
    ],
    ids=["alone", "chain", "masked", "partition"],
)
def test_a_small_decay_of_float32_weights_is_not_rounded_away(wrap):
    """A decay of 6e-7 beside a step of 3e-4 in bfloat16 would be nothing."""
    rate, decay = 3e-4, 2e-3
    params = {"kernel": jnp.full((2, 2), 0.02), "bias": jnp.full(2, 0.02)}
    grads = optax.tree.cast(params, "bfloat16")
    steps = []
    for lambda_ in (decay, 0.0):
        tx = wrap(normopt.adamw(rate, weight_decay=lambda_))
        updates, _ = tx.update(grads, tx.init(params), params)
        steps.append(updates["kernel"])
    np.testing.assert_allclose(steps[1] - steps[0], decay * 0.02, rtol=1e-3)


def test_low_gradients_pass_a_scan_and_accumulation():
    params = tree(SQUARE)
    grads = optax.tree.cast(tree(SQUARE, seed=1), "bfloat16")
    tx = optax.MultiSteps(normopt.adamw(0.1, weight_decay=0.01), 2)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(optax.tree.cast(grads, "float32"), state, params)
        return (optax.apply_updates(params, updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, 4)
    alone = normopt.adamw(0.1, weight_decay=0.01)

    def plain(carry, _):
        params, state = carry
        updates, state = alone.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (expected, _), _ = jax.lax.scan(plain, (params, alone.init(params)), None, 2)
    chex.assert_trees_all_close(after, expected, rtol=1e-5)


@every_case
def test_floats_of_eight_bits_are_refused_at_init(case):
    params = {"w": jnp.ones((2, 2), jnp.float8_e4m3fn)}
    own = normopt.normalize_blocks() if case.inner is not None else case.alone()
    with pytest.raises(ValueError, match="cannot train 'w' of float8_e4m3fn"):
        own.init(params)


def test_gradients_of_integer_params_pass_a_learning_rate():
    params = {"table": jnp.arange(3), "w": jnp.ones(3)}
    loss = lambda p: jnp.sum(p["w"] ** 2) + 0.0 * jnp.sum(p["table"])  # noqa: E731
    grads = jax.grad(loss, allow_int=True)(params)
    assert grads["table"].dtype == jax.dtypes.float0
    for rate in (0.1, optax.constant_schedule(0.1)):
        tx = normopt.adamw(rate)
        updates, _ = tx.update(grads, tx.init(params), params)
        assert updates["table"].dtype == jax.dtypes.float0
        np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-4)


@a_few_cases
def test_strict_promotion_of_dtypes_is_no_obstacle(case):
    params = tree(SQUARE, ["bfloat16"])
    inner = dict(case.inner or {}, learning_rate=0.1)
    if case.inner is not None:
        theirs = getattr(optax, inner.pop("name"))(**inner)
    else:
        theirs = optax.sgd(0.1)
    with jax.numpy_dtype_promotion("strict"):
        for optimizer in (theirs, case.make()):
            state = optimizer.init(params)
            updates, _ = optimizer.update(params, state, params)
            assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


# Options.


def test_callable_options_are_read_on_the_params():
    """Of up-cast gradients a rule by dtype would see another tree."""
    params = {"low": jnp.full(2, 2.0, jnp.bfloat16), "wide": jnp.full(2, 2.0)}
    grads = {"low": jnp.zeros(2), "wide": jnp.zeros(2)}

    def rule(value, other):
        def choose(tree):
            return jax.tree.map(
                lambda w: value if w.dtype == jnp.bfloat16 else other, tree
            )

        return choose

    for tx, expected in (
        (normopt.add_decay(rule(0.5, 0.0)), [1.0, 0.0]),
        (normopt.decay_weights(rule(0.5, 0.0)), [-1.0, 0.0]),
        (normopt.adamw(0.1, weight_decay=rule(0.5, 0.0)), [-1.0, 0.0]),
        (
            optax.chain(normopt.add_decay(1.0), normopt.scale_by_path(rule(3.0, 1.0))),
            [6.0, 2.0],
        ),
        (
            optax.chain(
                normopt.add_decay(1.0), normopt.clip_blocks(rule(1.0, jnp.inf))
            ),
            [2**-0.5, 2.0],
        ),
        (
            optax.chain(
                normopt.add_decay(1.0), normopt.normalize_blocks("l2", rule((), None))
            ),
            [2**-0.5, 2.0],
        ),
    ):
        updates, _ = tx.update(grads, tx.init(params), params)
        steps = [float(updates[name][0]) for name in ("low", "wide")]
        np.testing.assert_allclose(steps, expected, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_blocks_and_decay_no_params_are_needed(case):
    if case.inner is not None:
        given = {case.inner_option: optax.sgd(0.1), **case.built, **case.options}
        tx = case.build(**given)
    elif case.wrapped and "channel_axes" in case.rules("", ""):
        tx = case.build(learning_rate=0.1, channel_axes=None, **case.built)
    elif "channel_axes" in case.rules("", ""):
        tx = case.build(0.1, channel_axes=None)
    elif case.wrapped or "norms" in case.options:
        kinds = inspect.signature(case.build).parameters
        given = case.built
        given |= {k: v for k, v in case.options.items() if kinds[k].default is EMPTY}
        tx = case.build(0.1, **given)
    else:
        tx = case.build(0.1)
    params = tree(SQUARE)
    updates, _ = tx.update(params, tx.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("case", CASES + LINKS, ids=lambda case: case.name)
def test_what_follows_eps_is_named(case):
    """As optax has it, or else its `eps_root` would be taken for a decay."""
    kinds = inspect.signature(case.build).parameters
    if "learning_rate" in kinds:
        by_place = [n for n, p in kinds.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert by_place[-1] in ("eps", "momentum", "b2", "channel_axes")


# Warnings.

NO_BLOCKS = {
    "adamsrt": functools.partial(normopt.adamsrt, 0.1),
    "adams": functools.partial(normopt.adams, 0.1),
    "adamg": functools.partial(normopt.adamg, 0.1),
    "sgdmrt": functools.partial(normopt.sgdmrt, 0.1),
    "normalized": functools.partial(normopt.normalized, optax.sgd(0.1)),
    "scale_by_param_norm": normopt.scale_by_param_norm,
}


@pytest.mark.parametrize("build", NO_BLOCKS.values(), ids=NO_BLOCKS)
@pytest.mark.parametrize("axes", [{}, {"bias": None}], ids=["empty", "none"])
def test_axes_that_give_no_blocks_warn_once(build, axes):
    params = tree(SQUARE)
    tx = build(channel_axes=axes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = tx.init(params)
        tx.update(params, state, params)
    (told,) = caught
    assert told.category is normopt.NoBlocksWarning and told.filename == __file__
    assert "'kernel' could have some" in str(told.message)


@pytest.mark.parametrize("build", NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_axes_that_nobody_gave_or_no_leaf_could_have_warn_of_nothing(build):
    build(channel_axes=None).init(tree(SQUARE))
    build(channel_axes={}).init({"bias": jnp.ones(3), "scale": jnp.ones(())})
    build(channel_axes=(-1,)).init(tree(SQUARE))


# What a factory must not do.


@every_case
def test_a_state_is_made_anew_by_each_init(case):
    """Donated, the arrays of one state are gone; those of the next must not be."""
    params, optimizer = case.params(), case.make()
    for _ in range(2):
        state = optimizer.init(params)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
    jax.eval_shape(lambda p: case.make().init(p), params)
    made = []
    jax.eval_shape(lambda p: (made.append(case.make()), p)[1], params)
    state = made[0].init(params)
    assert not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(state))


def test_building_an_optimizer_asks_for_no_device():
    program = (
        "import jax, normopt\n"
        "jax.config.update('jax_platforms', 'no_such_platform')\n"
        "normopt.adamsrt(0.1, channel_axes=(0,)), normopt.nadamw(0.1)\n"
        "normopt.novograd(lambda count: 0.1, grad_averaging=True)\n"
        "print('built')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "built\n", done.stderr


# What both combinators carry beside the links that there are.


def keep_norm(inner):
    """Inner's output as long as its input was: NorMuon's, in five lines."""

    def step(g, u, w, axes, option, kept, shared):
        length = block_length(g, axes)
        return u * safe_quotient(length, block_length(u, axes)), kept

    return around("keep_norm", inner, step, channel_axes=())


def test_a_wrapper_sees_what_came_in_and_what_inner_made_of_it():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    grads = {"a": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.zeros(3)}
    tx = keep_norm(optax.scale_by_sign())
    updates, _ = tx.update(grads, tx.init(params))
    np.testing.assert_allclose(updates["a"], 5 / 2**0.5 * np.eye(2), rtol=1e-6)
    assert not updates["b"].any()


def inverse(batches):
    """A link whose step is traced for a batch of matrices of one shape."""

    def step(g, w, axes, option, kept, shared):
        batches.append(g.shape)
        return option[0] * jnp.linalg.inv(g), kept

    options = {"factor": Option({"": 2.0, "c": 1.0}, 1.0, check_not_negative)}
    return leafwise("inverse", step, options=options, batched=True)


def test_leaves_of_one_shape_are_one_batch():
    params = tree({"a": (3, 3), "b": (3, 3), "c": (2, 2)})
    batches = []
    tx = inverse(batches)
    updates, _ = tx.update(params, tx.init(params))
    assert sorted(batches) == [(2, 2), (3, 3)]  # `vmap` hides the axis of the batch
    for name, w in params.items():
        np.testing.assert_allclose(updates[name] @ w, 2 * np.eye(len(w)), atol=1e-4)
    text = str(jax.make_jaxpr(lambda p: tx.update(p, tx.init(p)))(params))
    assert "2,3,3" in text


def test_one_trace_serves_all_leaves_of_one_shape():
    traces = []

    def step(g, w, axes, option, kept, shared):
        traces.append(g.shape)
        return g, kept

    params = tree({str(i): (2, 3) for i in range(5)} | {"other": (3, 2)})
    tx = leafwise("traced", step)
    jax.jit(tx.update)(params, tx.init(params))
    assert sorted(traces) == [(2, 3), (3, 2)]


def test_a_moment_can_be_found_by_a_function_of_the_state():
    """Of two moments of one name a name cannot choose."""
    params = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.ones(2)}
    inner = optax.chain(
        optax.trace(0.5), optax.trace(0.9), optax.scale_by_learning_rate(0.1)
    )

    def second(state):
        first, own, rest = state
        return own.trace, lambda moment: (first, own._replace(trace=moment), rest)

    tx = normopt.retract_to_sphere(inner, {"a": ()}, moment=second)
    grads = gradients(params, 1)[0]
    updates, state = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.linalg.norm(new["a"]), 1, rtol=1e-6)
    assert abs(float(jnp.sum(state[1].trace["a"] * new["a"]))) < 1e-5
    np.testing.assert_array_equal(state[0].trace["a"], grads["a"])
    with pytest.raises(ValueError, match="is no first moment"):
        normopt.retract_to_sphere(
            inner, (), moment=lambda state: (jnp.ones(3), lambda m: state)
        ).init(params)


@pytest.mark.parametrize(
    "build", [normopt.adamw, normopt.nadamw, normopt.adamg, normopt.adamp]
)
def test_mu_dtype_is_that_of_the_first_moment(build):
    params = tree(SQUARE, ["bfloat16"])
    state = stepped(build(0.1, mu_dtype="float32"), params)
    (mu,) = (value for _, value in optax.tree.get_all_with_path(state, "mu"))
    assert {leaf.dtype for leaf in jax.tree.leaves(mu)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "optimizer",
    [
        normopt.novograd(0.1, weight_decay={"kernel$": 0.1}),
        normopt.adamsrt(0.1, channel_axes={"kernel$": (-1,)}),
        normopt.adamw(0.1, weight_decay={"kernel$": 0.01}),
    ],
    ids=["novograd", "adamsrt", "adamw"],
)
def test_a_state_mapped_with_its_params_goes_on(optimizer):
    """Made on boxed params and unboxed after, as at the start of large models."""
    plain = tree({"body": SQUARE, "head": SQUARE})
    body = jax.tree.map(lambda w: nn.Partitioned(w, (None,)), plain["body"])
    boxed = {**plain, "body": body}
    expected, _ = optimizer.update(plain, optimizer.init(plain), plain)
    state = nn.meta.unbox(optimizer.init(boxed))
    updates, _ = optimizer.update(plain, state, plain)
    chex.assert_trees_all_equal(updates, expected)


def test_adamg_reads_its_axes_on_the_params():
    params = {"low": jnp.ones((4, 4), jnp.bfloat16), "wide": jnp.ones((4, 4))}
    grads = optax.tree.cast(gradients(params, 1)[0], "float32")

    def rule(tree):
        return jax.tree.map(lambda w: (-1,) if w.dtype == jnp.bfloat16 else None, tree)

    steps = []
    for axes in (rule, {"low": (-1,)}):
        tx = normopt.adamg(0.1, weight_decay=0.5, channel_axes=axes)
        steps.append(tx.update(grads, tx.init(params), params)[0])
    chex.assert_trees_all_equal(*steps)


def test_a_schedule_of_another_kind_is_refused():
    params = tree(SQUARE)
    kinds = {
        "none": normopt.adamw(0.1),
        "function": normopt.adamw(0.1, schedule=normopt.cosine_restarts(5)),
        "restarts": normopt.adamw(0.1, schedule=normopt.WarmRestarts(5)),
    }
    for made, optimizer in kinds.items():
        for name, other in kinds.items():
            if name != made:
                with pytest.raises(TypeError, match="schedule|WarmRestarts"):
                    other.update(params, optimizer.init(params), params)
