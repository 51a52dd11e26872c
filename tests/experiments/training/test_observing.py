"""What `--observe` and `--tensorboard` add to a run."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from experiments.train import main, prepare, train
from experiments.training import board, observing, optimizers
from experiments.training.runs import read_records
from tests.experiments.small_runs import (
    arguments,
    assert_same_run,
    config,
    copy_of,
    quiet,
    train_line,
)

DECAYED = {"name": "adamw", "weight_decay": {"conv": 0.01}}


def test_records_tell_of_the_last_step_before_them(tmp_path):
    tx = normopt.observe(optax.sgd(0.1))
    run, state = train_line(tmp_path, optimizer=tx, observes=True)
    records = read_records(run.metrics_file)
    assert [record["step"] for record in records] == [4, 9, 13, 18, 22, 27]
    seen = normopt.summary(normopt.observations(state.opt_state))
    assert seen.items() <= records[-1].items() and records[-1]["update"] > 0


def test_skipped_steps_keep_the_step_of_a_record(tmp_path):
    tx = optax.apply_if_finite(normopt.observe(optax.sgd(0.1)), 5)
    run, _ = train_line(tmp_path, optimizer=tx, observes=True, bad_steps=(12, 13))
    records = read_records(run.metrics_file)
    assert [record["step"] for record in records] == [4, 9, 13, 18, 22, 27]
    # The count of updates, which schedules are read at.
    assert [record["observed_step"] for record in records] == [4, 9, 11, 16, 20, 25]
    # Of the last step that was taken: the weights of two records are not the same.
    assert len({record["weight"] for record in records}) == 6


PARAMS = {"conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}}
KERNEL = {"conv/kernel": 18}
NO_BLOCKS = pytest.mark.filterwarnings("ignore:.*gives no parameter blocks")


@NO_BLOCKS
@pytest.mark.parametrize(
    ("given", "blocks"),
    [
        ({"name": "adamw"}, KERNEL),
        ({"name": "novograd"}, {"conv/bias": 4, "conv/kernel": 72}),
        ({"name": "adams", "channel_axes": {"kernel": [2, 3]}}, {"conv/kernel": 9}),
        # That nothing was found leaves the output channels.
        ({"name": "adams", "channel_axes": {}}, KERNEL),
        # Rules that go by a name.
        ({"name": "rotational"}, KERNEL),
        ({"name": "hyperball"}, {"conv/kernel": 72}),
        ({"name": "muon"}, KERNEL),
        (
            {
                "name": "chain",
                "links": [{"name": "normalize_blocks"}, {"name": "adamw"}],
            },
            {"conv/bias": 4, "conv/kernel": 72},
        ),
    ],
    ids=lambda value: value.get("name", ""),
)
def test_blocks_are_those_of_the_optimizer_or_output_channels(given, blocks):
    made = optimizers.read(json.dumps(given), 0.1, 10)
    tx = observing.observed(normopt.make(**made), normopt.config(**made))
    sizes = observing.sizes_of(PARAMS, tx.init(PARAMS))
    assert {path: int(size) for path, size in sizes.items()} == blocks


@pytest.mark.slow("prepares a network")
def test_what_is_observed_already_is_said_before_anything_is_written(tmp_path):
    asked = config(tmp_path, optimizer="observe", observe=True)
    with pytest.raises(ValueError, match="observed twice"):
        prepare(asked)
    assert not [*tmp_path.iterdir()]


SIZES = {"conv": 50, "head": 20}
LEAVES = {"conv": jnp.ones((50, 1)), "head": jnp.ones((20, 1))}


def seen_at(*steps, gradient=3.0):
    seen = {"gradient": gradient, "weight": 2.0}
    numbers = {f"{path}/{q}": x for path in SIZES for q, x in seen.items()}
    return [{"step": 99, "observed_step": step, **numbers} for step in steps]


def predicted(config, records, sizes=SIZES):
    return observing.predicted(config, LEAVES, sizes, records)


def test_equilibria_are_those_of_a_leaf_at_the_step_that_was_observed():
    rate = {"name": "linear_schedule", "init_value": 1e-2, "end_value": 0.0}
    rate["transition_steps"] = 100
    made = normopt.config(**DECAYED, learning_rate=rate)
    found = predicted(made, seen_at(1, 51))
    own = {"name": "adamw", "weight_decay": 0.01}
    assert list(found) == ["conv"]
    for one, rate in zip(found["conv"], (1e-2, 5e-3), strict=True):
        wanted = normopt.equilibrium({**own, "learning_rate": rate}, size=50)
        np.testing.assert_allclose(one, wanted, rtol=1e-6)
    # A leaf that no rule matches keeps its rate.
    head = {"lr_multipliers": {"head": 0.5}}
    ((one, _),) = predicted(made | head, seen_at(1, 51), {"conv": 50}).values()
    np.testing.assert_allclose(one, found["conv"][0])
    unknown = normopt.config("adamp", learning_rate=0.1)
    assert predicted(unknown, seen_at(1)) == {}
    # The length under L2 follows from the gradients that were seen.
    sgd = normopt.config("sgdmrt", learning_rate=0.1, weight_decay=0.01)
    ((one,),) = predicted(sgd, seen_at(1), {"conv": 50}).values()
    wanted = normopt.equilibrium(sgd, size=50, gradient=6 / 50**0.5)
    np.testing.assert_allclose(one, wanted)


def test_a_record_without_an_equilibrium_leaves_the_others_theirs():
    rate = {"name": "linear_schedule", "init_value": 1e-2, "end_value": 0.0}
    made = normopt.config(**DECAYED, learning_rate=rate | {"transition_steps": 50})
    still = seen_at(11, gradient=0.0)
    ((*known, stopped, none),) = predicted(
        made, [*seen_at(1), *still, *seen_at(51, 0)], {"conv": 50}
    ).values()
    # Before the first step that was taken, and after the rate has come to 0.
    assert stopped is None and none is None
    assert known[0] is not None and known[1] is None


def test_restarts_that_keep_their_place_have_equilibria():
    made = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.01}
    restarts = {"cycle_steps": 5, "eta_min": 0.1}
    found, wanted = (
        predicted(
            normopt.config(**made, schedule={"name": name, **restarts}), seen_at(1, 4)
        )
        for name in ("WarmRestarts", "cosine_restarts")
    )
    assert found == wanted != {}


def test_axes_by_a_name_have_equilibria():
    made = {"learning_rate": 0.1, "weight_decay": 0.01, "name": "adams"}
    by_name = normopt.config(**made, channel_axes={"name": "output_channels"})
    plain = normopt.config(**made, channel_axes=[-1])
    assert predicted(by_name, seen_at(1)) == predicted(plain, seen_at(1)) != {}


class Writer:
    """In the place of tensorboardX's."""

    def __init__(self, logdir, purge_step):
        self.logdir, self.purge_step, self.scalars, self.closed = (
            *(logdir, purge_step),
            *([], False),
        )
        Writer.made = self

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_records_are_written_for_tensorboard(tmp_path, monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    with board.told(tmp_path, 18, wanted=True) as tell:
        tell({"step": 22, "train_loss": 0.5, "validation_loss": None, "w/angle": 0.1})
    written = Writer.made
    assert written.scalars == [("train_loss", 0.5, 22), ("w/angle", 0.1, 22)]
    assert written.logdir == str(tmp_path / "tensorboard")
    assert written.purge_step == 19 and written.closed
    with board.told(tmp_path, 18, wanted=False) as tell:
        tell({"step": 23, "train_loss": 0.5})
    assert Writer.made is written and len(written.scalars) == 2


def test_a_missing_tensorboardx_is_said_before_anything_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    words = r"^error: --tensorboard needs tensorboardX .*pip install '\.\["
    with pytest.raises(SystemExit, match=words):
        main([*arguments(tmp_path / "absent"), "--tensorboard"])
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow("trains a network twice")
def test_a_run_draws_its_blocks_and_resumes(tmp_path):
    rate = {"name": "cosine_decay_schedule", "init_value": 0.01, "decay_steps": 36}
    optimizer = json.dumps({**DECAYED, "learning_rate": rate})
    prepared = prepare(config(tmp_path, optimizer=optimizer, observe=True))
    train(prepared, fresh=False, console=quiet())
    finished = prepared.run.folder
    assert (finished / "blocks.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((finished / "config.json").read_text())["observe"] is True
    record = read_records(finished / "metrics.jsonl")[-1]
    assert record["stages/0/0/conv1/kernel/angle_max"] > 0
    # A checkpoint holds what was observed.
    resumed = copy_of(finished, tmp_path / "resumed", steps=18)
    again = prepare(config(tmp_path / "resumed", optimizer=optimizer, observe=True))
    assert again.run.folder == resumed
    train(again, fresh=False, console=quiet())
    assert_same_run(resumed, finished)
