"""The loop on eight devices, and on four of them, follows the loop on one.

Nor does it run so far ahead of eight emulated devices that XLA ends the process.

Run as `python -m tests.experiments.training.placed_training FOLDER`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import normopt
from experiments.data import Dataset
from experiments.data.augment import Augmentation
from experiments.training.loop import Plan
from experiments.training.placement import Placement, PlacementConfig
from experiments.training.runs import read_records
from experiments.training.skipping import skip_nonfinite
from tests.experiments.small_runs import Line, line_data, train_line

# The matrix of a `Line` is (4, 3): its rows can be split, the numbers of columns not.
CASES = {
    "data-parallel": (PlacementConfig(mesh="data=8"), 8, PartitionSpec()),
    "FSDP": (PlacementConfig(mesh="data=4", fsdp=True), 4, PartitionSpec("data")),
}


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    alone, numbers, params = trained(folder / "one", Placement())
    assert not Placement().emulated
    for name, (config, devices, spec) in CASES.items():
        placement = config.placement()
        assert placement.emulated
        state, others, _ = trained(folder / name, placement)
        lies(state.params, devices, spec)
        lies(optax.tree.get(state.opt_state, "mu"), devices, spec)
        blocks = optax.tree.get(state.opt_state, "nu").blocks["@1"]
        lies(blocks, devices, PartitionSpec())
        np.testing.assert_allclose(state.params, params, rtol=2e-5, atol=2e-5)
        assert [r["step"] for r in others] == [r["step"] for r in numbers]
        for one, other in zip(numbers, others, strict=True):
            for key in one:
                if one[key] is not None:
                    np.testing.assert_allclose(one[key], other[key], rtol=2e-5)
        # What was saved from there is read back to there, and by one device.
        resumed, *_ = trained(folder / name, placement)
        lies(resumed.params, devices, spec)
        np.testing.assert_array_equal(resumed.params, state.params)
        back, *_ = trained(folder / name, Placement())
        np.testing.assert_array_equal(back.params, state.params)
    far_ahead(folder / "slow")
    print("ways of placing followed:", len(CASES))


def trained(folder, placement):
    optimizer = skip_nonfinite(normopt.adams(0.1, channel_axes=(-1,)))
    run, state = train_line(
        folder,
        optimizer=optimizer,
        placement=placement,
        augmentation=Augmentation(padding=1, flip=True),
        plan=Plan(images=36, batch_size=8, epochs=3, log_every=2),
    )
    return state, read_records(run.metrics_file), np.asarray(state.params)


class Slow(Line):
    """A `Line` whose steps take longer than their dispatch."""

    def evaluate(self, params, model_state, images):
        slowly = jax.lax.fori_loop(0, 3000, lambda _, x: jnp.sin(x), images)
        return super().evaluate(params, model_state, slowly)


def far_ahead(folder):
    """Many steps between two records: XLA ends a process that dispatches them all."""
    train_line(
        folder,
        network=Slow(),
        data=Dataset("lines", 3, *[line_data(800)] * 3, np.zeros(1), np.ones(1)),
        placement=PlacementConfig(mesh="data", fsdp=True).placement(),
        plan=Plan(images=800, batch_size=8, epochs=1, log_every=100),
    )


def lies(leaf, devices, spec):
    assert leaf.sharding.mesh.size == devices
    assert leaf.sharding.is_equivalent_to(
        jax.NamedSharding(leaf.sharding.mesh, spec), leaf.ndim
    ), leaf.sharding


if __name__ == "__main__":
    main(Path(sys.argv[1]))
