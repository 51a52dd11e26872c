"""Every optimizer on eight devices takes the steps that it takes on one.

Run as `python -m tests.multidevice.optimizers`, followed by the names of the shardings
if not all of them are wanted.
"""

import inspect
import itertools
import sys

import jax
import numpy as np

import normopt
from tests.contract_cases import CASES, Case, follow, gradients, tree
from tests.multidevice.placing import is_at, mesh_of_eight, on, sizes_of_sums

# Each axis that can index blocks is as long as the others: its size does not tell it.
SHAPES = {"kernel": (16, 8, 16), "bias": (16,)}
SPECS = {
    "replicated": (None, None, None),
    "inputs": ("x", "y", None),
    "outputs": (None, None, ("x", "y")),
    "both": ("y", None, "x"),
}
LARGEST = {"columns": 16, "leaves": 1}  # numbers of one sum: those of the blocks


def variants(case: Case):
    """The optimizer with blocks of columns and, where it can, of whole leaves."""
    yield "columns", case.make()
    if "channel_axes" in inspect.signature(case.build).parameters:
        yield "leaves", case.make(channel_axes=())


def main(*specs: str) -> None:
    mesh, checked = mesh_of_eight(), 0
    params = tree(SHAPES)
    grads = gradients(params, 5)
    for case in CASES:
        for blocks, tx in variants(case):
            expected, _ = follow(jax.jit(tx.update), params, tx.init(params), grads)
            for name in specs or SPECS:
                spec = SPECS[name]
                where = (case.name, blocks, name)
                places = {"kernel": on(mesh, *spec), "bias": on(mesh, spec[-1])}
                after, step = train(tx, places, params, grads)
                for leaf in params:
                    np.testing.assert_allclose(
                        *(after[leaf], expected[leaf]),
                        rtol=2e-5,
                        atol=2e-5,
                        err_msg=str(where),
                    )
                if name != "replicated" and "matrices" in case.options:
                    # Products of matrices exchange more than sums over blocks.
                    continue
                sizes = sizes_of_sums(step)
                assert name != "replicated" or not sizes, where
                assert max(sizes, default=0) <= LARGEST[blocks], (where, sizes)
                assert sum(sizes) <= 20 * LARGEST[blocks], (where, sizes)
                checked += len(sizes)
    print("sums over devices:", checked)


def train(tx, places, params, grads):
    """Follows the gradients with all that is sharded where it should be."""
    p, *gs = (jax.device_put(one, places) for one in (params, *grads))
    shardings = normopt.state_sharding(tx, p)
    state = jax.jit(tx.init, out_shardings=shardings)(p)
    check_places(state, places)
    step = jax.jit(tx.update, out_shardings=(places, shardings))
    step = step.lower(gs[0], state, p).compile()

    def placed_step(g, state, p):
        updates, state = step(g, state, p)
        check_places((updates, state), places)
        return updates, state

    after, _ = follow(placed_step, p, state, gs)
    return after, step


def check_places(some_tree, places):
    """What has the kernel's shape lies as it does, what has its columns as these."""
    kernel, columns = places["kernel"], places["bias"]
    found = jax.tree.leaves(some_tree)
    of_kernel = [leaf for leaf in found if leaf.shape == SHAPES["kernel"]]
    of_columns = [leaf for leaf in found if leaf.shape == SHAPES["bias"]]
    assert of_kernel
    for leaf, place in itertools.chain(
        ((leaf, kernel) for leaf in of_kernel),
        ((leaf, columns) for leaf in of_columns),
    ):
        assert is_at(leaf, place), (leaf.shape, leaf.sharding, place)


if __name__ == "__main__":
    main(*sys.argv[1:])
