"""README's and RECIPES' examples run, and the tables name what there is."""

import inspect
import re
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normopt
from tests.versions import HAS_SHARD_MAP, NNX_KEEPS_MASKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = README + (ROOT / "RECIPES.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def in_turn(block):
    """Blocks that build a whole transformer take as long as twenty others."""
    is_slow = "dot_product_attention" in block
    return pytest.param(block, marks=[pytest.mark.slow("compiles")] if is_slow else [])


@pytest.mark.parametrize("block", list(map(in_turn, BLOCKS)), ids=range(len(BLOCKS)))
def test_code_block_runs(block):
    if "nnx" in block and not NNX_KEEPS_MASKS:
        pytest.skip("README's NNX is that of flax 0.12")
    if "jax.shard_map" in block and not HAS_SHARD_MAP:
        pytest.skip("jax.shard_map came with jax 0.6.1")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "normopt" in block
    if "import equinox" in block:
        check_output_channels(names)


def test_one_block_is_of_equinox():
    assert sum("import equinox" in block for block in BLOCKS) == 1


def check_output_channels(names):
    for layer in names["updates"].layers:
        lengths = jnp.linalg.norm(layer.weight, axis=1)
        # A unit that ReLU silences has no gradient; the others move by the rate.
        np.testing.assert_allclose(lengths[lengths > 0], 0.1, rtol=1e-4)
        assert (lengths > 0).any()


def test_every_link_and_optimizer_stands_in_a_table():
    from normopt import optimizers, transforms

    for module in (optimizers, transforms):
        for name, value in vars(module).items():
            if inspect.isfunction(value):
                assert f"| `{name}(" in README


@pytest.mark.parametrize(
    ("framework", "weight", "axis"),
    [
        ("nnx", lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)).kernel[...], -1),
        (
            "linen",
            lambda: nn.Dense(3).init(jax.random.key(0), jnp.ones(4))["params"][
                "kernel"
            ],
            -1,
        ),
        ("equinox", lambda: eqx.nn.Linear(4, 3, key=jax.random.key(0)).weight, 0),
    ],
)
def test_the_axis_named_for_a_framework_is_its_output(framework, weight, axis):
    assert weight().shape[axis] == 3, framework
    link = normopt.normalize_blocks(channel_axes=normopt.output_channels(axis), eps=0.0)
    updates, _ = link.update(weight(), link.init(weight()))
    inputs = tuple({0, 1} - {axis % 2})
    np.testing.assert_allclose(jnp.sum(updates**2, axis=inputs), jnp.ones(3), rtol=1e-5)
