"""Links over blocks, for all ways to cut a leaf and to shard it."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from tests.multidevice.placing import is_at, mesh_of_eight, on, sizes_of_sums

SHAPE = (8, 4, 16)
AXES = [(), (2,), (0, 2), (0,)]
SPECS = [("x", None, None), (None, "x", "y"), (None, None, ("x", "y"))]


def main() -> None:
    mesh, checked = mesh_of_eight(), 0
    grads = jax.random.normal(jax.random.key(0), SHAPE) * jnp.logspace(-3, 3, 16)
    params = jax.random.normal(jax.random.key(1), SHAPE)
    for axes, norm in itertools.product(AXES, ["l2", "max", "std"]):
        blocks = math.prod(SHAPE[axis] for axis in axes)
        tx = optax.chain(
            normopt.clip_blocks(2.0, norm, axes),
            normopt.normalize_blocks(norm, axes),
            normopt.scale_by_param_norm(axes),
        )
        if norm == "std":
            # What changes whole steps, and has no norm of its own.
            tx = normopt.cautious(optax.chain(tx, optax.scale(-0.1)), axes)
            tx = normopt.keep_norm(optax.chain(tx, normopt.center_blocks(axes)), axes)
            tx = normopt.brake_radial(tx, axes)
            bound = normopt.bound_relative_step(axes, 0.1, 0.2)
            tx = normopt.retract_to_sphere(optax.chain(tx, bound), axes, "initial")
        state = tx.init(params)
        step = jax.jit(lambda g, p, tx=tx, state=state: tx.update(g, state, p)[0])
        expected = step(grads, params)
        for spec in SPECS:
            place = on(mesh, *spec)
            g, p = jax.device_put((grads, params), place)
            compiled = step.lower(g, p).compile()
            updates = compiled(g, p)
            np.testing.assert_allclose(updates, expected, rtol=2e-5, atol=1e-6)
            assert is_at(updates, place), (axes, spec, updates.sharding)
            sizes = sizes_of_sums(compiled)
            assert max(sizes, default=0) <= blocks, (axes, norm, spec, sizes)
            checked += len(sizes)
    print("sums over devices:", checked)


if __name__ == "__main__":
    main()
