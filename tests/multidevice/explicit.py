"""Every optimizer and link where shardings are part of the types, on eight devices."""

import jax
import numpy as np
from jax.sharding import AxisType

import normopt
from tests.contract_cases import CASES, LINKS, follow, gradients, tree
from tests.multidevice.placing import is_at, on
from tests.versions import set_mesh

SHAPES = {"kernel": (16, 8, 16), "other_kernel": (16, 8, 16), "bias": (16,)}
SPECS = [("x", "y", None), (None, None, ("x", "y")), ("y", None, "x")]


def main() -> None:
    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    params, checked = tree(SHAPES), 0
    grads = gradients(params, 2)
    for case in CASES + LINKS:
        tx = case.make()
        expected, _ = follow(jax.jit(tx.update), params, tx.init(params), grads)
        for spec in SPECS:
            places = {name: on(mesh, *spec) for name in ("kernel", "other_kernel")}
            places["bias"] = on(mesh, spec[-1])
            p, *gs = (jax.device_put(one, places) for one in (params, *grads))
            shardings = normopt.state_sharding(tx, p)
            with set_mesh(mesh):
                state = jax.jit(tx.init, out_shardings=shardings)(p)
                after, stepped = follow(jax.jit(tx.update), p, state, gs)
            assert jax.tree.map(jax.typeof, stepped) == jax.tree.map(jax.typeof, state)
            for leaf, place in places.items():
                where = str((case.name, spec, leaf))
                assert is_at(after[leaf], place), where
                np.testing.assert_allclose(
                    *(after[leaf], expected[leaf]), rtol=2e-5, atol=2e-5, err_msg=where
                )
                checked += 1
    print("leaves with typed shardings:", checked)


if __name__ == "__main__":
    main()
