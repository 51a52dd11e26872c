import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt


def test_normalized_decay_in_all_forms():
    expected = 0.05 / math.sqrt(400)
    assert normopt.normalized_decay(0.05, 400) == pytest.approx(expected)
    rules = normopt.normalized_decay({"kernel": 0.05, "": 0}, np.int64(400))
    assert rules == {"kernel": pytest.approx(expected), "": 0.0}
    rule = normopt.by_path({"kernel": 0.05}, default=0.0)
    link = normopt.decay_weights(normopt.normalized_decay(rule, 400))
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    zeros = optax.tree.zeros_like(params)
    updates, _ = link.update(zeros, link.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-6)
    assert updates["bias"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-0.1, 10), ValueError, "lambda_norm=-0.1"),
        (({"kernel": -0.1}, 10), ValueError, "at 'kernel'"),
        ((0.1, 1), ValueError, "`total_steps` must be at least 2"),
        ((0.1, 10.0), TypeError, "`total_steps` must be an integer"),
        ((0.1, [10, 20]), TypeError, "`total_steps` must be an integer"),
    ],
)
def test_bad_normalized_decays_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        normopt.normalized_decay(*arguments)
