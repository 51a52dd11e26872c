import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import normopt
from tests.contract_cases import SMALL, assert_close, gradients, run, tree
from tests.trajectories import cases, largest_miss, load

# What they compute is seen soonest with decays that nobody trains with.
pytestmark = pytest.mark.filterwarnings("ignore::normopt.LargeDecayWarning")

SYSTEM = "B_keras_adamw"
FAMILY = {
    "AdamW": (normopt.adamw, 0.001),
    "SGDW": (normopt.sgdw, 0.01),
    "NadamW": (normopt.nadamw, 0.001),
}
OPTIONS = {
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "amsgrad": "amsgrad",
    "schedule_decay": "momentum_decay",
}
ROUNDING = 3e-7  # of a cosine in float32, times one half, near 1
MANY = 2e-6  # float32 roundings over 20 steps, of weights of about 2
RESTARTED_AFTER = [11, 23, 35]  # what the original was told a step before


def annealing(meta):
    """The arguments of our schedule for a recorded run, None for one without."""
    kwargs, effective = meta["kwargs"], meta["effective"]
    if not effective["use_cosine_annealing"]:
        return None
    own = {k: kwargs[k] for k in ("eta_min", "eta_max", "t_cur") if k in kwargs}
    own["autorestart"] = effective["autorestart"]
    return {"cycle_steps": effective["total_iterations"], **own}


def rebuilt(meta, schedule):
    kwargs, effective = meta["kwargs"], meta["effective"]
    build, default_rate = FAMILY[meta["class"]]
    rate = kwargs.get("learning_rate", default_rate)
    options = {OPTIONS[k]: kwargs[k] for k in OPTIONS if k in kwargs}
    if meta["class"] == "AdamW":
        options = {"eps": 1e-7, **options, "eps_hat": True}
    if effective["total_iterations"] > 1:
        both = meta["per_leaf"]["weight_decays_l1_l2"]
        total = effective["total_iterations_wd"]
        for position, option in enumerate(("l1", "weight_decay")):
            share = {f"^{leaf}$": float(pair[position]) for leaf, pair in both.items()}
            options[option] = normopt.normalized_decay(share, total)
    if "lr_multipliers" in kwargs:
        # The original's names of layers, the first of which wins, are no paths of ours.
        options["lr_multipliers"] = {
            f"^{leaf}$": next(
                c for key, c in kwargs["lr_multipliers"].items() if key in n
            )
            for leaf, n in meta["var_names"].items()
            if any(key in n for key in kwargs["lr_multipliers"])
        }
    if slowing := kwargs.get("decay"):
        return build(lambda k: rate / (1 + slowing * k), schedule=schedule, **options)
    return build(rate, schedule=schedule, **options)


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 17


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    # Its first step has an eta_t of 1 whatever eta_max is: its own values are fed.
    etas = jnp.asarray(recording.series["eta_t_before"])
    miss = largest_miss(
        recording, lambda: rebuilt(recording.meta, lambda count: etas[count])
    )
    # float32: what the files' readme allows for rounding over 40 steps.
    assert miss <= 1e-5


def annealed_cases(manually):
    chosen = []
    for case in cases(SYSTEM):
        meta = load(SYSTEM, case).meta
        if annealing(meta) and bool(meta["manual_restart_after_steps"]) == manually:
            chosen.append(case)
    return chosen


@pytest.mark.parametrize("case", annealed_cases(manually=False))
def test_our_schedule_is_the_recorded_one(case):
    recording = load(SYSTEM, case)
    schedule = normopt.cosine_restarts(**annealing(recording.meta))
    expected = recording.series["eta_t_before"][1:]
    np.testing.assert_allclose(schedule(np.arange(40))[1:], expected, atol=ROUNDING)


@pytest.mark.parametrize("case", annealed_cases(manually=True))
def test_manual_restarts_are_the_recorded_ones(case):
    recording = load(SYSTEM, case)
    schedule = normopt.WarmRestarts(**annealing(recording.meta))
    optimizer = rebuilt(recording.meta, schedule)
    params = {k: jnp.asarray(v) for k, v in recording.params.items()}
    state, etas = optimizer.init(params), []
    step = jax.jit(optimizer.update)
    for index in range(40):
        grads = {k: jnp.asarray(v[index]) for k, v in recording.grads.items()}
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        etas.append(float(normopt.current_eta(state)))
        if index == 0:
            # The original's first step had an eta_t of 1, at eta_max 1 as ours.
            assert etas == [1.0]
        if index in RESTARTED_AFTER:
            state = normopt.restart(state)
    np.testing.assert_allclose(etas, recording.series["eta_t_before"], atol=ROUNDING)
    for name, after in recording.after.items():
        miss = np.max(np.abs(params[name] - after[-1])) / np.max(np.abs(after))
        assert miss <= 1e-5


def trained(optimizer, steps=20, params=None, **extra):
    params = tree(SMALL) if params is None else params
    return run(optimizer, params, gradients(params, steps), **extra)[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (normopt.adamw(0.1), optax.adamw(0.1, weight_decay=0.0)),
        (
            normopt.adamw(0.1, 0.8, 0.9, 1e-2, eps_hat=False),
            optax.adamw(0.1, 0.8, 0.9, 1e-2, weight_decay=0.0),
        ),
        (normopt.sgdw(0.1), optax.sgd(0.1)),
        (normopt.sgdw(0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (
            # Without momentum nothing is left that warms up.
            normopt.nadamw(0.1, 0.0, 0.9, 1e-6),
            optax.adam(0.1, 0.0, 0.9, 0.0, eps_root=1e-6),
        ),
    ],
)
def test_neutral_settings_are_optax_own(ours, theirs):
    assert_close(trained(ours), trained(theirs), MANY)


def test_readers_of_optax_find_their_form():
    """What the docstring of adamw names is optax's and torch's AdamW."""
    chain = optax.chain(
        normopt.scale_by_block_adam(),
        normopt.add_decay(0.3),
        optax.scale_by_learning_rate(0.1),
    )
    assert_close(trained(chain), trained(optax.adamw(0.1, weight_decay=0.3)), MANY)
    # And with the product of both numbers so is adamw.
    assert_close(trained(normopt.adamw(0.1, weight_decay=0.03)), trained(chain), MANY)
    eta = normopt.cosine_restarts(20)
    theirs = optax.adamw(lambda count: 0.1 * eta(count), weight_decay=0.3)
    ours = normopt.adamw(0.1, weight_decay=0.03, schedule=eta)
    assert_close(trained(ours), trained(theirs), MANY)


@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_multipliers_act_on_the_update_alone(build):
    """A regression of the original: multipliers that are silently not applied."""
    params = {"body": jnp.array([1.0, -2.0]), "head": jnp.array([1.0, -2.0])}
    grads = {"body": jnp.array([0.3, 0.5]), "head": jnp.array([0.3, 0.5])}

    def first(weight_decay, multipliers):
        optimizer = build(0.1, weight_decay=weight_decay, lr_multipliers=multipliers)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    step, pull = first(0.0, 1.0), first(0.2, 0.0)
    np.testing.assert_allclose(pull["body"], -0.2 * params["body"], rtol=1e-6)
    updates = first(0.2, {"head": 0.25})
    np.testing.assert_allclose(updates["body"], step["body"] + pull["body"], rtol=1e-6)
    expected = 0.25 * step["head"] + pull["head"]
    np.testing.assert_allclose(updates["head"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="lr_multipliers.*no parameter path.*haed"):
        build(0.1, lr_multipliers={"haed": 0.5}).init(params)


@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_all_leaves_are_at_the_same_step_of_the_schedule(build):
    """A regression of the original: the last leaf was one step ahead of the others."""
    params = {name: jnp.ones(2) for name in "abcd"}
    optimizer = build(0.1, weight_decay=0.1, schedule=normopt.WarmRestarts(3))
    zeros, state = optax.tree.zeros_like(params), optimizer.init(params)
    for eta in [1.0, 0.5, 0.0] * 2:
        updates, state = optimizer.update(zeros, state, params)
        for name in params:
            np.testing.assert_allclose(updates[name], -0.1 * eta, atol=1e-7)


@pytest.mark.parametrize("kind", [normopt.cosine_restarts, normopt.WarmRestarts])
@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_restarts_happen_by_themselves(build, kind):
    """A regression of the original, whose users had to set t_cur themselves."""
    optimizer = build(0.1, schedule=kind(4, eta_min=0.1))
    params = tree(SMALL)
    state, etas = optimizer.init(params), []
    for g in gradients(params, 12):
        _, state = optimizer.update(g, state, params)
        etas.append(float(normopt.current_eta(state)))
    np.testing.assert_allclose(etas, 3 * [1.0, 0.775, 0.325, 0.1], rtol=1e-6)


@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_resuming_in_mid_cycle_is_exact(build, tmp_path):
    params = tree(SMALL)
    grads = gradients(params, 12)
    schedule = normopt.WarmRestarts((5, 7), eta_min=0.1)
    optimizer = build(0.1, weight_decay=0.01, schedule=schedule)
    step = jax.jit(optimizer.update)

    def go_on(params, state, grads):
        for g in grads:
            updates, state = step(g, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    uninterrupted = go_on(params, optimizer.init(params), grads)
    halfway = go_on(params, optimizer.init(params), grads[:8])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "halfway", halfway)
        checkpointer.wait_until_finished()
        fresh = jax.eval_shape(lambda: (params, optimizer.init(params)))
        restored = checkpointer.restore(tmp_path / "halfway", fresh)
    chex.assert_trees_all_equal(go_on(*restored, grads[8:]), uninterrupted)
    moved = go_on(restored[0], normopt.restart(restored[1]), grads[8:])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(moved, uninterrupted)


@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_learning_rate_and_decay_can_be_vmapped_together(build):
    params = tree(SMALL)
    grads = gradients(params, 3)

    def train(rate, decay, eta_max):
        schedule = normopt.cosine_restarts(3, eta_max=eta_max)
        optimizer = build(rate, weight_decay=decay, schedule=schedule)
        return run_plainly(optimizer, params, grads)

    rates, decays = jnp.array([0.05, 0.1]), jnp.array([0.0, 0.2, 0.3])
    over_decays = jax.vmap(train, (None, 0, None))
    grid = jax.jit(jax.vmap(over_decays, (0, None, None)))(rates, decays, 0.5)
    for i, rate in enumerate(rates):
        for j, decay in enumerate(decays):
            one = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], grid)
            assert_close(one, train(float(rate), float(decay), 0.5))


def run_plainly(optimizer, params, grads):
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_a_schedule_can_be_injected(build):
    params = tree(SMALL)
    grads = gradients(params, 6)
    for schedule in (normopt.cosine_restarts(4), normopt.WarmRestarts(4)):
        options = {"weight_decay": 0.1, "schedule": schedule}
        injected = optax.inject_hyperparams(build)(0.1, **options)
        expected = run_plainly(build(0.1, **options), params, grads)
        assert_close(run_plainly(injected, params, grads), expected)


def test_nothing_of_the_schedule_is_held_twice():
    optimizer = normopt.sgdw(
        0.1, 0.9, weight_decay=0.1, schedule=normopt.WarmRestarts(4)
    )
    small = [
        leaf for leaf in jax.tree.leaves(optimizer.init(jnp.ones(3))) if not leaf.ndim
    ]
    assert len(small) == len(normopt.WarmRestartsState._fields)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, "at least 0.*weight_decay=-0.1"),
        ({"l1": {"kernel": -0.1}}, ValueError, "l1=-0.1 at 'kernel'"),
        ({"lr_multipliers": -1.0}, ValueError, "lr_multipliers=-1"),
        ({"schedule": -1.0}, ValueError, "schedule=-1"),
        ({"lr_multipliers": {"kernel": "x"}}, TypeError, "at 'kernel'"),
        ({"schedule": "cosine"}, TypeError, "WarmRestarts.*'cosine'"),
        ({"schedule": jnp.ones(2)}, TypeError, "`schedule` must be eta_t as one num"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1"),
        (
            {"learning_rate": normopt.WarmRestarts(4)},
            TypeError,
            "pass it as `schedule=`.*inject_hyperparams",
        ),
        (
            {"weight_decay": -0.1, "schedule": normopt.WarmRestarts(4)},
            ValueError,
            "weight_decay=-0.1",
        ),
    ],
)
@pytest.mark.parametrize("build", [normopt.adamw, normopt.sgdw, normopt.nadamw])
def test_bad_options_are_refused_when_built(build, options, error, message):
    with pytest.raises(error, match=message):
        build(**{"learning_rate": 0.1, **options})


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (normopt.adamw, "amsgrad"),
        (normopt.adamw, "eps_hat"),
        (normopt.sgdw, "nesterov"),
        (normopt.novograd, "amsgrad"),
        (normopt.novograd, "grad_averaging"),
        (normopt.sgdp, "nesterov"),
        (normopt.adamp, "nesterov"),
    ],
)
def test_a_text_is_no_flag(build, option):
    """`"false"` of a configuration file would count as true."""
    with pytest.raises(TypeError, match=f"`{option}` must be True or False.*'false'"):
        build(0.1, **{option: "false"})


@pytest.mark.parametrize("build", [normopt.sgdw, normopt.novograd])
def test_integer_leaves_want_a_mask(build):
    """The learning rate makes them real numbers, of which init knew nothing."""
    params = {"table": jnp.arange(2), "w": jnp.ones(2)}
    optimizer = build(0.1)
    with pytest.raises(ValueError, match="elements of 'table'.*integers.*optax.masked"):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("build", [normopt.adamw, normopt.nadamw, normopt.sgdw])
def test_a_plain_decay_as_large_as_that_of_optax_warns(build):
    with pytest.warns(normopt.LargeDecayWarning) as caught:
        build(1e-3, weight_decay=0.02)
    (told,) = caught
    assert told.filename == __file__
    assert "halves every weight in 34 steps" in str(told.message)
    assert "weight_decay=learning_rate * 0.02" in str(told.message)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "decay",
    [0.019, {"": 0.1}, jnp.float32(0.1), lambda p: jax.tree.map(lambda w: 0.1, p)],
    ids=["small", "mapping", "array", "callable"],
)
def test_a_decay_that_was_thought_about_does_not_warn(decay):
    for build in (normopt.adamw, normopt.nadamw, normopt.sgdw):
        build(1e-3, weight_decay=decay)
        jax.jit(lambda decay, b=build: b(0.1, weight_decay=decay) and 0.0)(0.1)
