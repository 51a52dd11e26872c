"""What is not finite ends a run before it is saved, and names the step and the seed."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.spherical_2020.epochs import RunDiverged, train_epochs
from experiments.training.loop import Plan
from experiments.training.runs import Run
from experiments.training.steps import NEVER, TrainState
from tests.experiments.small_runs import quiet, recorded, saved

SEEDS = (3, 7)
PLAN = Plan(images=8, batch_size=4, epochs=3, log_every=2)


def start(*shape):
    return TrainState(
        params={"kernel": jnp.ones((*shape, 2))},
        model_state={"mean": jnp.ones((*shape, 2))},
        opt_state={"nu": jnp.ones((*shape, 2)), "count": jnp.zeros(shape, jnp.int32)},
        step=jnp.zeros(shape, jnp.int32),
        first_bad_step=jnp.full(shape, NEVER),
    )


def train(folder, spoil, state, seeds):
    """Train for two steps an epoch that change nothing, and spoil the third epoch."""
    run = Run(folder, "run", {})

    def train_epoch(state, epoch):
        state = state._replace(step=state.step + PLAN.steps_per_epoch)
        return (spoil(state) if epoch == 2 else state), {"epoch": epoch + 1}

    try:
        train_epochs(run, state, PLAN, train_epoch, quiet(), seeds)
    finally:
        assert saved(run.folder) == {2, 4} and recorded(run.folder) == [2, 4]


@pytest.mark.parametrize(
    ("part", "name"),
    [("params", "kernel"), ("model_state", "mean"), ("opt_state", "nu")],
)
def test_number_that_is_not_finite_is_not_saved(tmp_path, part, name):
    def spoil(state):
        leaves = getattr(state, part)
        spoilt = {**leaves, name: leaves[name].at[1, 0].set(jnp.inf)}
        return state._replace(**{part: spoilt})

    words = "a weight, statistic or moment after step 6 of seed 7 is not finite"
    end = "; the last good checkpoint is that of step 4"
    with pytest.raises(RunDiverged, match=f"^{words}{end}$") as error:
        train(tmp_path, spoil, start(2), SEEDS)
    found = error.value
    assert (found.found, found.step, found.seed) == (words, 6, 7)


def test_loss_that_is_not_finite_is_named_by_its_own_step(tmp_path):
    def spoil(state):
        return state._replace(
            first_bad_step=state.first_bad_step.at[1].set(5),
            params={"kernel": state.params["kernel"].at[1].set(np.nan)},
        )

    with pytest.raises(RunDiverged, match="^the loss of step 5 of seed 7 is"):
        train(tmp_path, spoil, start(2), SEEDS)


def test_run_alone_has_no_seed_to_name(tmp_path):
    def spoil(state):
        return state._replace(params={"kernel": jnp.full(2, jnp.nan)})

    with pytest.raises(RunDiverged, match="moment after step 6 is not") as error:
        train(tmp_path, spoil, start(), ())
    assert error.value.seed is None
