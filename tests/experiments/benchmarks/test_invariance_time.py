import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import invariance_time
from experiments.benchmarks.invariance_time import Case, measure, transformer


def test_a_row_counts_gradients_and_losses():
    def loss(params, x):
        h = x @ params["w"]
        return jnp.mean(jnp.sin(h / jnp.linalg.norm(h)) * params["scale"])

    params = {"w": jnp.ones(5).at[0].set(2), "scale": jnp.array(1.5)}
    x = jnp.arange(20.0).reshape(4, 5) % 7
    size, leaves, _, _, gradients, losses, found = measure(Case(loss, params, (x,)), 1)
    assert (size, leaves, found) == ("6", "2", "1")
    # The one at the weights and one at each of four points, two of them taken twice; of
    # the loss, one of the scaled weights at each.
    assert (gradients, losses) == ("7", "4")


def test_the_transformer_of_the_table_has_nine_million_parameters():
    params = jax.eval_shape(lambda: transformer().params)
    assert 8.5e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 9.5e6


@pytest.mark.slow("searches two networks")
def test_the_command_shows_a_row_for_each_network(capsys):
    invariance_time.main(["--smoke"])
    out = capsys.readouterr().out
    assert "resnet8" in out and "transformer" in out
