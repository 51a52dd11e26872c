import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import normopt

PIECEWISE = {
    "name": "piecewise_constant_schedule",
    "init_value": 0.1,
    "boundaries_and_scales": {3: 0.5, 6: 0.1},
}
CASES = {
    "sgd": (
        {
            "name": "normalized",
            "inner": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            "norm": "max",
            "channel_axes": {"kernel": (-1,)},
        },
        lambda: normopt.normalized(
            optax.sgd(0.1, 0.9), "max", channel_axes={"kernel": (-1,)}
        ),
    ),
    "schedule": (
        {
            "name": "clipped",
            "inner": {"name": "sgd", "learning_rate": PIECEWISE},
            "max_norm": np.float32(0.25),
            "channel_axes": (-1,),
        },
        lambda: normopt.clipped(
            optax.sgd(optax.piecewise_constant_schedule(0.1, {3: 0.5, 6: 0.1})),
            0.25,
            channel_axes=(-1,),
        ),
    ),
    "restarts": (
        {
            "name": "adamw",
            "learning_rate": 0.1,
            "weight_decay": {"kernel": 0.01},
            "schedule": {
                "name": "cosine_restarts",
                "cycle_steps": (3, 4),
                "eta_max": PIECEWISE,
            },
        },
        lambda: normopt.adamw(
            0.1,
            weight_decay={"kernel": 0.01},
            schedule=normopt.cosine_restarts(
                (3, 4),
                eta_max=optax.piecewise_constant_schedule(0.1, {3: 0.5, 6: 0.1}),
            ),
        ),
    ),
    "stateful": (
        {
            "name": "sgdw",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "schedule": {"name": "WarmRestarts", "cycle_steps": 3, "t_mult": 2},
        },
        lambda: normopt.sgdw(0.1, 0.9, schedule=normopt.WarmRestarts(3, t_mult=2)),
    ),
    "nested": (
        {
            "name": "clipped",
            "inner": {
                "name": "normalized",
                "inner": {
                    "name": "adam",
                    "learning_rate": 0.1,
                    "mu_dtype": jnp.float32,
                },
            },
            "max_norm": {"bias": 0.1},
        },
        lambda: normopt.clipped(
            normopt.normalized(optax.adam(0.1, mu_dtype=jnp.float32)),
            {"bias": 0.1},
        ),
    ),
}


def trajectory(optimizer, steps=10):
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for index in range(steps):
        key = jax.random.key(index)
        grads = jax.tree.map(lambda w, k=key: jax.random.normal(k, w.shape), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("case", CASES)
def test_a_json_file_rebuilds_the_same_optimizer(case, tmp_path):
    given, build = CASES[case]
    complete = normopt.config(**given)
    file = tmp_path / "optimizer.json"
    file.write_text(json.dumps(complete))
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read == complete
    assert normopt.config(**read) == complete
    rebuilt = trajectory(normopt.make(**read))
    for leaf, expected in trajectory(build()).items():
        assert (rebuilt[leaf] == expected).all()


def test_defaults_are_filled_in_at_every_depth():
    complete = normopt.config("normalized", inner={"name": "sgd", "learning_rate": 1})
    assert complete["eps"] == 1e-7 and complete["norm"] == "l2"
    assert complete["inner"] == {
        "name": "sgd",
        "learning_rate": 1,
        "momentum": None,
        "nesterov": False,
        "accumulator_dtype": None,
    }


SGD = {"name": "sgd", "learning_rate": 0.1}
RESTARTS = {"name": "WarmRestarts", "cycle_steps": 3}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "normalised", "inner": SGD}, ValueError, "'normalised'.*normalized"),
        ({"name": "normalized"}, TypeError, "'inner'"),
        ({"name": "normalized", "inner": SGD, "axes": ()}, TypeError, "'axes'"),
        (
            {"name": "normalized", "inner": optax.sgd(0.1)},
            TypeError,
            "`normalized.inner` cannot be written",
        ),
        (
            {"name": "normalized", "inner": {**SGD, "learning_rate": lambda c: 0.1}},
            TypeError,
            "`sgd.learning_rate` cannot be written",
        ),
        (
            {
                "name": "normalized",
                "inner": SGD,
                "channel_axes": normopt.output_channels(),
            },
            TypeError,
            "pattern: value",
        ),
        (
            {"name": "muon", "learning_rate": 0.1, "spread": PartitionSpec("data")},
            TypeError,
            "`muon.spread` cannot be written.* the names of its axes",
        ),
        ({"name": "clipped", "inner": SGD, "max_norm": {3: 1.0}}, TypeError, "got 3"),
        ({"name": "clipped", "inner": SGD, "max_norm": np.inf}, ValueError, "finite"),
        ({"name": "sgd", "learning_rate": "fast"}, TypeError, "sgd.learning_rate"),
        ({"name": "sgd", "learning_rate": True}, TypeError, "one number"),
        (
            {
                "name": "adam",
                "learning_rate": {"name": "WarmRestarts", "cycle_steps": 3},
            },
            TypeError,
            "adam.learning_rate.*stateful",
        ),
        ({"name": "normalized", "inner": SGD, "eps": -1}, ValueError, "eps=-1"),
        ({"name": "clipped", "inner": SGD, "max_norm": -1}, ValueError, "max_norm=-1"),
        (
            {"name": "normalized", "inner": SGD, "norm": "own"},
            ValueError,
            "'own'.*regis",
        ),
        ({"name": "normalized", "inner": {"name": "l2"}}, ValueError, "unknown.*'l2'"),
        (
            {"name": "adamw", "learning_rate": 0.1, "schedule": {"name": "restarts"}},
            ValueError,
            "unknown.*'restarts'.*cosine_restarts, WarmRestarts",
        ),
    ],
)
def test_bad_configurations_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        normopt.config(**given)


def test_make_needs_a_name():
    with pytest.raises(TypeError, match="name=None"):
        normopt.make(learning_rate=0.1)


def test_a_custom_norm_has_to_be_registered_first():
    given = {"name": "normalized", "inner": SGD, "norm": "third_of_max"}
    with pytest.raises(ValueError, match=r"normopt.register_norm\(name, fn\)"):
        normopt.make(**given)
    normopt.register_norm("third_of_max", lambda block: jnp.abs(block).max() / 3)
    trajectory(normopt.make(**normopt.config(**given)), steps=1)
