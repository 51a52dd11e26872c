import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normopt
from normopt import WarmRestarts, cosine_restarts

LAST = 2**31
ROUNDING = 3e-7  # of a cosine in float32, times one half, near 1


def by_hand(count, lengths, t_mult=1, t_cur=0, eta_min=0.0, eta_max=1.0):
    """The value at a count, by walking from cycle to cycle in Python's integers."""
    t, lengths, length = count + t_cur, list(lengths[1:]), lengths[0]
    if t_mult == 1 and not lengths:
        t %= length
    while t >= length:
        t -= length
        length = lengths.pop(0) if lengths else length * t_mult
        if not lengths and t_mult == 1:
            t %= length
    share = 0.5 * (1 + math.cos(math.pi * t / (length - 1)))
    return eta_min + share * (eta_max - eta_min)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 10**6), min_size=1, max_size=5),
    t_mult=st.integers(1, 20),
    count=st.integers(0, LAST) | st.integers(0, 1000),
    data=st.data(),
)
def test_a_cycle_is_found_exactly_up_to_the_last_count(lengths, t_mult, count, data):
    if len(lengths) > 1:
        t_mult = 1
    t_cur = data.draw(st.integers(0, lengths[0] - 1))
    schedule = cosine_restarts(lengths, 0.1, 0.8, t_mult, t_cur=t_cur)
    expected = by_hand(count, lengths, t_mult, t_cur, 0.1, 0.8)
    assert float(schedule(count)) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("cycle_steps", [2, 3, 1000, 2**30, 2**31 - 1])
def test_the_ends_of_a_cycle_are_exact(cycle_steps):
    schedule = cosine_restarts(cycle_steps, eta_min=0.3, eta_max=0.7)
    assert schedule(0) == np.float32(0.7)
    assert schedule(cycle_steps - 1) == np.float32(0.3)
    assert schedule(cycle_steps) == np.float32(0.7)


def test_cycles_of_the_lengths_of_a_sequence():
    schedule = cosine_restarts((240, 360, 300, 240))
    etas = np.asarray(jax.jit(schedule)(jnp.arange(240 + 360 + 300 + 3 * 240)))
    starts = np.flatnonzero(etas == 1.0)
    np.testing.assert_array_equal(starts, [0, 240, 600, 900, 1140, 1380])
    np.testing.assert_array_equal(
        np.flatnonzero(etas == 0.0), [*(starts[1:] - 1), 1619]
    )


def test_cycles_beyond_the_last_count():
    schedule = cosine_restarts((5, 2**31 - 1, 2**31 - 1, 7), eta_min=0.1)
    assert schedule(5) == 1.0
    expected = by_hand(LAST, (5, 2**31 - 1, 2**31 - 1, 7), eta_min=0.1)
    assert float(schedule(LAST)) == pytest.approx(expected, abs=ROUNDING)


def test_cycles_grow_by_a_factor():
    etas = np.asarray(cosine_restarts(3, t_mult=2)(jnp.arange(45)))
    np.testing.assert_array_equal(np.flatnonzero(etas == 1.0), [0, 3, 9, 21])


def test_without_autorestart_the_cosine_goes_on():
    schedule = cosine_restarts(12, 0.1, autorestart=False, t_cur=5)
    etas = np.asarray(schedule(jnp.arange(200)))
    expected = 0.1 + 0.45 * (1 + np.cos(np.pi * (np.arange(200) + 5) / 11))
    np.testing.assert_allclose(etas, expected, atol=ROUNDING)
    # A float32 argument of this size would have lost the phase.
    late = 22 * (2**31 // 22 - 1)
    assert float(schedule(late)) == pytest.approx(expected[0], abs=ROUNDING)


def test_both_ends_can_follow_schedules_of_their_own():
    decay = optax.exponential_decay(1.0, 10, 0.5)
    for kind in (cosine_restarts(5, 0.01, decay), WarmRestarts(5, 0.01, decay)):
        if isinstance(kind, WarmRestarts):
            state, etas = kind.init(), []
            for _ in range(11):
                etas.append(float(kind(state)))
                state = kind.update(state)
        else:
            etas = [float(kind(count)) for count in range(11)]
        np.testing.assert_allclose([etas[k] for k in (0, 5, 10)], [1, 0.5**0.5, 0.5])
        np.testing.assert_allclose([etas[k] for k in (4, 9)], 0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cycle_steps": 5},
        {"cycle_steps": 3, "t_mult": 3, "t_cur": 2},
        {"cycle_steps": [3, 4, 2], "eta_min": 0.2},
        {"cycle_steps": 4, "autorestart": False, "t_cur": 9},
        {"cycle_steps": 12, "eta_max": lambda count: 1.0 / (1 + count)},
    ],
)
def test_left_alone_the_stateful_schedule_is_the_pure_one(arguments):
    pure, stateful = cosine_restarts(**arguments), WarmRestarts(**arguments)
    state, advance = stateful.init(), jax.jit(stateful.update)
    assert state.eta == pure(0)
    for count in range(60):
        assert stateful(state) == pure(count)
        state = advance(state)
        assert state.eta == pure(count)
        assert state.count == count + 1


def test_a_cycle_that_grew_as_long_as_counts_go_stays_there():
    schedule = WarmRestarts(2**20, t_mult=2**10)
    state = schedule.init()
    for length in (2**30, 2**31 - 1, 2**31 - 1):
        state = schedule.update(state._replace(t_cur=state.cycle_steps - 1))
        assert (int(state.cycle_steps), int(state.t_cur)) == (length, 0)


def test_it_is_a_schedule_of_optax():
    assert isinstance(WarmRestarts(3), optax.schedules.StatefulSchedule)
    tx = optax.inject_hyperparams(optax.sgd)(WarmRestarts(3, eta_max=0.5))
    params = jnp.zeros(1)
    state = tx.init(params)
    for rate in (0.5, 0.25, 0.0, 0.5):
        updates, state = tx.update(jnp.ones(1), state, params)
        np.testing.assert_allclose(updates, -rate, atol=1e-7)
    joined = optax.join_schedules(
        [optax.linear_schedule(0, 1, 2), cosine_restarts(3)], [2]
    )
    np.testing.assert_allclose(
        [joined(k) for k in range(5)], [0, 0.5, 1, 0.5, 0], atol=1e-7
    )
    # It asks for counts below 0 as well, here in Python's integers.
    assert cosine_restarts(3)(-2) == 1.0


def test_a_tree_is_no_count():
    with pytest.raises(TypeError, match="`weight_decay` is an option per leaf, got"):
        normopt.decay_weights(cosine_restarts(3))
    with pytest.raises(TypeError, match="function of the step count, got a dict"):
        cosine_restarts(3)({"w": jnp.ones(1)})


def test_a_list_of_lengths_is_kept_from_changing():
    lengths = [3, 4]
    schedule = WarmRestarts(lengths)
    lengths[0] = 9
    assert schedule == WarmRestarts((3, 4)) and hash(schedule)


def test_a_count_is_no_state():
    with pytest.raises(TypeError, match="no function of the count.*cosine_restarts"):
        WarmRestarts(3)(jnp.zeros([], jnp.int32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cycle_steps": 1}, ValueError, "`cycle_steps` must be at least 2.*=1"),
        ({"cycle_steps": [4, 1]}, ValueError, "`cycle_steps` must be at least 2"),
        ({"cycle_steps": []}, ValueError, "at least one length"),
        ({"cycle_steps": 2**31}, ValueError, "below 2.31"),
        ({"cycle_steps": 24.0}, TypeError, "must be an integer.*24.0"),
        ({"cycle_steps": True}, TypeError, "must be an integer"),
        ({"cycle_steps": "12"}, TypeError, "must be an integer"),
        ({"cycle_steps": np.array([3, 4])}, TypeError, "list or tuple of such lengths"),
        ({"eta_min": 0.5, "eta_max": 0.2}, ValueError, "eta_min=0.5 and eta_max=0.2"),
        ({"eta_min": -0.1}, ValueError, "eta_min=-0.1"),
        ({"eta_max": "high"}, TypeError, "`eta_max` must be one number"),
        ({"eta_max": jnp.array(1j)}, TypeError, "`eta_max` must be one number"),
        ({"eta_max": WarmRestarts(3)}, TypeError, "`eta_max` must be.*stateful"),
        ({"t_mult": 0}, ValueError, "`t_mult` must be at least 1"),
        ({"t_mult": 1.5}, TypeError, "`t_mult` must be an integer"),
        ({"t_mult": 2, "autorestart": False}, ValueError, "`t_mult` must be 1 without"),
        (
            {"cycle_steps": (4, 6), "autorestart": False},
            ValueError,
            r"one number without autorestart.*\(4, 6\).*restart\(",
        ),
        ({"cycle_steps": (4, 6), "t_mult": 2}, ValueError, "beside a sequence"),
        ({"t_cur": -1}, ValueError, "0 is the start of a cycle"),
        ({"t_cur": 12}, ValueError, "below its length.*t_cur=12 and cycle_steps=12"),
        ({"autorestart": 1}, TypeError, "True or False"),
    ],
)
@pytest.mark.parametrize("build", [cosine_restarts, WarmRestarts])
def test_bad_arguments_are_refused_when_built(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**{"cycle_steps": 12, **arguments})
