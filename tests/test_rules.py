import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt

PARAMS = {
    "conv_1": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
    "conv_10": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
}


def test_first_match_wins_and_the_default_fills():
    rule = normopt.by_path({"conv_10": "b", "conv_1": "a"}, default="c")
    assert rule(PARAMS) == {
        "conv_1": {"kernel": "a", "bias": "a"},
        "conv_10": {"kernel": "b", "bias": "b"},
    }
    trap = normopt.by_path({"conv_1": "a", "conv_10": "b"}, default="c")
    assert trap(PARAMS)["conv_10"]["kernel"] == "a"


def test_a_pattern_without_a_match_names_itself_and_the_paths():
    with pytest.raises(ValueError) as caught:
        normopt.by_path({"kernal$": 1, "bias": 2})(PARAMS)
    message = str(caught.value)
    assert "'kernal$'" in message and "'bias'" not in message
    for path in normopt.leaf_paths(PARAMS):
        assert path in message


def test_shared_rules_need_not_all_match():
    rule = normopt.by_path({"attention": 1, "bias": 2}, default=0, strict=False)
    assert rule(PARAMS)["conv_1"] == {"kernel": 0, "bias": 2}


def test_an_overridden_rule_counts_as_matched():
    rule = normopt.by_path({"conv": 1, "kernel": 2})
    assert rule(PARAMS)["conv_1"]["kernel"] == 1


def test_a_masked_position_counts_as_matched():
    link = normopt.add_decay({"kernel": 1.0, "bias": 0.5})
    only_bias = optax.masked(link, normopt.by_path({"bias": True}, default=False))
    grads = optax.tree.zeros_like(PARAMS)
    updates, _ = only_bias.update(grads, only_bias.init(PARAMS), PARAMS)
    assert not updates["conv_1"]["kernel"].any()
    parts = optax.partition(
        {"a": link, "b": optax.identity()}, normopt.by_path({"conv_10": "b"}, "a")
    )
    updates, _ = parts.update(grads, parts.init(PARAMS), PARAMS)
    assert (updates["conv_1"]["kernel"] == 1).all()
    assert not updates["conv_10"]["kernel"].any()


def test_axes_none_and_empty_survive_as_values():
    rules = {"conv_1/kernel": (), "conv_10/kernel": (0, -1), "bias": None}
    params = PARAMS
    tree = normopt.by_path(rules)(params)
    assert tree["conv_1"] == {"kernel": (), "bias": None}
    lengths = normopt.block_norms(params, normopt.by_path(rules))
    assert lengths["conv_1"]["kernel"].shape == ()
    assert lengths["conv_10"]["kernel"].shape == (3, 4)
    assert lengths["conv_1"]["bias"] is None


@pytest.mark.parametrize("axis", [0, -1])
def test_output_channels(axis):
    chosen = normopt.output_channels(axis)(PARAMS)
    assert chosen["conv_1"] == {"kernel": (axis,), "bias": None}
    with pytest.raises(TypeError, match="axis=1.5"):
        normopt.output_channels(1.5)


@pytest.mark.parametrize(
    "rule", [normopt.by_path({"conv": (-1,)}), normopt.output_channels()]
)
@pytest.mark.parametrize("count", [3, jnp.array(3), None, "kernel"])
def test_a_rule_that_is_called_with_a_step_count_says_so(rule, count):
    with pytest.raises(TypeError, match=r"inject_hyperparams.*static_args"):
        rule(count)


def test_a_rule_takes_a_tree_that_is_one_number():
    assert normopt.by_path({"": "all"})(1.0) == "all"
    assert normopt.output_channels()(1.0) is None


def test_inject_hyperparams_cannot_swallow_a_rule():
    make = optax.inject_hyperparams(normopt.normalize_blocks)
    with pytest.raises(TypeError, match="static_args"):
        make(channel_axes=normopt.output_channels(), eps=0.0).init(PARAMS)
    static = optax.inject_hyperparams(
        normopt.normalize_blocks, static_args=("channel_axes",)
    )
    link = static(channel_axes=normopt.output_channels(), eps=0.0)
    updates, _ = link.update(PARAMS, link.init(PARAMS))
    assert float(updates["conv_1"]["kernel"][0, 0]) == pytest.approx(3**-0.5)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (["kernel"], TypeError, "must be a mapping"),
        ({0: 1}, TypeError, "strings, got 0"),
        ({"[": 1}, ValueError, "'\\['.* not a regular expression"),
    ],
)
def test_bad_rules_are_refused_when_built(rules, error, message):
    with pytest.raises(error, match=message):
        normopt.by_path(rules)


def test_a_plain_value_falls_back_where_a_leaf_lacks_the_axis():
    lengths = normopt.block_norms({"w": jnp.ones((2, 3)), "b": jnp.array(1.0)}, (1,))
    assert lengths["b"] is None and lengths["w"].shape == (3,)
    with pytest.raises(ValueError, match="no other leaf either"):
        normopt.block_norms({"b": jnp.array(1.0)}, (-1,))
    assert normopt.block_norms({}, (-1,)) == {}


class Halving:
    """A stateful schedule of one's own."""

    def init(self):
        return jnp.ones([])

    def update(self, state, **extra_args):
        return state / 2

    def __call__(self, state, **extra_args):
        return state


SCHEDULES = {
    "own": Halving,
    "linear": lambda: optax.linear_schedule(0.0, 0.1, 10),
    "constant": lambda: optax.constant_schedule(0.1),
    "joined": lambda: optax.join_schedules([optax.constant_schedule(0.1)] * 2, [3]),
    "jitted": lambda: jax.jit(optax.cosine_decay_schedule(0.1, 10)),
    "partial": lambda: functools.partial(optax.exponential_decay(0.1, 10, 0.5)),
    "restarts": lambda: normopt.cosine_restarts(10),
    "stateful": lambda: normopt.WarmRestarts(10),
}
OPTIONS = {
    "weight_decay": lambda value: normopt.decay_weights(weight_decay=value),
    "l1": lambda value: normopt.adamw(0.1, l1=value),
    "lr_multipliers": lambda value: normopt.scale_by_path(value),
    "max_norm": lambda value: normopt.clip_blocks(value),
    "channel_axes": lambda value: normopt.normalize_blocks(channel_axes=value),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_schedule_is_no_option_per_leaf(option, schedule):
    value = SCHEDULES[schedule]()
    message = rf"^`{option}` is an option per leaf.*`schedule=`.*inject_hyperparams"
    with pytest.raises(TypeError, match=message):
        OPTIONS[option](value)
    with pytest.raises(TypeError, match=rf"{message[:-40]}.* at 'kernel'"):
        OPTIONS[option]({"kernel": value})
    link = OPTIONS[option](lambda params: jax.tree.map(lambda w: value, params))
    for params in ({"kernel": jnp.ones((2, 3))}, jnp.ones([])):
        with pytest.raises(TypeError, match=rf"^`{option}` is an option per leaf"):
            link.init(params)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda count: 0.1 * (1 - count / 10), TypeError, "raised TypeError"),
        (lambda count: 0.1, ValueError, "must return a tree of values"),
        (lambda count: jnp.asarray(0.1), ValueError, "must return a tree of values"),
        (lambda count: {0: 0.1}[count], TypeError, "raised TypeError: unhashable"),
        (lambda params: params["other"], TypeError, "raised KeyError: 'other'"),
    ],
)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_schedule_of_ones_own_is_told_where_it_may_stand(
    option, schedule, error, message
):
    link = OPTIONS[option](schedule)
    ends = "`schedule=` where that is an option.*inject_hyperparams"
    with pytest.raises(error, match=rf"callable `{option}`.*{message}.*{ends}"):
        link.init(PARAMS)


def test_inject_hyperparams_takes_the_schedule_of_a_decay():
    make = optax.inject_hyperparams(normopt.decay_weights)
    link = make(weight_decay=optax.linear_schedule(0.0, 0.5, 2))
    params = {"kernel": jnp.full(2, 4.0)}
    state, seen = link.init(params), []
    for _ in range(3):
        updates, state = link.update(optax.tree.zeros_like(params), state, params)
        seen.append(float(updates["kernel"][0]))
    assert seen == [0.0, -1.0, -2.0]


def test_a_rule_takes_a_numpy_axis():
    assert normopt.output_channels(np.int64(0))(jnp.ones((2, 3))) == (0,)
