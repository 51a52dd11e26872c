"""Inside `jax.shard_map` whole leaves are right, and cut blocks are refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

import normopt
from tests.contract_cases import CASES, LINKS, tree
from tests.multidevice.placing import mesh_of_eight

SHAPES = {"body": {"kernel": (8, 16)}}
WHOLE, CUT = PartitionSpec(), PartitionSpec("x")
REFUSALS = [
    ({}, "differs between the devices along ['x']"),
    ({"check_vma": False}, "nothing tells whether it is whole"),
]


def main() -> None:
    mesh, checked = mesh_of_eight(), 0
    params, batch = tree(SHAPES), jax.random.normal(jax.random.key(5), (32, 8))

    def over_mesh(function, *specs, **settings):
        specs = {"in_specs": specs, "out_specs": specs[0]}
        return jax.jit(jax.shard_map(function, mesh=mesh, **specs, **settings))

    def averaged(params, batch):
        return jax.lax.pmean(loss(params, batch), "x")

    for case in CASES + LINKS:
        tx = case.make()
        parallel = over_mesh(step(tx, averaged), WHOLE, CUT)(params, batch)
        assert_close(parallel, step(tx, loss)(params, batch), case.name)

        def update(params, tx=tx):
            return tx.update(params, tx.init(params), params)[0]

        for settings, reason in REFUSALS:
            mapped = over_mesh(update, CUT, **settings)
            options = set(inspect.signature(case.build).parameters)
            if options & {"channel_axes", "matrices", "norms"}:
                message = refusal(mapped, params)
                assert "'body/kernel'" in message and reason in message, message
            else:
                # Element by element: a piece is as good as the whole.
                assert_close(mapped(params), update(params), case.name)
            checked += 1
    check_other_maps(params)
    print("updates of pieces:", checked)


def check_other_maps(params):
    """`jax.pmap` is one more way to hide pieces; a mesh of one device hides none."""
    tx = normopt.normalize_blocks()

    def update(params):
        return tx.update(params, tx.init(params))[0]

    message = refusal(jax.pmap(update), params)
    assert "'body/kernel'" in message and "nothing tells" in message, message
    of_one = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    alone = jax.shard_map(update, mesh=of_one, in_specs=(CUT,), out_specs=CUT)
    assert_close(jax.jit(alone)(params), update(params), "one device")


def loss(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["body"]["kernel"]) ** 2)


def step(tx, loss):
    def one(params, batch):
        grads = jax.grad(loss)(params, batch)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    return one


def refusal(function, *args) -> str:
    try:
        function(*args)
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def assert_close(one, other, name):
    kernels = (tree["body"]["kernel"] for tree in (one, other))
    np.testing.assert_allclose(*kernels, rtol=2e-5, atol=2e-5, err_msg=name)


if __name__ == "__main__":
    main()
