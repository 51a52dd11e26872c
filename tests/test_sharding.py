"""Sharded leaves: the same numbers, and no exchange larger than the block sums."""

import os
import subprocess
import sys

import pytest

LINKS = """
import itertools, re
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
import normopt

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
grads = jax.random.normal(jax.random.key(0), (8, 4, 16)) * jnp.logspace(-3, 3, 16)
params = jax.random.normal(jax.random.key(1), (8, 4, 16))
checked = 0
for axes, norm in itertools.product([(), (2,), (0, 2), (0,)], ["l2", "max", "std"]):
    blocks = int(np.prod([grads.shape[axis] for axis in axes]))
    tx = optax.chain(
        normopt.clip_blocks(2.0, norm, axes),
        normopt.normalize_blocks(norm, axes),
        normopt.scale_by_param_norm(axes),
    )
    state = tx.init(params)
    step = jax.jit(lambda g, p: tx.update(g, state, p)[0])
    expected = step(grads, params)
    for spec in [("x", None, None), (None, "x", "y"), (None, None, ("x", "y"))]:
        place = NamedSharding(mesh, PartitionSpec(*spec))
        g, p = jax.device_put((grads, params), place)
        compiled = step.lower(g, p).compile()
        out = compiled(g, p)
        np.testing.assert_allclose(out, expected, rtol=2e-5)
        assert out.sharding.is_equivalent_to(place, 3), (axes, spec, out.sharding)
        text = compiled.as_text()
        assert "all-gather" not in text and "all-to-all" not in text, (axes, spec)
        for shape in re.findall(r"= \\(?[a-z0-9]+\\[([0-9,]*)\\]\\S* all-reduce", text):
            size = int(np.prod([int(n) for n in shape.split(",") if n]))
            assert size <= max(blocks, 1), (axes, norm, spec, shape)
            checked += 1
print("collectives checked:", checked)
"""


OPTIMIZERS = """
import re
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.contract_cases import CASES, follow, gradients, tree

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
params = tree({"kernel": (16, 8, 16), "bias": (16,)})
grads = gradients(params, 5)
blocks = 16
SPECS = {
    "replicated": (None, None, None),
    "inputs": ("x", "y", None),
    "outputs": (None, None, ("x", "y")),
    "both": ("y", None, "x"),
}
SUM = r" = (\\S+|\\([^=]*\\)) all-reduce(?:-start)?\\("
checked = 0

for case in CASES:
    tx = case.make()
    expected, _ = follow(jax.jit(tx.update), params, tx.init(params), grads)
    for name, spec in SPECS.items():
        where = (case.name, name)
        places = {
            "kernel": NamedSharding(mesh, PartitionSpec(*spec)),
            "bias": NamedSharding(mesh, PartitionSpec(spec[-1])),
        }

        def is_placed(state):
            # What has the kernel's shape lies where the kernel lies.
            found = [s for s in jax.tree.leaves(state) if s.shape == (16, 8, 16)]
            return bool(found) and all(
                s.sharding.is_equivalent_to(places["kernel"], 3) for s in found
            )

        p, *gs = (jax.device_put(one, places) for one in (params, *grads))
        state = tx.init(p)
        assert is_placed(state), where
        step = jax.jit(tx.update).lower(gs[0], state, p).compile()

        def placed_step(g, state, p):
            # The numbers per block may lie anywhere.
            args = jax.device_put((g, state, p), step.input_shardings[0])
            updates, state = step(*args)
            assert is_placed(state) and is_placed(updates), where
            return updates, state

        after, _ = follow(placed_step, p, state, gs)
        for leaf in params:
            np.testing.assert_allclose(
                after[leaf], expected[leaf], rtol=2e-5, atol=2e-5, err_msg=str(where)
            )
        text = step.as_text()
        for exchange in ("all-gather", "all-to-all", "collective-permute"):
            assert exchange not in text, (where, exchange)
        sizes = [
            int(np.prod([int(n) for n in shape.split(",") if n]))
            for result in re.findall(SUM, text)
            for shape in re.findall(r"\\w+\\[([0-9,]*)\\]", result)
        ]
        assert name != "replicated" or not sizes, where
        assert max(sizes, default=0) <= blocks, (where, sizes)
        assert sum(sizes) <= 20 * blocks, (where, sizes)
        checked += len(sizes)
print("collectives checked:", checked)
"""


RESTARTS = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
import normopt
from tests.contract_cases import gradients, tree

mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
params = tree({"kernel": (16, 8)}, [jnp.bfloat16])
tx = normopt.compensate_rounding(
    normopt.sgdw(0.1, 0.9, 0.01, schedule=normopt.WarmRestarts(6))
)
place = NamedSharding(mesh, PartitionSpec("x", "y"))
everywhere = NamedSharding(mesh, PartitionSpec())

def train(params, state):
    etas = []
    step = jax.jit(tx.update)
    for index, g in enumerate(gradients(params, 9)):
        if index in (4, 7):
            again = (normopt.restart, jax.jit(normopt.restart))[index == 7]
            before, state = state, again(state, t_cur=1)
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state)):
                assert new.sharding.is_equivalent_to(old.sharding, new.ndim), new
        g = jax.device_put(g, params["kernel"].sharding)
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
        etas.append(float(normopt.current_eta(state)))
    return params, state, etas

expected, alone, etas = train(params, tx.init(params))
spread = jax.device_put(params, place)
init = jax.tree.map(
    lambda leaf: jax.device_put(leaf, place if leaf.ndim else everywhere),
    tx.init(spread),
)
after, state, again = train(spread, init)
assert again == etas, (again, etas)
eta = normopt.cosine_restarts(6)
np.testing.assert_allclose(
    etas, [eta(k) for k in (0, 1, 2, 3, 1, 2, 3, 1, 2)], rtol=1e-6
)
assert state.residue["kernel"].sharding.is_equivalent_to(place, 2)

def exact(params, state):
    return params["kernel"].astype(jnp.float32) + state.residue["kernel"]

# Far below the rounding of bfloat16: the residues are kept on all devices.
np.testing.assert_allclose(
    exact(after, state), exact(expected, alone), rtol=2e-6, atol=2e-6
)
assert np.abs(state.residue["kernel"]).max() > 1e-4
print("values of the schedule checked:", len(etas) + len(again))
"""


@pytest.mark.parametrize(
    "script", [LINKS, OPTIMIZERS, RESTARTS], ids=["links", "optimizers", "restarts"]
)
def test_sharded_steps_equal_unsharded_ones(script):
    flags = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.rsplit(":", 1)[1]) >= 18
