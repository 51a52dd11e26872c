"""`nnx.Optimizer` on a model whose parameters say themselves how they are sharded."""

import jax
import numpy as np
from flax import nnx

import normopt
from tests.contract_cases import CASES, gradients
from tests.multidevice.placing import is_at, mesh_of_eight, on
from tests.versions import set_mesh

# One for each way to keep a state: momentum alone, second moments of elements, of
# blocks, of layers. What all optimizers do on plain trees is the matter of
# `optimizers.py`.
KINDS = {case.second_moments: case for case in CASES}.values()


class Net(nnx.Module):
    """A layer whose parameters carry a sharding, and one whose do not."""

    def __init__(self, kernel, bias):
        rngs, normal = nnx.Rngs(0), nnx.initializers.normal()
        self.hidden = nnx.Linear(
            *(8, 16),
            kernel_init=nnx.with_partitioning(normal, kernel),
            bias_init=nnx.with_partitioning(normal, bias),
            rngs=rngs,
        )
        self.head = nnx.Linear(16, 4, rngs=rngs)


def main() -> None:
    mesh, checked = mesh_of_eight(), 0
    with set_mesh(mesh):
        for case in KINDS:
            alone = trained(Net((None, None), (None,)), case)
            for spec in [("x", "y"), (None, ("x", "y"))]:
                model = Net(spec, spec[-1:])
                place = on(mesh, *spec)
                after = trained(model, case)
                assert is_at(after["hidden"]["kernel"], place), (case.name, spec)
                for leaf, expected in zip(
                    *map(jax.tree.leaves, (after, alone)), strict=True
                ):
                    np.testing.assert_allclose(
                        leaf, expected, rtol=2e-5, atol=2e-5, err_msg=case.name
                    )
                checked += check_state_sharding(model, case, place)
    print("states placed:", checked)


@nnx.jit
def step(model, optimizer, grads):
    optimizer.update(model, grads)


def trained(model, case):
    """The parameters after a few steps of `nnx.Optimizer`, eager init, jitted steps."""
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    for g in gradients(nnx.state(model, nnx.Param), 3):
        step(model, optimizer, g)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def check_state_sharding(model, case, place):
    """A jitted init on the model's own state puts each part beside its parameter."""
    params, tx = nnx.state(model, nnx.Param), case.make()
    params = jax.device_put(params, nnx.get_named_sharding(params, place.mesh))
    shardings = normopt.state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (8, 16)]
    assert all(is_at(leaf, place) for leaf in kernels), case.name
    columns = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (16,)]
    assert all(is_at(leaf, on(place.mesh, place.spec[-1])) for leaf in columns)
    return len(kernels)


if __name__ == "__main__":
    main()
