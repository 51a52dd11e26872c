"""What `observe` sees on eight devices is what it sees on one."""

import jax
import numpy as np
import optax
from jax.sharding import AxisType

import normopt
from tests.contract_cases import gradients, tree
from tests.multidevice.placing import is_at, mesh_of_eight, on, sizes_of_sums
from tests.versions import set_mesh

SHAPE = (16, 8, 16)
SPECS = [("x", "y", None), (None, None, ("x", "y")), ("y", None, "x")]


def main() -> None:
    mesh, checked = mesh_of_eight(), 0
    params = tree({"kernel": SHAPE})
    grads = gradients(params, 4)
    for axes, every in (((), 1), ((-1,), 1), ((-1,), 2), ((0, 2), 2)):
        tx = normopt.observe(optax.adam(0.1), axes, every=every)

        def train(place=None, tx=tx):
            p, *gs = (
                one if place is None else jax.device_put(one, {"kernel": place})
                for one in (params, *grads)
            )
            shardings = None if place is None else normopt.state_sharding(tx, p)
            state = jax.jit(tx.init, out_shardings=shardings)(p)
            step = jax.jit(tx.update, out_shardings=(None, shardings))
            step = step.lower(gs[0], state, p).compile()
            for g in gs:
                updates, state = step(g, state, p)
                p = optax.apply_updates(p, updates)
            return p, state, step

        after, state, _ = train()
        for spec in SPECS:
            place = on(mesh, *spec)
            sharded, placed, step = train(place)
            np.testing.assert_allclose(
                sharded["kernel"], after["kernel"], rtol=2e-5, atol=2e-5
            )
            (sums,) = placed.sums.values()
            along = (spec[axis % 3] for axis in axes)
            assert is_at(sums, on(mesh, *along, None)), (axes, spec, sums.sharding)
            ours, theirs = map(normopt.observations, (placed, state))
            for one, other in zip(ours["kernel"], theirs["kernel"], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
            # Five sums of each block cross devices, along each axis of the mesh.
            blocks = np.prod([SHAPE[axis] for axis in axes], dtype=int)
            sizes = sizes_of_sums(step)
            assert max(sizes, default=0) <= blocks and len(sizes) <= 10, sizes
            checked += len(sizes)
    with_typed_shardings(params, grads)
    print("sums over devices:", checked)


def with_typed_shardings(params, grads) -> None:
    """What is seen lies where the state did before, on every device here."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    places = {"kernel": on(mesh, *SPECS[0])}
    p, g = (jax.device_put(one, places) for one in (params, grads[0]))
    for every in (1, 2):
        tx = normopt.observe(optax.adam(0.1), (0, -1), every=every)
        with set_mesh(mesh):
            state = jax.jit(tx.init)(p)
            _, after = jax.jit(tx.update)(g, state, p)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


if __name__ == "__main__":
    main()
