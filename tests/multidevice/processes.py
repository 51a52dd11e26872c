"""One of two processes that train together on halves of each batch.

Run as `python -m tests.multidevice.processes ADDRESS INDEX`, once with each index.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normopt
from tests.contract_cases import CASES, tree

STEPS, BATCH = 5, 16
SHAPES = {"hidden": {"kernel": (6, 8), "bias": (8,)}}


def main(address: str, index: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    assert jax.process_count() == jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    halves = NamedSharding(mesh, PartitionSpec("data"))
    params = tree(SHAPES)
    batches = np.asarray(jax.random.normal(jax.random.key(3), (STEPS, BATCH, 6)))
    for case in CASES:
        tx = case.make()
        alone = trained(tx, params, tx.init(params), batches)

        # What all processes hold alike, and of a batch only their own half.
        spread = jax.device_put(jax.device_get(params), everywhere)
        shardings = normopt.state_sharding(tx, spread)
        state = jax.jit(tx.init, out_shardings=shardings)(spread)
        own = slice(index * BATCH // 2, (index + 1) * BATCH // 2)
        shared = [
            jax.make_array_from_process_local_data(halves, batch[own])
            for batch in batches
        ]
        together = trained(tx, spread, state, shared)
        for one, other in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_allclose(
                one, other, rtol=2e-5, atol=2e-5, err_msg=case.name
            )
    print("optimizers followed:", len(CASES))
    jax.distributed.shutdown()


def trained(tx, params, state, batches):
    step = jax.jit(lambda params, state, batch: one_step(tx, params, state, batch))
    for batch in batches:
        params, state = step(params, state, batch)
    return jax.device_get(params)


def one_step(tx, params, state, batch):
    updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
    return optax.apply_updates(params, updates), state


def loss(params, batch):
    hidden = jnp.tanh(batch @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden - 1) ** 2)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
