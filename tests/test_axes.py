"""One channel axis is a tuple of one, in whatever form the option is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from normopt.blocks import check_channel_axes, resolve_axes

ONE_AXIS = {
    "plain": -1,
    "numpy": np.int64(-1),
    "unsigned": np.uint8(1),
    "mapping": {"": -1},
    "by_path": normopt.by_path({"": np.int32(-1)}),
    "callable": lambda tree: jax.tree.map(lambda leaf: np.ndim(leaf) - 1, tree),
}


@pytest.mark.parametrize("form", ONE_AXIS)
def test_one_axis_means_a_tuple_of_one(form):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    resolved = resolve_axes(ONE_AXIS[form], params)
    assert resolved == [(1,)] and type(resolved[0][0]) is int
    lengths = normopt.block_norms(params, ONE_AXIS[form])
    expected = normopt.block_norms(params, (-1,))
    np.testing.assert_array_equal(lengths["kernel"], expected["kernel"])


def test_one_axis_falls_back_and_is_refused_as_a_tuple_is():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones([])}
    assert resolve_axes(1, params) == [None, (1,), None]
    with pytest.raises(ValueError, match=r"= \(2,\) needs an axis .* no other leaf"):
        resolve_axes(2, params)
    with pytest.raises(ValueError, match=r"= \(-1,\) needs an axis that 'scale'"):
        resolve_axes({"scale": -1}, params)


@pytest.mark.parametrize(
    "axes", [True, np.bool_(True), -1.0, "-1", (-1.0,), {"a": "b"}]
)
def test_what_is_no_axis_is_refused(axes):
    with pytest.raises(
        TypeError, match=r"\(-1,\) or \(\), or one axis such as -1, got"
    ):
        check_channel_axes(axes)


def test_an_axis_that_inject_hyperparams_made_a_number_says_so():
    make = optax.inject_hyperparams(normopt.normalize_blocks)
    link = make(channel_axes=-1)
    with pytest.raises(TypeError, match=r"inject_hyperparams.*write \(-1,\)"):
        link.init(jnp.ones((2, 3)))
    link = make(channel_axes=(-1,), eps=0.0)
    updates, _ = link.update(jnp.ones((4, 3)), link.init(jnp.ones((4, 3))))
    np.testing.assert_allclose(updates, 0.5)
