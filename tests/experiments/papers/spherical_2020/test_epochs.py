"""What is not finite ends a run before it is saved, and names the step."""

import jax.numpy as jnp
import pytest

from experiments.papers.spherical_2020.epochs import train_epochs
from experiments.training.loop import Plan, TrainingDiverged
from experiments.training.runs import Run
from experiments.training.steps import NEVER, TrainState
from tests.experiments.small_runs import quiet, recorded, saved

PLAN = Plan(images=8, batch_size=4, epochs=3, log_every=2)


def train(folder, spoil):
    """Train for two steps an epoch that change nothing, and spoil the third epoch."""
    run = Run(folder, "run", {})
    start = TrainState(
        params={"kernel": jnp.ones(2)},
        model_state={"mean": jnp.ones(2)},
        opt_state={"nu": jnp.ones(2), "count": jnp.zeros((), jnp.int32)},
        step=jnp.zeros((), jnp.int32),
        first_bad_step=jnp.full((), NEVER),
    )

    def train_epoch(state, epoch):
        state = state._replace(step=state.step + PLAN.steps_per_epoch)
        return (spoil(state) if epoch == 2 else state), {"epoch": epoch + 1}

    try:
        train_epochs(run, start, PLAN, train_epoch, quiet())
    finally:
        assert saved(run.folder) == {2, 4} and recorded(run.folder) == [2, 4]


@pytest.mark.parametrize(
    ("part", "name"),
    [("params", "kernel"), ("model_state", "mean"), ("opt_state", "nu")],
)
def test_number_that_is_not_finite_is_not_saved(tmp_path, part, name):
    def spoil(state):
        leaves = getattr(state, part)
        spoilt = {**leaves, name: leaves[name].at[0].set(jnp.inf)}
        return state._replace(**{part: spoilt})

    words = "a weight, statistic or moment after step 6 is not finite"
    end = "; the last good checkpoint is that of step 4"
    with pytest.raises(TrainingDiverged, match=f"^{words}{end}$"):
        train(tmp_path, spoil)


def test_loss_that_is_not_finite_is_named_by_its_own_step(tmp_path):
    def spoil(state):
        return state._replace(first_bad_step=jnp.full((), 5))

    with pytest.raises(TrainingDiverged, match="^the loss of step 5 is not"):
        train(tmp_path, spoil)
