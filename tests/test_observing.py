"""What `observe` says of the blocks, and that nothing of a step depends on it."""

import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import normopt
from tests.contract_cases import CASES, follow, gradients, tree
from tests.multidevice.running import EIGHT, finish, start
from tests.versions import needs_masks_in_nnx, needs_sums_of_parts

EVERYTHING = {"(kernel|weight)$": (-1,), "": ()}


def giving(update):
    """An optimizer whose update is this one, whatever comes in."""
    none = optax.EmptyState()
    return optax.GradientTransformation(lambda _: none, lambda *_: (update, none))


def seen(g, u, w, axes, every=1, jit=True):
    tx = normopt.observe(giving({"w": u}), axes, every=every)
    state, update = tx.init({"w": w}), jax.jit(tx.update) if jit else tx.update
    for _ in range(every):
        _, state = update({"w": g}, state, {"w": w})
    return normopt.observations(state)["w"]


def expected(g, u, w, axes):
    """The same in float64."""
    dtype = np.complex128 if np.iscomplexobj(w) else np.float64
    g, u, w = (np.asarray(x, dtype) for x in (g, u, w))
    axes = tuple(axis % w.ndim for axis in axes)
    within = tuple(axis for axis in range(w.ndim) if axis not in axes)

    def dot(a, b):
        return np.real(np.sum(a * np.conj(b), within))

    def length(a):
        return np.sqrt(dot(a, a))

    def quotient(a, b):
        return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

    lengths = [length(x) for x in (g, u, w)]
    # By the sides of a triangle of unit vectors, which has no sums in common with ours.
    shape = [n if axis in axes else 1 for axis, n in enumerate(w.shape)]
    one, other = (
        x * quotient(np.ones_like(lengths[2]), length(x)).reshape(shape)
        for x in (w, w + u)
    )
    angle = 2 * np.arctan2(length(one - other), length(one + other))
    return normopt.Observation(
        *lengths,
        quotient(lengths[1], lengths[2]),
        np.where((lengths[2] > 0) & (length(w + u) > 0), angle, 0),
        quotient(dot(g, w), lengths[0] * lengths[2]),
        quotient(dot(u, w), lengths[1] * lengths[2]),
        1,
    )


SHAPES = {
    "dense": ((30, 7), (-1,), "float32"),
    "conv": ((3, 3, 8, 5), (-1,), "float32"),
    "stacked": ((4, 9, 6), (0, -1), "float32"),
    "whole": ((40, 20), (), "float32"),
    "scalar": ((), (), "float32"),
    "bfloat16": ((50, 4), (-1,), "bfloat16"),
    "complex": ((30, 7), (-1,), "complex64"),
}


def normal(seed, shape, dtype):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_numbers_are_those_of_float64(kind, jit):
    shape, axes, dtype = SHAPES[kind]
    g, u, w = (normal(seed, shape, dtype) for seed in range(3))
    ours = seen(g, 0.1 * u, w, axes, every=2 if jit else 1, jit=jit)
    wanted = expected(g, 0.1 * u, w, axes)
    assert all(x.dtype == jnp.float32 for x in ours[:-1]) and ours.step == 1 + jit
    chex.assert_trees_all_close(ours[:-1], wanted[:-1], rtol=2e-5, atol=1e-6)


W = normal(0, (60, 8), "float32")
G = normal(1, (60, 8), "float32")


@pytest.mark.parametrize(
    "u",
    [
        1e-7 * G,
        1e-3 * W + 1e-7 * G,
        W + 1e-3 * G,
        -2 * W,
        -2 * W + 1e-4 * G,
        -0.5 * W + 1e-6 * G,
        -W,
        0 * W,
        1e6 * G,
        1e15 * G,
        -1e-9 * G,
    ],
    ids=range(11),
)
def test_angles_of_short_long_and_nearly_radial_steps(u):
    ours, wanted = seen(G, u, W, (-1,)), expected(G, u, W, (-1,))
    # Rounding of the radial part leaves some of it beside the weights.
    rounded = 3e-7 * np.minimum(wanted.relative_step, 1)
    error = np.abs(ours.angle - wanted.angle)
    assert (error <= 1e-5 * wanted.angle + rounded).all(), error
    chex.assert_trees_all_close(ours[:4], wanted[:4], rtol=1e-5)
    chex.assert_trees_all_close(ours[5:7], wanted[5:7], rtol=1e-5, atol=1e-6)


def test_blocks_of_zeros_give_0():
    empty = jnp.zeros_like(W)
    for g, u, w in ((empty, G, W), (G, empty, W), (G, G, empty), (empty,) * 3):
        ours = seen(g, u, w, (-1,))
        chex.assert_trees_all_close(
            ours[:-1], expected(g, u, w, (-1,))[:-1], rtol=1e-5, atol=1e-6
        )


def test_numbers_can_be_differentiated_where_blocks_are_zero():
    w, g = W.at[:, 0].set(0), G.at[:, 1].set(0)

    def numbers(scale):
        ours = seen(scale * g, scale * G, w, (-1,), jit=False)
        return sum(x.sum() for x in (ours.gradient, ours.update, ours.radial_gradient))

    # Lengths are of degree 1, and cosines of degree 0.
    lengths = float(jnp.linalg.norm(g, axis=0).sum() + jnp.linalg.norm(G, axis=0).sum())
    assert float(jax.grad(numbers)(1.0)) == pytest.approx(lengths, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_numbers_of_small_and_large_blocks(dtype):
    """Every column has sizes of its own for gradient, update and weights."""
    powers = np.array(list(itertools.product([-30, -17, -8, 0, 8, 17, 30], repeat=3))).T
    shape = (60, powers.shape[1])
    g, u, w = (
        jnp.asarray(normal(seed, shape, dtype) * np.float32(10.0) ** power)
        for seed, power in enumerate(powers)
    )
    # Some updates are nearly radial.
    u = jnp.where(np.all(powers[1:] == 0, axis=0), -w + 0.1 * u, u)
    with np.errstate(over="ignore", invalid="ignore"):
        ours, wanted = seen(g, u, w, (-1,)), expected(g, u, w, (-1,))
    is_right = np.all(np.abs(powers) <= 17, axis=0)
    # Angles are held against what float64 can tell of w and w + u, cosines against 1.
    allowed = [0] * 4 + [1e-15] + [2e-6] * 2
    for x, y, error in zip(ours[:-1], wanted[:-1], allowed, strict=True):
        np.testing.assert_allclose(x[is_right], y[is_right], rtol=1e-5, atol=error)
    assert np.isfinite(ours[:-1]).all()
    for length, own, power in zip(ours[:3], wanted[:3], powers, strict=True):
        bounded = np.where(power < -17, 0, np.minimum(own, 1.8447e19))
        is_held = (power != 30) | (length < 1e20)
        error = np.abs(length - bounded)
        assert (error <= 1e-4 * bounded + 1e-25)[is_held].all()
    for of_weights in (ours.relative_step, ours.angle, ours.radial_update):
        assert not of_weights[powers[2] < -17].any()


def test_a_dot_product_out_of_range_counts_as_the_largest_number():
    ours = seen(G, jnp.full_like(W, 2.0**80), jnp.full_like(W, 2.0**50), (-1,))
    assert all(np.isfinite(one).all() for one in ours)
    np.testing.assert_allclose(ours.update, 1.8446743e19, rtol=1e-6)
    np.testing.assert_allclose(ours.radial_update, 1)


@pytest.mark.parametrize(
    ("case", "every"),
    [
        pytest.param(
            *(case, every),
            id=f"{case.name}-{every}",
            marks=[] if (case.name, every) == ("adamw", 3) else pytest.mark.slow,
        )
        for case in CASES
        for every in (1, 3)
    ],
)
def test_a_step_is_what_it_is_without(case, every):
    params = case.params()
    grads = gradients(params, 10)
    plain, observed = case.make(), normopt.observe(case.make(), every=every)
    with jax.disable_jit():
        chex.assert_trees_all_equal(
            *(
                follow(tx.update, params, tx.init(params), grads[:4])[0]
                for tx in (observed, plain)
            )
        )

    def trained(tx):
        def step(params, state, g):
            updates, state = tx.update(g, state, params)
            return optax.apply_updates(params, updates), state

        step, after, state = jax.jit(step), params, tx.init(params)
        for g in grads:
            after, state = step(after, state, g)
        return after

    both = map(trained, (observed, plain))
    # Newton and Schulz's iteration makes more of what is rounded in other places.
    most = 100 if "matrices" in case.options else 2
    for ours, theirs in zip(*map(jax.tree.leaves, both), strict=True):
        ulp = np.spacing(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=most * ulp)


PARAMS = {"body": {"kernel": W[:6, :4], "bias": W[0, :4]}, "head": {"kernel": W[:4]}}
GRADS = jax.tree.map(lambda w: w[::-1] + 1, PARAMS)
PATHS = ["body/bias", "body/kernel", "head/kernel"]


def in_a_partition():
    of_body = normopt.observe(optax.sgd(0.1), EVERYTHING)
    labels = normopt.by_path({"^body": "body"}, default="head")
    return optax.partition({"body": of_body, "head": normopt.observe(ADAM)}, labels)


ADAM = optax.adam(0.1)
DEPTHS = {
    "alone": (lambda: normopt.observe(ADAM), PATHS),
    "chain": (lambda: optax.chain(optax.clip(1.0), normopt.observe(ADAM)), PATHS),
    "masked": (
        lambda: optax.masked(
            normopt.observe(ADAM), normopt.by_path({"head": False}, default=True)
        ),
        PATHS[:2],
    ),
    "partition": (in_a_partition, PATHS),
    "several steps": (
        lambda: optax.MultiSteps(normopt.observe(ADAM), 1).gradient_transformation(),
        PATHS,
    ),
    "injected": (
        lambda: optax.inject_hyperparams(lambda rate: normopt.observe(optax.sgd(rate)))(
            rate=0.1
        ),
        PATHS,
    ),
    "some": (lambda: normopt.observe(ADAM, {"kernel": ()}), PATHS[1:]),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_observations_are_read_at_any_depth(depth):
    make, paths = DEPTHS[depth]
    tx = make()
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    found = normopt.observations(state)
    assert sorted(found) == paths
    for path, own in found.items():
        part, name = path.split("/")
        u, w = updates[part][name], PARAMS[part][name]
        np.testing.assert_allclose(
            np.sum(own.update**2) ** 0.5, np.linalg.norm(u), rtol=1e-5
        )
        assert own.weight.shape in ((), w.shape[-1:]) and own.step == 1
    in_jit = jax.jit(normopt.observations)(state)
    chex.assert_trees_all_close(in_jit, found, rtol=1e-6)


@needs_masks_in_nnx
def test_observations_of_an_nnx_optimizer():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, normopt.observe(ADAM, EVERYTHING), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones(4)) ** 2).sum())(model))
        return normopt.observations(optimizer)

    inside = step(model, optimizer)
    for given in (optimizer, optimizer.opt_state):
        found = normopt.observations(given)
        chex.assert_trees_all_close(found, inside)
    assert sorted(found) == ["bias", "kernel"]
    # Adam's first step is one of the learning rate for every element.
    np.testing.assert_allclose(found["kernel"].update, np.full(3, 0.2), rtol=1e-5)


def test_observations_survive_a_checkpoint(tmp_path):
    tx = normopt.observe(ADAM, EVERYTHING)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(tx.init, PARAMS)
        restored = checkpointer.restore(tmp_path / "state", shapes)
        plain = checkpointer.restore(tmp_path / "state")
    found = normopt.observations(restored)
    chex.assert_trees_all_equal(found, normopt.observations(state))
    with pytest.raises(ValueError, match="restored into the structure of"):
        normopt.observations(plain)


def test_what_cannot_be_read_is_said():
    with pytest.raises(ValueError, match="holds nothing that was observed: wrap the"):
        normopt.observations(ADAM.init(PARAMS))
    inner = normopt.observe(ADAM, {"head": ()})
    twice = [optax.chain(normopt.observe(ADAM), inner), normopt.observe(inner)]
    for tx in twice:
        with pytest.raises(ValueError, match="'head/kernel' is observed twice"):
            normopt.observations(tx.init(PARAMS))
    assert normopt.summary(normopt.observations(normopt.observe(ADAM).init({}))) == {
        "step": 0
    }


@pytest.mark.parametrize(
    ("every", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_every_is_a_number_of_steps(every, error):
    with pytest.raises(error, match="`every` must be"):
        normopt.observe(ADAM, every=every)


def test_one_step_in_n_is_observed():
    tx = normopt.observe(optax.sgd(0.1), every=3)
    state, params, steps = tx.init(PARAMS), PARAMS, []
    assert float(normopt.observations(state)["body/bias"].weight) == 0
    update = jax.jit(tx.update)
    for scale in range(1, 8):
        updates, state = update(optax.tree.scale(scale, GRADS), state, params)
        found = normopt.observations(state)["body/bias"]
        steps.append(int(found.step))
        if scale >= 3:
            length = np.linalg.norm(GRADS["body"]["bias"])
            np.testing.assert_allclose(found.gradient, steps[-1] * length, rtol=1e-5)
    assert steps == [0, 0, 3, 3, 3, 6, 6]


def test_wrappers_decide_what_a_gradient_is():
    length = float(optax.tree.norm(GRADS))

    def lengths(tx, steps=1, params=PARAMS):
        state = tx.init(params)
        for _ in range(steps):
            grads = jax.tree.map(lambda g, w: g.astype(w.dtype), GRADS, params)
            _, state = tx.update(grads, state, params)
        seen = normopt.observations(state).values()
        gradient, update = (
            sum(float(getattr(one, name)) ** 2 for one in seen) ** 0.5
            for name in ("gradient", "update")
        )
        return gradient, update, max(int(one.step) for one in seen)

    clip, sgd = optax.clip_by_global_norm(1.0), optax.sgd(0.5)
    inside = lengths(normopt.observe(optax.chain(clip, sgd)))
    np.testing.assert_allclose(inside, (length, 0.5, 1), rtol=1e-5)
    before = lengths(optax.chain(clip, normopt.observe(sgd)))
    np.testing.assert_allclose(before, (1.0, 0.5, 1), rtol=1e-5)
    # Averages are observed inside, and small batches around.
    inside = lengths(optax.MultiSteps(normopt.observe(sgd), 2), 4)
    np.testing.assert_allclose(inside, (length, 0.5 * length, 2), rtol=1e-5)
    several = optax.MultiSteps(sgd, 2).gradient_transformation()
    around = lengths(normopt.observe(several), 3)
    np.testing.assert_allclose(around, (length, 0, 3), rtol=1e-5)
    # What rounding swallows is no step around the compensation.
    low, tiny = optax.tree.cast(PARAMS, jnp.bfloat16), optax.sgd(1e-6)
    around = lengths(normopt.observe(normopt.compensate_rounding(tiny)), params=low)
    inside = lengths(normopt.compensate_rounding(normopt.observe(tiny)), params=low)
    assert around[1] == 0
    np.testing.assert_allclose(inside[:2], (length, 1e-6 * length), rtol=0.01)


def test_updates_keep_their_dtype_beside_wider_weights():
    half = optax.tree.cast(GRADS, jnp.bfloat16)
    tx = normopt.observe(optax.sgd(0.5), every=2)
    updates, _ = jax.jit(tx.update)(half, tx.init(PARAMS), PARAMS)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    signs = {"w": jnp.array([-0.0, 0.0, jnp.inf])}
    tx = normopt.observe(optax.identity())
    updates, _ = jax.jit(tx.update)(signs, tx.init(signs), signs)
    assert str(updates["w"]) == str(signs["w"])


@needs_sums_of_parts
@pytest.mark.parametrize(
    ("inner", "every"), [(optax.adamw, 50), (normopt.adamw, 50), (normopt.adamw, 1)]
)
def test_weights_and_moments_are_written_in_place(inner, every):
    params = jnp.ones((512, 256))
    tx = normopt.observe(inner(0.1), (-1,), every=every)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    step = jax.jit(step, donate_argnums=(0, 1))
    program = step.lower(params, state, params).compile()
    # The step that is observed is stored for two sums.
    assert program.memory_analysis().temp_size_in_bytes < 1.1 * params.nbytes
    assert "copy(%p" not in program.as_text()
    given = jax.tree.leaves((params, state))
    program(params, state, jnp.ones((512, 256)))
    assert all(leaf.is_deleted() for leaf in given)


def test_a_summary_has_medians_and_maxima():
    w = jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
    params, update = {"w": w, "b": jnp.ones(1)}, {"w": -2 * w, "b": jnp.ones(1)}
    tx = normopt.observe(giving(update), {"w": (-1,), "b": ()})
    _, state = tx.update(params, tx.init(params), params)
    found = normopt.observations(state)
    numbers = normopt.summary(found)
    assert json.loads(json.dumps(numbers)) == numbers
    quantities = set(normopt.Observation._fields[:-1])
    names = {f"b/{q}" for q in quantities} | {f"w/{q}" for q in quantities}
    assert set(numbers) == names | {f"w/{q}_max" for q in quantities} | {"step"}
    assert numbers["step"] == 1
    assert (numbers["w/weight"], numbers["w/weight_max"]) == (2.0, 5.0)
    assert (numbers["w/radial_update"], numbers["w/radial_update_max"]) == (-1.0, 1.0)
    np.testing.assert_allclose(numbers["w/angle"], np.pi)
    in_jit = jax.jit(lambda state: normopt.summary(normopt.observations(state)))
    chex.assert_trees_all_close(in_jit(state), numbers, rtol=1e-6)
    assert set(normopt.summary(found, only="^b$")) == {
        "step",
        *(f"b/{q}" for q in quantities),
    }
    with pytest.raises(ValueError, match="`only`: no observed path matches 'c'"):
        normopt.summary(found, only="c")


@pytest.mark.parametrize("every", [1, 2])
def test_a_planted_spike_is_named(every):
    """One batch's gradient of one layer, times a hundred."""
    tx = normopt.observe(optax.adam(1e-3), (-1,), every=every)
    params = tree({"conv": (20, 8), "dense": (20, 8)})
    state, step, log = tx.init(params), jax.jit(tx.update), []
    for count, grads in enumerate(gradients(params, 30), 1):
        if count == 20:
            grads["conv"] = 100 * grads["conv"]
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        log.append({"loss": 1.0, **normopt.summary(normopt.observations(state))})
    found = normopt.spikes(log)
    assert [spike[:3] for spike in found] == [
        (20, "conv", "gradient_max"),
        (20, "conv", "gradient"),
    ] or [spike[:3] for spike in found] == [
        (20, "conv", "gradient"),
        (20, "conv", "gradient_max"),
    ]
    assert all(abs(spike.ratio - 100) < 40 for spike in found)
    assert normopt.spikes(log, factor=200.0) == []


def test_numbers_that_are_not_finite_stand_out():
    log = [{"step": step, "w/angle": 0.1, "w/weight": 0.0} for step in range(9)]
    log[0]["w/angle"], log[7]["w/angle"] = 5.0, float("nan")
    log[8]["w/weight"] = 1.0
    assert normopt.spikes(log) == [(7, "w", "angle", float("inf"))]
    with pytest.raises(ValueError, match='summaries\\[1\\]` has no "step"'):
        normopt.spikes([log[0], {"w/angle": 1.0}])
    with pytest.raises(ValueError, match="`factor` must be above 1"):
        normopt.spikes(log, factor=1.0)


@pytest.mark.slow("compiles for eight devices")
def test_eight_devices_see_what_one_sees():
    printed = finish(start("tests.multidevice.observed", flags=EIGHT))
    assert int(printed.rsplit(":", 1)[1]) >= 8


def test_records_of_a_step_are_looked_at_once_for_each_quantity():
    log = [{"step": step, "w/angle": 0.1, "w/weight": 1.0} for step in range(1, 9)]
    log[6]["w/angle"] = log[7]["w/weight"] = 5.0
    wanted = [(7, "w", "angle", 50.0), (8, "w", "weight", 5.0)]

    def alone(record, name):
        return {"step": record["step"], 3: "a key", name: record[name]}

    apart = []
    for record in log:
        apart += [{"step": record["step"], "loss": 1.0, "w/update": None}]
        apart += [alone(record, "w/weight"), alone(record, "w/angle")]
    without_step = [{"loss": 2.0}, {"loss": "low", "step": None}, *log]
    for records in (log, log + log, log[::-1], apart, without_step, iter(log)):
        assert normopt.spikes(records, factor=3.0) == wanted


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({"step": 1, "w/angle": 2.0}, ValueError, "has 2 for 'w/angle' at step 1, an"),
        ({"step": 2, "w/angle": "NaN"}, ValueError, "has 'NaN' for 'w/angle': no num"),
        ({"step": 2, "w/angle": [1.0]}, ValueError, "for 'w/angle': no number"),
        ({"step": 2, "w/angle": True}, ValueError, "for 'w/angle': no number"),
        ({"step": None, "w/angle": 1.0}, ValueError, 'for "step", got None'),
        ({"step": float("nan"), "w/angle": 1.0}, ValueError, 'for "step", got nan'),
        ({"step": -1, "w/angle": 1.0}, ValueError, 'for "step", got -1'),
        ({"step": np.arange(2), "w/angle": 1.0}, ValueError, 'for "step", got array'),
        ("step", TypeError, "must be a summary, a mapping, got 'step'"),
    ],
)
def test_a_record_that_is_no_summary_is_named(record, error, message):
    with pytest.raises(error, match=f"`summaries\\[1\\]` .*{message}"):
        normopt.spikes([{"step": 1, "w/angle": 1.0}, record])
    if isinstance(record, dict):
        with pytest.raises(TypeError, match="must be a list of summaries, got one"):
            normopt.spikes(record)


def test_what_is_not_finite_reads_so():
    one = jnp.full(3, 2.0)
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        odd = one.at[1].set(bad)
        of_gradient = seen(odd, one, one, (), jit=False)
        gradient = of_gradient.gradient, of_gradient.radial_gradient
        assert not np.isfinite(gradient).any()
        assert np.isfinite(of_gradient[1:5]).all()
        of_update = seen(one, odd, one, (), jit=False)
        assert not np.isfinite([*of_update[3:5], of_update.update]).any()
        assert np.isfinite([of_update.gradient, of_update.weight]).all()
        of_weight = seen(one, one, odd, (), jit=False)
        assert not np.isfinite(of_weight[2:]).all() and np.isnan(of_weight.angle)
        assert not np.isfinite(of_weight.weight) and np.isfinite(of_weight.gradient)
    large = jnp.full(3, 1e25)
    most = np.sqrt(np.finfo(np.float32).max)
    for place in range(3):
        given = [one, one, one]
        given[place] = large
        ours = seen(*given, (), jit=False)
        np.testing.assert_allclose(ours[place], most, rtol=1e-6)
        assert np.isfinite(ours[:-1]).all()
    assert seen(1e-20 * one, one, one, (), jit=False).gradient < 1e-19


def test_what_are_no_observations_is_said():
    tx = normopt.observe(ADAM, EVERYTHING)
    states = jax.vmap(tx.init)(jax.tree.map(lambda w: jnp.stack([w, w]), PARAMS))
    with pytest.raises(ValueError, match=r"ensemble, with steps of shape \(2,\): take"):
        normopt.summary(normopt.observations(states))
    numbers = jax.vmap(lambda s: normopt.summary(normopt.observations(s)))(states)
    assert {x.shape for x in numbers.values()} == {(2,)}
    for state in (tx.init(PARAMS), {"w": 1.0}, ()):
        with pytest.raises(TypeError, match="what normopt.observations.state. gives"):
            normopt.summary(state)
    shapes = jax.eval_shape(tx.init, PARAMS)
    with pytest.raises(TypeError, match="'body/bias', and no numbers: jax.eval_shape"):
        normopt.observations(shapes)
    found = jax.eval_shape(normopt.observations, shapes)
    assert found["body/kernel"].angle.shape == (4,)
    with pytest.raises(ValueError, match="different structure"):
        grads = {**GRADS, "head": {"kernel": None}}
        tx.update(grads, tx.init(PARAMS), PARAMS)
