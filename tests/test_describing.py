import json

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import normopt

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8, jnp.bfloat16)},
    "scale": jnp.array(1.0),
}


def test_one_row_a_leaf_with_what_it_gets():
    table = normopt.describe(
        PARAMS,
        channel_axes=(-1,),
        weight_decay={"kernel": 0.001},
        l1={"bias": 0.01},
        lr_multipliers={"scale": 0.5},
    )
    heading, bias, kernel, scale, totals = table.splitlines()
    assert kernel.split() == (
        "conv/kernel (3, 3, 4, 8) float32 (3,) 8 of 36 1 0.001 693 steps".split()
    )
    assert bias.split() == "conv/bias (8,) bfloat16 (0,) 8 of 1 1 0 + l1 0.01 -".split()
    assert scale.split() == "scale () float32 None - 0.5 0 -".split()
    assert totals == "3 leaves, 297 parameters, 16 blocks"
    assert heading.index("shape") == bias.index("(8,)")


def stages(*left_out: str) -> dict:
    kernel = jnp.ones((3, 4))
    tree = {
        "stages": [
            [{"conv1": kernel, "conv2": kernel} for _ in range(2)] for _ in range(3)
        ],
        "head": jnp.ones(3),
    }
    for path in left_out:
        stage, block, name = path.split("/")
        del tree["stages"][int(stage)][int(block)][name]
    return tree


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ((), ["stages/{0..2}/{0,1}/conv{1,2} (3, 4) 12"]),
        (
            ("1/0/conv2",),
            [
                "stages/{0,2}/{0,1}/conv{1,2} (3, 4) 8",
                "stages/1/0/conv1 (3, 4) 1",
                "stages/1/1/conv{1,2} (3, 4) 2",
            ],
        ),
    ],
)
def test_numbered_siblings_share_a_row_that_names_no_other_leaf(left_out, expected):
    heading, *rows, shared, totals = normopt.describe(stages(*left_out)).splitlines()
    assert heading.split() == ["path", "shape", "leaves"]
    assert [" ".join(row.split()) for row in rows] == ["head (3,) 1", *expected]
    assert shared == ("every leaf: dtype float32, axes None, multiplier 1, decay 0")
    assert totals.startswith(f"{13 - len(left_out)} leaves, ")


def test_only_shows_and_counts_what_a_pattern_finds():
    table = normopt.describe(PARAMS, channel_axes=(-1,), only="kernel$")
    assert "bias" not in table and "conv/kernel" in table
    assert table.endswith("1 leaves, 288 parameters, 8 blocks")
    with pytest.raises(ValueError, match="`only`: no parameter path matches 'krenel'"):
        normopt.describe(PARAMS, only="krenel")


ADAMW = {
    "name": "adamw",
    "learning_rate": 0.1,
    "weight_decay": {"kernel": 0.01},
    "lr_multipliers": {"scale": 0.5},
}
SRT = {"name": "adamsrt", "learning_rate": 0.1, "channel_axes": {"kernel": [-1]}}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ADAMW, {"weight_decay": {"kernel": 0.01}, "lr_multipliers": {"scale": 0.5}}),
        (SRT, {"channel_axes": {"kernel": (-1,)}}),
        (
            {"name": "normalized", "inner": SRT, "channel_axes": None},
            {"channel_axes": {"kernel": (-1,)}},
        ),
        (
            {
                "name": "chain",
                "links": [SRT, {"name": "decay_weights", "weight_decay": 0.01}],
            },
            {"channel_axes": {"kernel": (-1,)}, "weight_decay": 0.01},
        ),
    ],
)
def test_options_are_read_from_a_configuration(config, options):
    expected = normopt.describe(PARAMS, **options)
    assert normopt.describe(PARAMS, config) == expected
    assert normopt.describe(PARAMS, normopt.config(**config)) == expected


def test_what_a_configuration_has_no_column_for_is_told():
    table = normopt.describe(PARAMS, SRT | {"weight_decay": 0.01})
    assert "\nweight_decay 0.01 of adamsrt: tied to the gradient or the " in table
    assert "steps" not in table
    given = normopt.describe(PARAMS, SRT, channel_axes={"kernel": (0,)})
    assert "(0,)  3 of 96" in given
    assert "channel_axes {'kernel': [-1]} of adamsrt: not in the table" in given
    with pytest.raises(TypeError, match="weight_decya"):
        normopt.describe(PARAMS, SRT | {"weight_decya": 0.01})
    with pytest.raises(TypeError, match="`config` must be .* got 'adamsrt'"):
        normopt.describe(PARAMS, "adamsrt")


def test_whole_modules_are_described_by_their_arrays():
    module = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    table = normopt.describe(module, channel_axes=normopt.output_channels(axis=0))
    assert "layers/0/weight  (8, 3)  (0,)  8 of 3" in table
    assert "\nnot shown: leaves that are no arrays, 2 of them\n" in table
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    )
    for tree in (model, nnx.state(model)):
        table = normopt.describe(tree, channel_axes={"kernel$": (-1,)})
        assert "(3, 4)  float32" in table and "4 of 3" in table


def test_abstract_params_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    axes = {"kernel": (-1,)}
    assert normopt.describe(shapes, channel_axes=axes) == normopt.describe(
        PARAMS, channel_axes=axes
    )


def test_the_half_life_is_that_of_the_product():
    row = normopt.describe({"w": jnp.ones(1)}, weight_decay=0.5).splitlines()[1]
    assert row.endswith("0.5    1 steps")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_axes": {"krenel": (-1,)}}, "'krenel'"),
        ({"weight_decay": {"krenel": 0.1}}, "'krenel'"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"lr_multipliers": {"kernel": -2}}, "lr_multipliers=-2"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        normopt.describe(PARAMS, **options)


def test_matrices_are_shown_and_what_is_left_to_rest():
    params = {"heads": jnp.ones((8, 3, 4)), "embed": jnp.ones((9, 8))}
    config = normopt.config(
        "muon",
        learning_rate=0.1,
        matrices={"heads": ((0,), (2,))},
        rest={"name": "adamw", "learning_rate": 1e-3},
    )
    found = normopt.describe(params, json.loads(json.dumps(config)))
    assert found.splitlines()[:3] == [
        "path   shape      matrices",
        "embed  (9, 8)     -",
        "heads  (8, 3, 4)  3 of 8 x 4",
    ]
    assert found == normopt.describe(params, matrices={"heads": (0, 2)})
    assert "embed  (9, 8)     9 x 8" in normopt.describe(
        params, normopt.config("normuon", learning_rate=0.1)
    )
    assert "matrices" not in normopt.describe(params)


def test_radii_are_the_lengths_that_the_blocks_have():
    kernel = jnp.ones((4, 3)) * jnp.array([1.0, 2.5, 0.0])
    params = {"kernel": kernel, "head": jnp.ones((4, 1)), "bias": jnp.ones(3)}
    options = {"channel_axes": {"kernel": -1, "head": -1, "bias": -1}}
    radii = {"kernel": "initial", "head": 7.0, "bias": "initial"}

    def last(params):
        rows = normopt.describe(params, **options, radius=radii).splitlines()[:-1]
        column = rows[0].index("radius")
        of_leaves = [row for row in rows[1:] if not row.startswith("every leaf:")]
        return {row.split()[0]: row[column:] for row in of_leaves}

    # A block of one element has no direction.
    found = {"kernel": "2 to 5, 1 without length", "head": "7", "bias": "-"}
    assert last(params) == found
    assert last(jax.eval_shape(lambda: params)) == {**found, "kernel": "initial"}
    with pytest.raises(ValueError, match="got radius='first' at 'kernel'"):
        normopt.describe(params, **options, radius={"kernel": "first"})


def test_what_was_observed_has_columns():
    kernel = jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
    params = {"kernel": kernel, "bias": jnp.ones(3)}
    tx = normopt.observe(optax.sgd(0.5), {"kernel": (-1,)})
    _, state = tx.update(params, tx.init(params), params)
    seen = normopt.observations(state)
    header, bias, row, *_ = normopt.describe(params, observations=seen).splitlines()
    assert row.endswith("  2, max 5  2, max 5  0.5, max 0.5   0, max 0")
    assert header.endswith("gradient  weight    relative step  angle")
    assert bias.split()[-4:] == ["-"] * 4
    with pytest.raises(ValueError, match="`observations` has 'kernel', which is no"):
        normopt.describe({"bias": jnp.ones(3)}, observations=seen)
    with pytest.raises(ValueError, match=r"blocks of shape \(3,\) for 'kernel', whose"):
        normopt.describe({"kernel": jnp.ones((2, 4))}, observations=seen)
    with pytest.raises(TypeError, match=r"normopt.observations\(state\) gives, got"):
        normopt.describe(params, observations=state)
    # An empty state is no observation either.
    with pytest.raises(TypeError, match="gives, got EmptyState"):
        normopt.describe(params, observations=optax.EmptyState())
