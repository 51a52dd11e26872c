"""A restart reaches its schedule wherever the state is."""

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import normopt
from tests.contract_cases import kinds

SCHEDULE = normopt.WarmRestarts(8, eta_min=0.1)
PARAMS = {"body": {"kernel": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
GRADS = jax.tree.map(lambda w: 0.5 * w, PARAMS)


def inner(schedule=SCHEDULE):
    return normopt.sgdw(0.1, 0.9, weight_decay=0.01, schedule=schedule)


HEAD = normopt.by_path({"head": True}, default=False)
LABELS = normopt.by_path({"head": "head"}, default="body")
WRAPPED = {
    "alone": inner(),
    "the schedule of a link": normopt.decay_weights(0.1, schedule=SCHEDULE),
    "chain": optax.chain(optax.clip(1.0), optax.chain(inner(), optax.identity())),
    "masked": optax.masked(inner(), HEAD),
    "partition": optax.partition({"head": inner(), "body": optax.sgd(0.1)}, LABELS),
    "inject_hyperparams": optax.inject_hyperparams(normopt.sgdw)(
        0.1, schedule=SCHEDULE
    ),
    "injected learning rate": optax.inject_hyperparams(optax.sgd)(SCHEDULE),
    "apply_if_finite": optax.apply_if_finite(inner(), 3),
    "MultiSteps": optax.MultiSteps(inner(), 1),
    "compensate_rounding": normopt.compensate_rounding(inner()),
    "retract_to_sphere": normopt.retract_to_sphere(
        normopt.adamw(0.1, schedule=SCHEDULE), {"kernel": (-1,)}
    ),
    "normalized": normopt.normalized(inner()),
}


def etas_of(optimizer, state, steps):
    """The values that the next steps use, and the state after them."""
    step, etas = jax.jit(optimizer.update), []
    for _ in range(steps):
        _, state = step(GRADS, state, PARAMS)
        etas.append(float(normopt.current_eta(state)))
    return etas, state


def expected(positions, cycle_steps=8):
    eta = normopt.cosine_restarts(cycle_steps, eta_min=0.1)
    # Compiled, a value may round otherwise.
    etas = [float(eta(position)) for position in positions]
    return pytest.approx(etas, rel=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        how
        if how in ("alone", "MultiSteps", "retract_to_sphere")
        else pytest.param(
            how, marks=pytest.mark.slow("the plain state and one wrapper show it")
        )
        for how in WRAPPED
    ],
)
def test_it_restarts_at_any_depth_in_and_outside_jit(how):
    optimizer = WRAPPED[how]
    etas, state = etas_of(optimizer, optimizer.init(PARAMS), 3)
    assert etas == expected([0, 1, 2])
    for restart in (normopt.restart, jax.jit(normopt.restart)):
        again = restart(state)
        assert kinds(again) == kinds(state)
        # It changes nothing but the schedule, and logs the last update as before.
        assert normopt.current_eta(again) == etas[-1]
        changed = [
            path
            for (path, new), old in zip(
                jax.tree.leaves_with_path(again), jax.tree.leaves(state), strict=True
            )
            if (new != old).any()
        ]
        assert [str(path[-1]) for path in changed] == [".t_cur"]
        assert etas_of(optimizer, again, 3)[0] == expected([0, 1, 2])
        assert etas_of(optimizer, restart(state, 6), 4)[0] == expected([6, 7, 0, 1])
        assert etas_of(optimizer, restart(state, 1, 4), 5)[0] == expected(
            [1, 2, 3, 0, 1], cycle_steps=4
        )


def test_a_position_past_the_end_of_the_cycle():
    """The cosine has turned up; with autorestart the next cycle begins after it."""
    optimizer = inner()
    moved = normopt.restart(optimizer.init(PARAMS), 9)
    assert etas_of(optimizer, moved, 3)[0] == expected([5, 0, 1])
    manual = inner(normopt.WarmRestarts(8, eta_min=0.1, autorestart=False))
    moved = normopt.restart(manual.init(PARAMS), 9)
    assert etas_of(manual, moved, 3)[0] == expected([5, 4, 3])


def test_a_traced_position_and_length():
    optimizer = inner()
    _, state = etas_of(optimizer, optimizer.init(PARAMS), 3)
    moved = jax.jit(normopt.restart)(state, jnp.int32(2), jnp.int32(5))
    assert etas_of(optimizer, moved, 3)[0] == expected([2, 3, 4], cycle_steps=5)


def test_every_schedule_of_a_partition_restarts():
    parts = {"head": inner(), "body": inner(normopt.WarmRestarts(5))}
    optimizer = optax.partition(parts, LABELS)
    state = optimizer.init(PARAMS)
    for _ in range(3):
        _, state = optimizer.update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match="holds 2 schedules.*part of the state"):
        normopt.current_eta(state)
    _, state = optimizer.update(GRADS, normopt.restart(state), PARAMS)
    for part in parts:
        assert normopt.current_eta(state.inner_states[part]) == 1.0


@pytest.mark.parametrize("jit", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_the_state_of_an_nnx_optimizer(jit):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, inner(), wrt=nnx.Param)
    grads = nnx.grad(lambda m: (m(jnp.ones((4, 3))) ** 2).mean())(model)

    @jit
    def step(model, optimizer):
        optimizer.update(model, grads)

    @jit
    def again(optimizer):
        optimizer.opt_state = normopt.restart(optimizer.opt_state, t_cur=5)

    etas = []
    for index in range(6):
        if index == 3:
            again(optimizer)
        step(model, optimizer)
        etas.append(float(normopt.current_eta(optimizer.opt_state)))
    assert etas == expected([0, 1, 2, 5, 6, 7])


def test_after_a_checkpoint_was_restored(tmp_path):
    optimizer = WRAPPED["chain"]
    _, state = etas_of(optimizer, optimizer.init(PARAMS), 5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(optimizer.init, PARAMS)
        restored = checkpointer.restore(tmp_path / "state", shapes)
    chex.assert_trees_all_equal(restored, state)
    assert [float(normopt.current_eta(restored))] == expected([4])
    assert etas_of(optimizer, restored, 2)[0] == expected([5, 6])
    assert etas_of(optimizer, normopt.restart(restored), 2)[0] == expected([0, 1])


def test_a_batch_of_states():
    optimizer = inner()

    def start(eta_max):
        build = inner(normopt.WarmRestarts(8, eta_min=0.1, eta_max=eta_max))
        return build.init(PARAMS)

    state = jax.vmap(start)(jnp.array([0.5, 1.0]))
    assert normopt.restart(state, 3).schedule.t_cur.tolist() == [3, 3]
    one = jax.tree.map(lambda leaf: leaf[1], normopt.restart(state, 3))
    assert etas_of(optimizer, one, 2)[0] == expected([3, 4])


def test_moments_go_on_over_a_restart():
    """A restart is one of the schedule: the trajectory is that of the fed values."""
    restarted, fed = inner(), inner(lambda t: normopt.cosine_restarts(8, 0.1)(t % 3))
    state, other = restarted.init(PARAMS), fed.init(PARAMS)
    for index in range(5):
        if index == 3:
            state = normopt.restart(state)
        updates, state = restarted.update(GRADS, state, PARAMS)
        others, other = fed.update(GRADS, other, PARAMS)
        chex.assert_trees_all_close(updates, others, rtol=1e-6)


def test_later_cycles_follow_from_a_new_length():
    grown = normopt.WarmRestarts(3, t_mult=2)
    state = normopt.restart(grown.init(), cycle_steps=5)
    lengths = []
    for _ in range(5 + 10):
        lengths.append(int(state.cycle_steps))
        state = grown.update(state)
    assert lengths == [5] * 5 + [10] * 10
    listed = normopt.WarmRestarts((3, 4, 6))
    state = normopt.restart(listed.init(), cycle_steps=2)
    lengths = []
    for _ in range(12):
        lengths.append(int(state.cycle_steps))
        state = listed.update(state)
    assert lengths == [2] * 2 + [4] * 4 + [6] * 6


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.1), inner(0.5), inner(normopt.cosine_restarts(4))],
    ids=["optax", "number", "pure"],
)
def test_a_state_without_a_restartable_schedule(optimizer):
    with pytest.raises(ValueError, match=r"no schedule.*schedule=normopt.WarmRestarts"):
        normopt.restart(optimizer.init(PARAMS))


def test_a_checkpoint_without_its_structure_has_no_schedule_either(tmp_path):
    state = inner().init(PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        plain = checkpointer.restore(tmp_path / "state")
    with pytest.raises(ValueError, match=r"jax.eval_shape\(optimizer.init, params\)"):
        normopt.restart(plain)


def test_an_injected_value_is_read_from_its_hyperparams():
    make = optax.inject_hyperparams(normopt.sgdw)
    state = make(0.1, schedule=normopt.cosine_restarts(4)).init(PARAMS)
    with pytest.raises(ValueError, match=r'opt_state.hyperparams\["schedule"\]'):
        normopt.current_eta(state)
    assert state.hyperparams["schedule"] == 1.0


class Halving:
    """A stateful schedule of a user's own, which sees the loss."""

    def init(self):
        return {"eta": jnp.ones([])}

    def __call__(self, state, *, value, **extra_args):
        return jnp.where(value > 1, state["eta"] / 2, state["eta"])

    def update(self, state, *, value, **extra_args):
        return {"eta": self(state, value=value)}


def test_any_stateful_schedule_of_optax_is_followed():
    link = normopt.decay_weights(0.5, schedule=Halving())
    w = jnp.ones(1)
    state = link.init(w)
    for value, eta in ((2.0, 0.5), (0.5, 0.5), (2.0, 0.25)):
        updates, state = link.update(jnp.zeros(1), state, w, value=value)
        assert updates == -0.5 * eta


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), inner(0.5), inner(None)])
def test_a_state_without_a_schedule_has_no_value_to_log(optimizer):
    with pytest.raises(ValueError, match="holds 0 schedules"):
        normopt.current_eta(optimizer.init(PARAMS))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "t_cur=-1; 0 begins the cycle again"),
        ((0, 1), ValueError, "`cycle_steps` must be at least 2"),
        ((0.5,), TypeError, "`t_cur` must be an integer"),
        ((0, 10.0), TypeError, "`cycle_steps` must be an integer"),
    ],
)
def test_bad_restarts_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        normopt.restart(inner().init(PARAMS), *arguments)
