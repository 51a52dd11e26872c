import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def decayed(link, params):
    zeros = optax.tree.zeros_like(params)
    return link.update(zeros, link.init(params), params)[0]


def test_decay_is_the_gradient_of_the_penalty():
    w = jnp.array([2.0, -3.0, 0.0])
    updates = decayed(normopt.add_decay(0.1, 0.01), w)
    np.testing.assert_allclose(updates, [0.21, -0.31, 0.0], rtol=1e-6)


def test_l2_alone_is_optax_add_decayed_weights():
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    grads = {"a": jnp.array([0.3, 0.4]), "b": jnp.array(-1.0)}
    ours, theirs = normopt.add_decay(0.1), optax.add_decayed_weights(0.1)
    for link_updates in (
        ours.update(grads, ours.init(params), params)[0],
        theirs.update(grads, theirs.init(params), params)[0],
    ):
        np.testing.assert_allclose(link_updates["a"], [0.4, 0.2], rtol=1e-6)
        np.testing.assert_allclose(link_updates["b"], -0.7, rtol=1e-6)


def test_per_path_with_different_rules_for_l1_and_l2():
    params = {"kernel": jnp.array([2.0]), "scale": jnp.array([2.0])}
    link = normopt.add_decay({"kernel": 0.5}, l1={"scale": 0.25})
    updates = decayed(link, params)
    assert updates["kernel"] == 1.0
    assert updates["scale"] == 0.25


def test_low_precision_sums_in_float32():
    w, g = jnp.full(1, 1.0, jnp.bfloat16), jnp.full(1, 1.0, jnp.bfloat16)
    link = normopt.add_decay(2**-9, l1=2**-9)
    updates, _ = link.update(g, link.init(w), w)
    # Either decay alone rounds away in bfloat16; together they reach the next number
    # only if the sum is taken before it is rounded.
    assert updates.dtype == jnp.bfloat16
    assert updates[0] == jnp.bfloat16(1 + 2**-8)


def test_complex_weights_shrink_along_themselves():
    w = jnp.array([3.0 + 4.0j])
    updates = decayed(normopt.add_decay(0.1, 0.5), w)
    np.testing.assert_allclose(updates, w * (0.1 + 0.5 / 5), rtol=1e-6)


def test_arrays_and_traced_numbers_are_plain_values():
    params = jnp.array([2.0])
    assert decayed(normopt.add_decay(jnp.array(0.5)), params) == 1.0
    make = optax.inject_hyperparams(normopt.add_decay)
    link = make(weight_decay=lambda count: 0.5 * count, l1={"": 0.0})
    state = link.init(params)
    for expected in (0.0, 1.0):
        updates, state = link.update(jnp.zeros(1), state, params)
        assert updates == expected


@pytest.mark.parametrize(
    ("decays", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, "at least 0.*weight_decay=-0.1"),
        ({"l1": {"kernel": -1}}, ValueError, "l1=-1 at 'kernel'"),
        ({"weight_decay": "much"}, TypeError, "one number.*'much'"),
        ({"weight_decay": jnp.ones(2)}, TypeError, "one number"),
        ({"weight_decay": {3: 0.1}}, TypeError, "strings, got 3"),
        ({"weight_decay": {"(": 0.1}}, ValueError, "not a regular expression"),
    ],
)
def test_bad_decays_are_refused_when_built(decays, error, message):
    with pytest.raises(error, match=message):
        normopt.add_decay(**decays)


def test_a_callable_is_checked_at_init():
    link = normopt.add_decay(lambda params: {"w": -1.0})
    with pytest.raises(ValueError, match="weight_decay=-1 at 'w'"):
        link.init({"w": jnp.ones(1)})


def test_params_are_needed_and_must_fit():
    link = normopt.add_decay(0.1)
    grads = {"w": jnp.ones(2)}
    state = link.init(grads)
    with pytest.raises(ValueError, match="`add_decay` needs the parameters"):
        link.update(grads, state)
    with pytest.raises(ValueError, match=r"updates of shape \(2,\) for the params 'w'"):
        link.update(grads, state, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="only one of the two has 'v'"):
        link.update(grads, state, {"w": jnp.ones(2), "v": jnp.ones(2)})


def stepped(link, params, updates, steps=1):
    state = link.init(params)
    for _ in range(steps):
        new, state = link.update(updates, state, params)
        params = optax.apply_updates(params, new)
    return params


def test_weights_lose_the_same_share_whatever_the_updates():
    w, u = jnp.array([2.0, -3.0, 0.0]), jnp.array([0.5, 0.25, -1.0])
    after = stepped(normopt.decay_weights(0.1, l1=0.01), w, u)
    # sign(0) = 0: nothing pulls at a weight of zero.
    expected = w + u - 0.1 * w - jnp.array([0.01, -0.01, 0.0])
    np.testing.assert_allclose(after, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "etas"),
    [
        (None, [1, 1, 1, 1]),
        (0.5, [0.5] * 4),
        (np.float32(0.5), [0.5] * 4),
        (jnp.array(0.5), [0.5] * 4),
        (lambda count: 1 / (1 + count), [1, 1 / 2, 1 / 3, 1 / 4]),
        (normopt.cosine_restarts(3), [1, 0.5, 0, 1]),
        (normopt.WarmRestarts(3), [1, 0.5, 0, 1]),
    ],
)
def test_decay_follows_its_schedule_alone(schedule, etas):
    link = normopt.decay_weights({"kernel": 0.2}, {"": 0.1}, schedule=schedule)
    params = {"kernel": jnp.array([3.0]), "bias": jnp.array([-2.0])}
    state = link.init(params)
    for eta in etas:
        updates, state = link.update(optax.tree.zeros_like(params), state, params)
        pull = 0.2 * params["kernel"] + 0.1
        np.testing.assert_allclose(updates["kernel"], -eta * pull, atol=1e-6)
        np.testing.assert_allclose(updates["bias"], 0.1 * eta, atol=1e-6)
        params = optax.apply_updates(params, updates)


def test_cautious_decay_leaves_alone_what_the_step_lengthens():
    w = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0, 0.0])
    u = jnp.array([0.5, -0.5, 0.0, 0.5, -0.5, 1.0])
    link = normopt.decay_weights(0.1, l1=0.1, cautious=True)
    change = stepped(link, w, u) - w - u
    np.testing.assert_allclose(change, [0, -0.3, -0.3, 0.3, 0, 0], atol=1e-6)
    # After the learning rate, so that the sign is that of the step: the gradient here
    # points along the weights, and the step against them.
    tx = optax.chain(optax.sgd(0.1), link)
    np.testing.assert_allclose(stepped(tx, w[:1], w[:1]), w[:1] * (1 - 0.1 - 0.15))


def test_cautious_decay_of_numbers_whose_product_underflows():
    link = normopt.decay_weights(0.1, cautious=True)
    w = jnp.array([1e-25, 1e-25])
    updates, _ = link.update(jnp.array([1e-25, -1e-25]), link.init(w), w)
    np.testing.assert_allclose(updates, [1e-25, -1.1e-25], rtol=1e-6)


def test_cautious_decay_of_complex_weights():
    w, u = jnp.array([1j, 1j, 1j]), jnp.array([-0.5j, 0.5j, 3.0 + 0j])
    link = normopt.decay_weights(0.1, cautious=True)
    np.testing.assert_allclose(
        stepped(link, w, u), w + u - w * jnp.array([0.1, 0, 0.1])
    )


def test_integers_do_not_decay():
    params = {"places": jnp.array([5, 7]), "w": jnp.array([5.0])}
    for tx in (normopt.decay_weights(0.1), normopt.adamw(0.1, weight_decay={"": 0.1})):
        updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
        after = optax.apply_updates(params, updates)
        assert after["places"].tolist() == [5, 7] and after["w"] == 4.5


def test_decay_keeps_the_dtype_of_the_updates():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    link = normopt.decay_weights(0.5, schedule=jnp.float32(0.5))
    updates, _ = link.update(params, link.init(params), params)
    assert [u.dtype for u in updates.values()] == [w.dtype for w in params.values()]
    np.testing.assert_array_equal(updates["a"].astype(jnp.float32), 0.75)


SIZE = 50
TOP = 0.01  # the largest learning rate
# A step of the moments alone has the length of 1.
MOMENTS = optax.normalize_by_update_norm()


def lengths_of_training(tx, w, steps):
    """The lengths of a weight whose loss is blind to its length, step by step."""

    def step(carry, key):
        w, state = carry
        target = jax.random.normal(key, (SIZE,))
        grads = jax.grad(lambda w: jnp.dot(w / jnp.linalg.norm(w), target))(w)
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.linalg.norm(w)

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, (w, tx.init(w)), keys)[1]


@pytest.mark.parametrize(
    ("chain", "length"),
    [
        (
            lambda lr: (optax.scale_by_learning_rate(lr), normopt.decay_weights(0.01)),
            lambda lr: lr / math.sqrt(2 * 0.01),
        ),
        (
            lambda lr: (normopt.add_decay(1.0), optax.scale_by_learning_rate(lr)),
            lambda lr: math.sqrt(lr / 2),
        ),
        (
            # Its learning rate falls because eta does.
            lambda lr: (
                optax.scale_by_learning_rate(TOP),
                optax.scale_by_schedule(lambda count: lr / TOP),
                normopt.decay_weights(0.01, schedule=lambda count: lr / TOP),
            ),
            lambda lr: TOP * math.sqrt(lr / TOP / (2 * 0.01)),
        ),
        (
            lambda lr: (
                optax.scale_by_learning_rate(lr),
                normopt.decay_weights(1.0, schedule=lambda count: lr**2 / TOP),
            ),
            lambda lr: math.sqrt(TOP / 2),
        ),
    ],
    ids=["independent", "times lr", "following the schedule", "corrected"],
)
def test_the_length_that_each_form_of_decay_leads_to(chain, length):
    for lr in (TOP, TOP / 4):
        tx = optax.chain(MOMENTS, *chain(lr))
        lengths = lengths_of_training(tx, jnp.full(SIZE, 0.1), 10_000)
        # A few percent: a decayed weight is no longer orthogonal to the next step.
        assert jnp.mean(lengths[-2_000:]) == pytest.approx(length(lr), rel=0.05)


@pytest.mark.parametrize(
    ("decay", "stays"),
    [
        (
            lambda lr: normopt.decay_weights(0.3, schedule=lambda t: lr(t) ** 2 / TOP),
            True,
        ),
        (lambda lr: normopt.decay_weights(0.3, schedule=lr), False),
        (lambda lr: normopt.decay_weights(0.3 * TOP), False),
    ],
    ids=["corrected", "times lr", "independent"],
)
def test_only_corrected_decay_keeps_the_length_while_the_rate_drops(decay, stays):
    """Adam on a scale-invariant loss, its learning rate falling to a tenth."""
    steps = 9_000
    lr = optax.linear_schedule(TOP, TOP / 10, steps // 3, transition_begin=steps // 3)
    tx = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lr), decay(lr))
    lengths = lengths_of_training(tx, jnp.full(SIZE, math.sqrt(TOP / (2 * 0.3))), steps)
    before, after = jnp.mean(lengths[steps // 3 - 500 : steps // 3]), lengths[-1]
    assert (abs(after / before - 1) < 0.1) == stays
    # The others end at a length that the rate of the moment decides.
    assert stays or not 0.7 < after / before < 1.3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, "at least 0.*weight_decay=-0.1"),
        ({"l1": {"kernel": -1}}, ValueError, "l1=-1 at 'kernel'"),
        ({"schedule": -0.5}, ValueError, "schedule=-0.5"),
        ({"schedule": True}, TypeError, "`schedule` must be one number"),
        ({"schedule": [1, 2]}, TypeError, "a WarmRestarts, got schedule=.1, 2"),
        ({"schedule": normopt.WarmRestarts}, TypeError, "a WarmRestarts, got schedule"),
        ({"cautious": 1}, TypeError, "True or False"),
        (
            {"weight_decay": -0.1, "schedule": normopt.WarmRestarts(3)},
            ValueError,
            "weight_decay=-0.1",
        ),
    ],
)
def test_bad_options_of_decay_weights_are_refused_when_built(options, error, message):
    with pytest.raises(error, match=message):
        normopt.decay_weights(**options)


@pytest.mark.parametrize(
    ("eta", "error"), [(jnp.ones(2), TypeError), (-1.0, ValueError)]
)
def test_a_schedule_that_gives_no_factor_is_refused_at_init(eta, error):
    for build in (normopt.decay_weights, normopt.adamw, normopt.sgdw, normopt.nadamw):
        optimizer = build(0.1, schedule=lambda count: eta)
        with pytest.raises(error, match="`schedule` must be"):
            optimizer.init(jnp.ones(2))


def test_decay_weights_needs_params_and_matching_patterns():
    link = normopt.decay_weights({"kernel": 0.1})
    params = {"kernel": jnp.ones(2)}
    with pytest.raises(ValueError, match="`decay_weights` needs the parameters"):
        link.update(params, link.init(params))
    for schedule in (None, normopt.WarmRestarts(3)):
        missing = normopt.decay_weights({"kernle": 0.1}, schedule=schedule)
        with pytest.raises(ValueError, match="weight_decay.*no parameter path.*kernle"):
            missing.init(params)


def test_a_schedule_may_give_an_array_of_the_user_s():
    """Two states do not share it, and a donated one does not take it along."""
    eta, params = jnp.float32(0.5), {"a": jnp.ones(2), "b": jnp.ones(2)}
    link = normopt.decay_weights(0.1, schedule=optax.constant_schedule(eta))
    optimizer = optax.partition({"a": link, "b": link}, {"a": "a", "b": "b"})
    step = jax.jit(optimizer.update, donate_argnums=1, keep_unused=True)
    step(params, optimizer.init(params), params)
    assert not eta.is_deleted()
