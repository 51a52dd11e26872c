"""What the four optimizers of a network share: rates, norms, data and resuming."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.models.mlp import MLP
from experiments.papers.block_normalized_2017 import cifar_cnn, curves, deep_mlp
from experiments.papers.block_normalized_2017.curves import CurvesOptions
from experiments.papers.block_normalized_2017.methods import (
    METHODS,
    MOMENTUM,
    optimizer_of,
)
from experiments.train import train
from tests.experiments.small_runs import assert_same_run, copy_of, quiet

GRADIENTS = {"kernel": jnp.array([[3.0, -4.0], [0.0, 12.0]]), "bias": jnp.array([0.5])}


@pytest.fixture(scope="module")
def task():
    return deep_mlp.load(CurvesOptions(smoke=True))


def updates_of(method, norm="max", steps=10, updates=1):
    optimizer, _ = optimizer_of(method, norm, (1e-2, 1e-3), steps)
    state, found = optimizer.init(GRADIENTS), []
    for _ in range(updates):
        update, state = optimizer.update(GRADIENTS, state, GRADIENTS)
        found.append(update)
    return found


def test_the_first_step_of_normalized_sgd_is_by_the_rate():
    """By the norm of each network: the largest element, or the length."""
    nesterov = 1 + MOMENTUM
    for update in updates_of("normalized SGD")[0].values():
        assert float(jnp.abs(update).max()) == pytest.approx(nesterov * 1e-2, rel=1e-6)
    for update in updates_of("normalized SGD", norm="l2")[0].values():
        assert float(jnp.linalg.norm(update)) == pytest.approx(
            nesterov * 1e-2, rel=1e-6
        )
    plain = updates_of("SGD")[0]
    np.testing.assert_allclose(plain["kernel"], -nesterov * 1e-2 * GRADIENTS["kernel"])


def test_sgd_has_nesterovs_momentum():
    """As Keras has it: v <- 0.9 v - rate g, w <- w + 0.9 v - rate g."""
    velocity, g = 0.0, np.array(GRADIENTS["kernel"])
    for update in updates_of("SGD", updates=3):
        velocity = 0.9 * velocity - 1e-2 * g
        np.testing.assert_allclose(
            update["kernel"], 0.9 * velocity - 1e-2 * g, rtol=1e-6
        )


def test_adam_makes_steps_of_the_rate_either_way():
    for method in ("Adam", "normalized Adam"):
        update = updates_of(method)[0]["kernel"]
        expected = -1e-2 * jnp.sign(GRADIENTS["kernel"])
        np.testing.assert_allclose(update, expected, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_each_rate_begins_with_a_new_optimizer(method):
    first, second, third, fourth = updates_of(method, steps=2, updates=4)
    for one, later in ((first, third), (second, fourth)):
        np.testing.assert_allclose(0.1 * one["kernel"], later["kernel"], rtol=1e-5)
    if "SGD" in method:
        assert np.abs(second["kernel"]).max() > np.abs(first["kernel"]).max()


@pytest.mark.slow("builds the networks")
@pytest.mark.parametrize("method", METHODS)
def test_each_rate_lasts_ten_epochs(method, task, tmp_path):
    longer = dataclasses.replace(task, epochs=10)
    steps = longer.plan.steps_per_epoch
    assert longer.plan.total_steps == 30 * steps
    model = curves.build(longer, seed=0)
    job = curves.prepare(method, longer, model, 0, tmp_path).loop.job
    counts = [0, 10 * steps - 1, 10 * steps, 20 * steps - 1, 20 * steps, 30 * steps - 1]
    rates = [float(job.schedule(count)) for count in counts]
    expected = np.repeat(deep_mlp.RATES, 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.slow("builds the networks")
def test_images_go_from_zero_to_one(task):
    network, params, state = curves.build(task, seed=0)
    seen = network.evaluate(params, state, task.data.test.images[:4])
    brighter = task.data.test.images[:4] * 2
    doubled = dataclasses.replace(task.data.train, images=task.data.train.images * 2)
    wider = dataclasses.replace(
        task, data=dataclasses.replace(task.data, train=doubled)
    )
    network, params, state = curves.build(wider, seed=0)
    np.testing.assert_allclose(
        seen, network.evaluate(params, state, brighter), rtol=1e-5, atol=1e-6
    )


def test_settings_of_the_full_runs(monkeypatch):
    digits = data.load("digits")
    asked = []
    monkeypatch.setattr(data, "load", lambda *args: asked.append(args) or digits)
    mlp, cnn = (module.load(CurvesOptions()) for module in (deep_mlp, cifar_cnn))
    assert asked == [("mnist", None), ("cifar10", None)]
    deep = {"layers": 30, "width": 128, "dropout": 0.2, "l2": 1e-5}
    assert (mlp.settings, mlp.norm, mlp.epochs) == (deep, "max", 10)
    assert mlp.rates["SGD"] == mlp.rates["Adam"] == (1e-2, 1e-3, 1e-4)
    wide = {"widths": [32, 64], "hidden": 512, "dropout": [0.25, 0.5]}
    assert (cnn.settings, cnn.norm, cnn.plan.epochs) == (wide, "l2", 50)
    assert mlp.batch_size == cnn.batch_size == 128


def test_all_training_images_are_trained_on_and_the_test_ones_only_tested(task):
    whole = data.load("digits")
    parts = (whole.train, whole.validation)
    for name in ("images", "labels"):
        both = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(task.data.train, name), both)
    np.testing.assert_array_equal(task.data.test.images, whole.test.images)
    assert task.data.validation is task.data.test
    # Statistics are those of the images that are trained on.
    np.testing.assert_allclose(task.data.mean, task.data.train.images.mean(), rtol=1e-5)


def test_images_are_not_augmented(task, tmp_path):
    model = curves.build(task, seed=0)
    prepared = curves.prepare("SGD", task, model, 0, tmp_path)
    augmentation = prepared.loop.job.augmentation
    assert (augmentation.padding, augmentation.flip) == (0, False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow("two real runs")
def test_a_run_that_was_stopped_goes_on_with_the_same_dropout(task, tmp_path):
    model = curves.build(task, seed=0)

    def run(folder):
        prepared = curves.prepare("normalized Adam", task, model, 0, folder)
        train(prepared, fresh=False, console=quiet())
        return prepared.run.folder

    finished = run(tmp_path / "whole")
    per_epoch = task.plan.steps_per_epoch
    resumed = copy_of(finished, tmp_path, steps=per_epoch)
    assert run(tmp_path) == resumed
    assert_same_run(finished, resumed)


@pytest.mark.slow("builds the networks")
def test_what_a_network_is_called_tells_its_runs_apart(task, tmp_path):
    model = curves.build(task, seed=0)
    folders = {
        curves.prepare(method, task, model, 0, tmp_path).run.folder.name
        for method in METHODS
    }
    assert len(folders) == 4
    wider = dataclasses.replace(task, norm="l2")
    other = curves.prepare("SGD", wider, model, 0, tmp_path).run.folder.name
    assert other.startswith("digits-deep_mlp-sgd-") and other not in folders
    assert task.build is MLP


def test_missing_data_and_missing_records_are_said(tmp_path):
    with pytest.raises(SystemExit, match="error: mnist.*--data-dir"):
        deep_mlp.main(["--out", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="--redraw needs .*cifar_cnn.json"):
        cifar_cnn.main(["--redraw", "--out", str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()
    (tmp_path / "cifar_cnn.json").write_text("[]")
    with pytest.raises(SystemExit, match="error: what .* is not what is read today"):
        cifar_cnn.main(["--redraw", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "`epochs` must be >= 1, got 0"),
        (["--seeds", "0"], "`seeds` must be >= 1, got 0"),
        (["--images", "127"], "`images` must fill a batch of 128, got 127"),
        (["--images", "0"], "`images` must be >= 1, got 0"),
        (["--images", "1438"], "`images` must be from 1 to 1437, got 1438"),
    ],
)
def test_no_part_is_refused(options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        deep_mlp.main(["--smoke", *options, "--out", str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()


def test_a_part_is_trained_on_for_so_long(task):
    config = curves.CurvesOptions(images=256, epochs=2)
    part = curves.shortened(task, config)
    assert (len(part.data.train), part.epochs) == (256, 2)
    assert len(part.data.test) == len(task.data.test)
    assert curves.shortened(task, curves.CurvesOptions()) == task


def test_curves_are_those_of_the_records():
    record = {"train_loss": 0.1234567, "train_accuracy": 0.5}
    record |= {"validation_loss": 2.0, "validation_accuracy": 0.25}
    found = curves.curves_of([record, record | {"train_loss": 1.0}])
    assert found["train_loss"] == [0.12346, 1.0]
    assert found["test_accuracy"] == [0.25, 0.25]
