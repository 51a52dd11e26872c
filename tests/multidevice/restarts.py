"""Warm restarts and kept residues of weights that lie on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from tests.contract_cases import gradients, tree
from tests.multidevice.placing import is_at, mesh_of_eight, on

TX = normopt.compensate_rounding(
    normopt.sgdw(0.1, 0.9, weight_decay=0.01, schedule=normopt.WarmRestarts(6))
)


def main() -> None:
    mesh = mesh_of_eight()
    params = tree({"kernel": (16, 8)}, [jnp.bfloat16])
    place = on(mesh, "x", "y")
    expected, alone, etas = train(params, TX.init(params))
    spread = jax.device_put(params, place)
    shardings = normopt.state_sharding(TX, spread)
    after, state, again = train(
        spread, jax.jit(TX.init, out_shardings=shardings)(spread)
    )
    assert again == etas, (again, etas)
    eta = normopt.cosine_restarts(6)
    np.testing.assert_allclose(
        etas, [eta(k) for k in (0, 1, 2, 3, 1, 2, 3, 1, 2)], rtol=1e-6
    )
    assert is_at(state.residue["kernel"], place)
    # Far below the rounding of bfloat16: the residues are kept on all devices.
    np.testing.assert_allclose(
        exact(after, state), exact(expected, alone), rtol=2e-6, atol=2e-6
    )
    assert np.abs(state.residue["kernel"]).max() > 1e-4
    print("values of the schedule:", len(etas) + len(again))


def train(params, state):
    etas = []
    step = jax.jit(TX.update)
    for index, g in enumerate(gradients(params, 9)):
        if index in (4, 7):
            again = (normopt.restart, jax.jit(normopt.restart))[index == 7]
            before, state = state, again(state, t_cur=1)
            for old, new in zip(*map(jax.tree.leaves, (before, state)), strict=True):
                assert is_at(new, old.sharding), new
        g = jax.device_put(g, params["kernel"].sharding)
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
        etas.append(float(normopt.current_eta(state)))
    return params, state, etas


def exact(params, state):
    return params["kernel"].astype(jnp.float32) + state.residue["kernel"]


if __name__ == "__main__":
    main()
