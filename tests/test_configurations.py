"""Configurations of chains, links and schedules, of both libraries; wrong ones."""

import json
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from tests.test_registry import trajectory

SGD = {"name": "sgd", "learning_rate": 0.1}
EXPONENTIAL = {
    "name": "exponential_decay",
    "init_value": 0.1,
    "transition_steps": 2,
    "decay_rate": 0.5,
}
LINEAR = {"init_value": 0.0, "end_value": 0.3, "transition_steps": 4}


def exponential():
    return optax.exponential_decay(0.1, 2, 0.5)


SCHEDULES = {
    "constant_schedule": ({"value": 0.3}, lambda: optax.constant_schedule(0.3)),
    "cosine_decay_schedule": (
        {"init_value": 0.3, "decay_steps": 7, "alpha": 0.1},
        lambda: optax.cosine_decay_schedule(0.3, 7, 0.1),
    ),
    "cosine_onecycle_schedule": (
        {"transition_steps": 9, "peak_value": 0.5},
        lambda: optax.cosine_onecycle_schedule(9, 0.5),
    ),
    "exponential_decay": (
        {"init_value": 0.1, "transition_steps": 2, "decay_rate": 0.5},
        exponential,
    ),
    "join_schedules": (
        {
            "schedules": [
                {"name": "linear_schedule", **LINEAR},
                EXPONENTIAL,
                {
                    "name": "join_schedules",
                    "schedules": [
                        {"name": "constant_schedule", "value": 0.4},
                        {"name": "cosine_restarts", "cycle_steps": [3, 4]},
                    ],
                    "boundaries": [2],
                },
            ],
            "boundaries": [3, 5],
        },
        lambda: optax.join_schedules(
            [
                optax.linear_schedule(0.0, 0.3, 4),
                exponential(),
                optax.join_schedules(
                    [optax.constant_schedule(0.4), normopt.cosine_restarts([3, 4])],
                    [2],
                ),
            ],
            [3, 5],
        ),
    ),
    "linear_onecycle_schedule": (
        {"transition_steps": 9, "peak_value": 0.5},
        lambda: optax.linear_onecycle_schedule(9, 0.5),
    ),
    "linear_schedule": (LINEAR, lambda: optax.linear_schedule(0.0, 0.3, 4)),
    "piecewise_constant_schedule": (
        {"init_value": 0.3, "boundaries_and_scales": {2: 0.5, 5: 0.1}},
        lambda: optax.piecewise_constant_schedule(0.3, {2: 0.5, 5: 0.1}),
    ),
    "piecewise_interpolate_schedule": (
        {
            "interpolate_type": "cosine",
            "init_value": 0.3,
            "boundaries_and_scales": {2: 0.5, 5: 0.1},
        },
        lambda: optax.piecewise_interpolate_schedule("cosine", 0.3, {2: 0.5, 5: 0.1}),
    ),
    "polynomial_schedule": (
        {**LINEAR, "power": 2},
        lambda: optax.polynomial_schedule(0.0, 0.3, 2, 4),
    ),
    "sgdr_schedule": (
        {
            "cosine_kwargs": [
                {
                    "init_value": 0.0,
                    "peak_value": peak,
                    "warmup_steps": 2,
                    "decay_steps": 5,
                }
                for peak in (0.4, 0.2)
            ]
        },
        lambda: optax.sgdr_schedule(
            [
                {
                    "init_value": 0.0,
                    "peak_value": peak,
                    "warmup_steps": 2,
                    "decay_steps": 5,
                }
                for peak in (0.4, 0.2)
            ]
        ),
    ),
    "warmup_constant_schedule": (
        {"init_value": 0.0, "peak_value": 0.4, "warmup_steps": 3},
        lambda: optax.warmup_constant_schedule(0.0, 0.4, 3),
    ),
    "warmup_cosine_decay_schedule": (
        {"init_value": 0.0, "peak_value": 0.4, "warmup_steps": 3, "decay_steps": 9},
        lambda: optax.warmup_cosine_decay_schedule(0.0, 0.4, 3, 9),
    ),
    "warmup_exponential_decay_schedule": (
        {
            "init_value": 0.0,
            "peak_value": 0.4,
            "warmup_steps": 3,
            "transition_steps": 2,
            "decay_rate": 0.5,
        },
        lambda: optax.warmup_exponential_decay_schedule(0.0, 0.4, 3, 2, 0.5),
    ),
}


def reread(configuration):
    """Writes a configuration to JSON and builds what the JSON says."""
    complete = normopt.config(**configuration)
    read = json.loads(json.dumps(complete))
    assert normopt.config(**read) == complete
    return normopt.make(**read)


def test_every_schedule_of_optax_is_among_the_cases():
    of_optax = {name for name in dir(optax.schedules) if hasattr(optax, name)}
    functions = {name for name in of_optax if name.endswith(("schedule", "schedules"))}
    assert functions | {"exponential_decay"} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_optax_is_read_back(name):
    options, build = SCHEDULES[name]
    schedule, expected = reread({"name": name, **options}), build()
    for count in range(14):
        assert float(schedule(count)) == float(expected(count)), count


LINKS = {
    "clips": (
        [
            {"name": "clip", "max_delta": 0.5},
            {"name": "clip_by_global_norm", "max_norm": 1.0},
            {"name": "clip_by_block_rms", "threshold": 0.4},
            {"name": "adaptive_grad_clip", "clipping": 0.3},
            SGD,
        ],
        lambda: [
            optax.clip(0.5),
            optax.clip_by_global_norm(1.0),
            optax.clip_by_block_rms(0.4),
            optax.adaptive_grad_clip(0.3),
            optax.sgd(0.1),
        ],
    ),
    "moments": (
        [
            {"name": "scale_by_adam", "mu_dtype": jnp.float32},
            {
                "name": "add_decayed_weights",
                "weight_decay": 0.1,
                "mask": {"kernel$": True},
            },
            {"name": "scale_by_learning_rate", "learning_rate": EXPONENTIAL},
        ],
        lambda: [
            optax.scale_by_adam(mu_dtype=jnp.float32),
            optax.add_decayed_weights(0.1, lambda _: {"kernel": True, "bias": False}),
            optax.scale_by_learning_rate(exponential()),
        ],
    ),
    "scaled": (
        [
            {"name": "scale_by_rms", "decay": 0.8},
            {"name": "scale_by_trust_ratio"},
            {"name": "scale_by_schedule", "step_size_fn": EXPONENTIAL},
            {
                "name": "masked",
                "inner": {"name": "scale", "step_size": -1.0},
                "mask": {},
            },
            {"name": "trace", "decay": 0.9, "nesterov": True},
            {"name": "scale", "step_size": -1.0},
        ],
        lambda: [
            optax.scale_by_rms(0.8),
            optax.scale_by_trust_ratio(),
            optax.scale_by_schedule(exponential()),
            optax.trace(0.9, nesterov=True),
            optax.scale(-1.0),
        ],
    ),
    "parts": (
        [
            {
                "name": "partition",
                "transforms": {
                    "plain": SGD,
                    "block": {
                        "name": "adamsrt",
                        "learning_rate": EXPONENTIAL,
                        "channel_axes": {"kernel$": -1},
                    },
                },
                "param_labels": {"kernel$": "block", "": "plain"},
            },
            {"name": "freeze", "mask": {"bias$": True}},
        ],
        lambda: [
            optax.masked(
                normopt.adamsrt(exponential(), channel_axes={"kernel$": (-1,)}),
                {"kernel": True, "bias": False},
            ),
            optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True}),
        ],
    ),
    "ours": (
        [
            {"name": "normalize_blocks", "norm": "max", "channel_axes": -1},
            {"name": "clip_blocks", "max_norm": {"kernel$": 0.5}},
            {"name": "add_decay", "weight_decay": 0.1},
            {"name": "scale_by_block_adam", "channel_axes": {"kernel$": [-1]}},
            {"name": "scale_by_block_size", "channel_axes": {"kernel$": -1}},
            {"name": "scale_by_param_norm"},
            {"name": "scale_by_path", "lr_multipliers": {"bias$": 2.0}},
            {"name": "scale_by_learning_rate", "learning_rate": 0.1},
            {"name": "decay_weights", "weight_decay": 0.01, "schedule": EXPONENTIAL},
        ],
        lambda: [
            normopt.normalize_blocks("max", (-1,)),
            normopt.clip_blocks({"kernel$": 0.5}),
            normopt.add_decay(0.1),
            normopt.scale_by_block_adam(channel_axes={"kernel$": (-1,)}),
            normopt.scale_by_block_size({"kernel$": (-1,)}),
            normopt.scale_by_param_norm(),
            normopt.scale_by_path({"bias$": 2.0}),
            optax.scale_by_learning_rate(0.1),
            normopt.decay_weights(0.01, schedule=exponential()),
        ],
    ),
    "wrapping": (
        [
            {
                "name": "compensate_rounding",
                "inner": {
                    "name": "retract_to_sphere",
                    "channel_axes": {"kernel$": (0,)},
                    "inner": {
                        "name": "chain",
                        "links": [
                            {
                                "name": "project_if_invariant",
                                "inner": {"name": "scale_by_adam"},
                            },
                            {"name": "scale", "step_size": -0.1},
                        ],
                    },
                },
            }
        ],
        lambda: [
            normopt.compensate_rounding(
                normopt.retract_to_sphere(
                    optax.chain(
                        normopt.project_if_invariant(optax.scale_by_adam()),
                        optax.scale(-0.1),
                    ),
                    {"kernel$": (0,)},
                )
            )
        ],
    ),
}


@pytest.mark.parametrize("case", LINKS)
def test_a_chain_is_read_back(case):
    links, build = LINKS[case]
    rebuilt = trajectory(reread({"name": "chain", "links": links}))
    for leaf, expected in trajectory(optax.chain(*build())).items():
        np.testing.assert_array_equal(rebuilt[leaf], expected)


def test_one_axis_is_written_and_described_as_a_tuple_is():
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    tables = {
        normopt.describe(params, channel_axes=axes)
        for axes in (
            -1,
            np.int64(-1),
            (-1,),
            [-1],
            {"": -1},
            lambda p: {"kernel": np.int32(1), "bias": -1},
        )
    }
    assert len(tables) == 1 and "(1,)" in tables.pop()
    for axes in (-1, np.int64(-1), {"kernel$": np.int32(-1)}):
        tx = reread({"name": "normalized", "inner": SGD, "channel_axes": axes})
        given = {"kernel$": (-1,)} if isinstance(axes, dict) else (-1,)
        expected = trajectory(normopt.normalized(optax.sgd(0.1), channel_axes=given), 1)
        for leaf, value in trajectory(tx, 1).items():
            np.testing.assert_array_equal(value, expected[leaf])


def test_tuples_and_arrays_are_written_at_every_depth():
    optimizer = reread(
        {
            "name": "apply_if_finite",
            "max_consecutive_errors": np.int64(3),
            "inner": {
                "name": "chain",
                "links": (
                    {"name": "trace", "decay": jnp.float32(0.5)},
                    {"name": "sgd", "learning_rate": jnp.array(0.5)},
                ),
            },
        }
    )
    params = jnp.ones(2)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates.tolist() == [-0.5, -0.5]


def test_named_tuples_such_as_optax_s_dimension_numbers_are_written_as_tuples_are():
    numbers = namedtuple("Numbers", "reduction_axis output_axis")
    written = normopt.config("muon", learning_rate=0.1, matrices={"k": numbers(0, 1)})
    assert written["matrices"] == {"k": [0, 1]}


def test_a_default_that_is_a_function_is_left_out_and_one_given_refused():
    complete = normopt.config("scale_by_factored_rms")
    assert "decay_rate_fn" not in complete and complete["factored"] is True
    normopt.make(**complete)
    with pytest.raises(TypeError, match="`scale_by_factored_rms.decay_rate_fn` cannot"):
        normopt.config("scale_by_factored_rms", decay_rate_fn=lambda step, rate: rate)


ADAMW = {"name": "adamw", "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"name": "adamw", "lr": 0.1},
            TypeError,
            "^adamw: unknown argument 'lr'; did you mean 'learning_rate'.*b1, b2",
        ),
        ({**ADAMW, "wd": 0.1}, TypeError, "^adamw: .*'wd'; .* 'weight_decay'"),
        ({**ADAMW, "beta2": 0.9}, TypeError, "'beta2'; did you mean 'b2'"),
        ({**ADAMW, "epsilon": 0.9}, TypeError, "'epsilon'; did you mean 'eps'"),
        ({**SGD, "qqqq": 1}, TypeError, "^sgd: unknown argument 'qqqq'. It takes lear"),
        ({"name": "sgd"}, TypeError, "^sgd: .*'learning_rate'; it takes learning_rate"),
        ({"name": "AdamSRT"}, ValueError, r"'AdamSRT'; did you mean 'adamsrt'\?"),
        ({"name": "adamsr"}, ValueError, "^unknown .*'adamsr'; did you mean 'adamsrt'"),
        (
            {"name": "clip_by_globalnorm"},
            ValueError,
            "'clip_by_globalnorm'; did you mean 'clip_by_global_norm'",
        ),
        ({"name": "exponential"}, ValueError, "did you mean 'exponential_decay'"),
        ({"name": "inject_hyperparams"}, ValueError, "unknown .*'inject_hyperparams'"),
        ({"name": "named_chain"}, ValueError, "did you mean 'chain'"),
        (
            {"name": "chain", "links": [SGD, {"name": "clip", "max_norm": 1.0}]},
            TypeError,
            "^clip: unknown argument 'max_norm'. It takes max_delta",
        ),
        (
            {"name": "chain", "links": [SGD, optax.clip(1.0)]},
            TypeError,
            r"`chain.links\[1\]` cannot be written",
        ),
        ({"name": "chain", "links": [SGD, "clip"]}, TypeError, r"links\[1\].*'clip'"),
        (
            {"name": "chain", "links": [EXPONENTIAL]},
            TypeError,
            r"`chain.links\[0\]` must be a link or an optimizer",
        ),
        ({"name": "chain", "links": SGD}, TypeError, "`chain.links` must be a list"),
        ({"name": "chain", "links": []}, TypeError, "at least one"),
        ({"name": "chain"}, TypeError, "chain: .*'links'"),
        (
            {
                "name": "join_schedules",
                "schedules": [EXPONENTIAL, SGD],
                "boundaries": [1],
            },
            TypeError,
            r"`join_schedules.schedules\[1\]` must be a schedule of the step count",
        ),
        (
            {
                "name": "join_schedules",
                "schedules": [{"name": "WarmRestarts", "cycle_steps": 3}],
                "boundaries": [],
            },
            TypeError,
            r"`join_schedules.schedules\[0\]` must be",
        ),
        (
            {
                "name": "join_schedules",
                "schedules": [EXPONENTIAL] * 3,
                "boundaries": [1],
            },
            ValueError,
            r"one boundary less than schedules, got boundaries=\[1\] for 3",
        ),
        (
            {**ADAMW, "weight_decay": {"name": "linear_schedule", **LINEAR}},
            TypeError,
            "`weight_decay` is an option per leaf, got the schedule",
        ),
        ({"name": optax.adam(0.1)}, TypeError, "built optimizer.*cannot be read back"),
        ({"name": normopt.adamw(0.1)}, TypeError, "cannot be read back.*before it is"),
        ({"name": optax.linear_schedule(0, 1, 2)}, TypeError, "cannot be read back"),
        ({"name": normopt.adamw}, TypeError, "write its name, 'adamw'"),
        ({"name": ADAMW}, TypeError, r"normopt.config\(\*\*configuration\)"),
    ],
)
def test_what_is_wrong_comes_first(given, error, message):
    with pytest.raises(error, match=message):
        normopt.config(**given)
