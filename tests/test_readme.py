"""The examples of README, RECIPES and the site run; README keeps to its size."""

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
from tests.versions import HAS_ORBAX_V1, HAS_SHARD_MAP, NNX_HAS_MODES, NNX_KEEPS_MASKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "RECIPES.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCKS = {
    f"{page.relative_to(ROOT).with_suffix('')}-{position}": block
    for page in PAGES
    for position, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    )
}


def in_turn(name):
    """Blocks that build a transformer, or that other tests hold, have time."""
    long = ("Attention(", "_attention(", "nnx.state((", "incremental_update")
    is_slow = "coming_from" in name or any(word in BLOCKS[name] for word in long)
    marks = [pytest.mark.slow("compiles")] if is_slow else []
    return pytest.param(BLOCKS[name], id=name, marks=marks)


@pytest.mark.parametrize("block", [*map(in_turn, BLOCKS)])
def test_code_block_runs(block):
    if "nnx" in block and not NNX_KEEPS_MASKS:
        pytest.skip("README's NNX is that of flax 0.12")
    if "set_graph_mode" in block and not NNX_HAS_MODES:
        pytest.skip("the modes of NNX came later")
    if "jax.shard_map" in block and not HAS_SHARD_MAP:
        pytest.skip("jax.shard_map came with jax 0.6.1")
    if "import v1" in block and not HAS_ORBAX_V1:
        pytest.skip("orbax's v1 was experimental before")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "normopt" in block
    if "import equinox" in block:
        check_output_channels(names)


@pytest.mark.slow
@pytest.mark.skipif(not NNX_HAS_MODES, reason="the modes of NNX came later")
def test_the_blocks_of_nnx_run_in_tree_mode():
    blocks = [block for block in BLOCKS.values() if "nnx" in block]
    assert len(blocks) > 2
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})


def test_one_block_is_of_equinox():
    assert sum("import equinox" in block for block in BLOCKS.values()) == 1


def check_output_channels(names):
    for layer in names["updates"].layers:
        lengths = jnp.linalg.norm(layer.weight, axis=1)
        # A unit that ReLU silences has no gradient; the others move by the rate.
        np.testing.assert_allclose(lengths[lengths > 0], 0.1, rtol=1e-4)
        assert (lengths > 0).any()


def test_every_link_and_optimizer_stands_in_a_table():
    from normopt import optimizers, transforms

    for module, page in ((optimizers, "optimizers"), (transforms, "links")):
        table = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
        for name, value in vars(module).items():
            if inspect.isfunction(value):
                assert re.search(rf"(?m)^\| `{name}\(", table), name


def test_readme_and_results_count_claims_as_the_report_does():
    report = (ROOT / "experiments/results/RESULTS.md").read_text("utf-8")
    (claims,) = re.findall(
        r"(?m)^Of (\d+) claims of papers, and of toy problems of our own: "
        r"(\d+) reproduced, (\d+) not reproduced, (\d+) inconclusive, "
        r"(\d+) not tested here",
        report,
    )
    (bars,) = re.findall(
        r"(?m)^Of (\d+) bars that .*: (\d+) met, (\d+) missed, (\d+) not run", report
    )
    said = {
        "README.md": (
            r"Of (\d+) claims .* reproduced (\d+), did not reproduce (\d+), left (\d+) "
            r"inconclusive, and could not test (\d+)",
            r"Of the (\d+) bars .* (\d+) are met, (\d+) missed and (\d+) not run",
        ),
        "docs/faq.md": (
            r"Of (\d+) claims .* reproduced (\d+) and did not reproduce (\d+); "
            r"(\d+) were inconclusive and (\d+) could not",
        ),
        "docs/results.md": (
            r"meets (\d+) of (\d+), has not run (\d+), .*misses (\d+)",
        ),
    }
    for page, patterns in said.items():
        text = " ".join((ROOT / page).read_text("utf-8").split())
        found = [sorted(m) for p in patterns for m in re.findall(p, text)]
        assert len(found) == len(patterns), page
        assert all(m in (sorted(claims), sorted(bars)) for m in found), (page, found)


def test_readme_is_read_in_a_minute():
    """No more lines than a person reads, and none wider than a window."""
    lines = README.splitlines()
    assert len(lines) <= 150
    text = re.sub(r"(?s)```.*?```|!\[[^\n]*", "", README)
    rows = [line for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, rows)) <= 120
    first = next(block for name, block in BLOCKS.items() if name == "README-0")
    assert len(first.splitlines()) <= 12 and "optax" in first


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
