"""Matrices spread over eight devices: the same numbers, each moved there and back once.

What is moved is counted where they are replicated, and where their inputs, outputs or
both are sharded.
"""

import re

import jax
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

import normopt
from tests.contract_cases import follow, gradients, tree
from tests.multidevice.placing import exchanges, is_at, on
from tests.versions import HAS_SHARD_MAP, HAS_SHARDY, set_mesh

# Eight devices divide the matrices in the stacks, and not the others.
SHAPES = {f"square{i}": (16, 16) for i in range(3)}
SHAPES |= {f"stack{i}": (8, 4, 16) for i in range(2)}
SHAPES["bias"] = (16,)
SQUARE, STACK = ((0,), (1,)), ((0,), (2,))
MATRICES = {"square": SQUARE, "stack": STACK}
REST = optax.sgd(0.1)
NORMS = {
    "square": "spectral",
    "stack": normopt.spectral({"square|bias": None, "": STACK}),
    "bias": "max",
}
OPTIMIZERS = {
    "muon": lambda **spread: normopt.muon(
        0.1, matrices=MATRICES, weight_decay=0.1, rest=REST, **spread
    ),
    "normuon": lambda **spread: normopt.normuon(
        0.1, matrices=MATRICES, rest=REST, **spread
    ),
    "scion": lambda **spread: normopt.scion(0.1, norms=NORMS, **spread),
    # The same, of what only the params tell.
    "callable": lambda **spread: normopt.scion(
        0.1, norms=normopt.by_path(NORMS), **spread
    ),
    "retract_to_stiefel": lambda **spread: normopt.retract_to_stiefel(
        REST, MATRICES, scale={"square": "shape", "stack": 0.5}, **spread
    ),
}
LAYOUTS = {
    "replicated": {},
    "inputs": {"square": ("x",), "stack": ("x",)},
    "outputs": {"square": (None, ("x", "y")), "stack": (None, None, ("x", "y"))},
    "both": {"square": ("y", "x"), "stack": ("y", None, "x")},
    "counted": {"square": ("x", "y"), "stack": (None, "x", "y")},
}
# Numbers that one device gets at a step, of three squares and two leaves of four
# matrices. Each device works on one of either, or on zeros.
SQUARE_SIZE, STACKED_SIZE = 16 * 16, 8 * 16
MOVED = {
    "replicated": {"all-gather": 8 * STACKED_SIZE, "all-reduce": 3 * SQUARE_SIZE},
    "inputs": {"all-to-all": 2 * (SQUARE_SIZE + STACKED_SIZE)},
    "outputs": {"all-to-all": 2 * (SQUARE_SIZE + STACKED_SIZE)},
    "both": {"all-to-all": 2 * 2 * (SQUARE_SIZE + STACKED_SIZE)},
}


def main() -> None:
    assert jax.device_count() == 8
    checked = 0
    params = tree(SHAPES)
    grads = gradients(params, 3)
    for name, build in OPTIMIZERS.items():
        alone, tx = build(), build(spread=("x", "y"))
        expected, _ = follow(jax.jit(alone.update), params, alone.init(params), grads)
        for layout, kind in runs(name):
            mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
            places = placed(mesh, LAYOUTS[layout])
            after = trained(tx, mesh, places, params, grads)
            for leaf, place in places.items():
                where = str((kind, name, layout, leaf))
                assert is_at(after[leaf], place), where
                np.testing.assert_allclose(
                    *(after[leaf], expected[leaf]),
                    rtol=1e-6,
                    atol=1e-6,
                    err_msg=where,
                )
                checked += 1
    check_exchanges(params)
    if HAS_SHARD_MAP:
        check_refusal(params)
    print("leaves of spread matrices:", checked)


def runs(name):
    """Every optimizer in the hardest layout, and one of them in all."""
    layouts = LAYOUTS if name == "muon" else ["both"]
    yield from ((layout, AxisType.Auto) for layout in layouts)
    if name not in ("normuon", "callable"):
        yield "both", AxisType.Explicit


def placed(mesh, specs):
    return {path: on(mesh, *specs.get(re.sub(r"\d", "", path), ())) for path in SHAPES}


def trained(tx, mesh, places, params, grads):
    p, *gs = (jax.device_put(one, places) for one in (params, *grads))
    shardings = normopt.state_sharding(tx, p)
    with set_mesh(mesh):
        state = jax.jit(tx.init, out_shardings=shardings)(p)
        step = jax.jit(tx.update, out_shardings=(places, shardings))
        return follow(step, p, state, gs)[0]


def check_exchanges(params):
    """Each matrix goes to one device and comes back, and nothing else is moved."""
    for layout, moved in MOVED.items():
        if layout == "both" and not HAS_SHARDY:
            continue
        # What is sharded along two axes is moved along one after the other.
        shape, axes = ((4, 2), ("x", "y")) if layout == "both" else ((8, 1), "x")
        mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        places = placed(mesh, LAYOUTS[layout])
        p = jax.device_put(params, places)
        for name in ("muon", "callable"):
            tx = OPTIMIZERS[name](spread=axes)
            shardings = normopt.state_sharding(tx, p)
            state = jax.device_put(tx.init(params), shardings)
            step = jax.jit(tx.update, out_shardings=(places, shardings))
            found = exchanges(step.lower(p, state, p).compile())
            assert found == moved, (name, layout, found, moved)


def check_refusal(params):
    """Where a program is written for each device, nothing can be spread."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = normopt.orthogonalize(MATRICES, spread="x")
    whole = {"in_specs": PartitionSpec(), "out_specs": PartitionSpec()}
    step = jax.shard_map(lambda p: tx.update(p, tx.init(p))[0], mesh=mesh, **whole)
    try:
        jax.jit(step)(params)
    except ValueError as error:
        assert "inside jax.shard_map over ['x']" in str(error), error
    else:
        raise AssertionError("it was not refused")


if __name__ == "__main__":
    main()
