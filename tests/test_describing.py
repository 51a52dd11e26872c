import jax
import jax.numpy as jnp
import pytest

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


def test_radii_are_the_lengths_that_the_blocks_have():
    kernel = jnp.ones((4, 3)) * jnp.array([1.0, 2.5, 0.0])
    params = {"kernel": kernel, "head": jnp.ones((4, 1)), "bias": jnp.ones(3)}
    options = {"channel_axes": {"kernel": -1, "head": -1, "bias": -1}}
    radii = {"kernel": "initial", "head": 7.0, "bias": "initial"}

    def last(params):
        rows = normopt.describe(params, **options, radius=radii).splitlines()[:-1]
        column = rows[0].index("radius")
        return {row.split()[0]: row[column:] for row in rows[1:]}

    # A block of one element has no direction.
    found = {"kernel": "2 to 5, 1 without length", "head": "7", "bias": "-"}
    assert last(params) == found
    assert last(jax.eval_shape(lambda: params)) == {**found, "kernel": "initial"}
    with pytest.raises(ValueError, match="got radius='first' at 'kernel'"):
        normopt.describe(params, **options, radius={"kernel": "first"})
