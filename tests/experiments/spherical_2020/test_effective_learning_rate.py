"""What is measured is what its names say, and an epoch's mean is over its steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import discover
from experiments.runs import read_records
from experiments.spherical_2020.effective_learning_rate import (
    QUANTITIES,
    main,
    measures,
)


def filters(*columns):
    """A convolution of four elements an output channel, beside two other leaves."""
    kernel = jnp.asarray(columns, float).T.reshape(2, 1, 2, -1)
    layer = {"conv": {"kernel": kernel}, "norm": {"scale": jnp.ones(4)}}
    return {"stages": [layer], "head": {"kernel": jnp.ones((4, 2))}}


def test_measures_of_two_filters_by_hand():
    before = filters([3, 0, 0, 0], [0, 0, 0, 4])
    # The first turns by a right angle and grows, the second only shrinks.
    after = filters([0, 5, 0, 0], [0, 0, 0, 1])
    found = measures(before, after, 0.1)
    (path,) = found.norm
    assert path == "stages/0/conv/kernel"
    assert float(found.norm[path]) == pytest.approx((3 + 4) / 2)
    assert float(found.angle[path]) == pytest.approx(np.pi / 4)
    # Of four elements each, so that sqrt(d) is 2.
    assert float(found.rate[path]) == pytest.approx((0.2 / 3 + 0.2 / 4) / 2)


def test_rate_is_the_angle_of_a_small_step_across_the_filter():
    before, rate = filters([1, 2, 3, 4], [4, -3, 2, -1]), 1e-3
    # At right angles, every element moved by the learning rate: 1 - 2 - 3 + 4 = 0.
    after = filters(
        np.add([1, 2, 3, 4], np.multiply(rate, [1, -1, -1, 1])),
        np.add([4, -3, 2, -1], np.multiply(rate, [1, 1, -1, -1])),
    )
    found = measures(before, after, rate)
    (path,) = found.norm
    assert float(found.angle[path]) == pytest.approx(float(found.rate[path]), rel=1e-3)


def test_the_command_leaves_its_files(folder):
    assert "spherical_2020.effective_learning_rate" in discover()
    names = {f"effective_learning_rate.{end}" for end in ("json", "png")}
    assert {path.name for path in folder.iterdir()} == {*names, "rates"}


def test_every_layer_of_every_run_is_stored(folder, stored):
    assert set(stored["runs"]) == {"adam", "adamsrt"}
    for name, records in stored["runs"].items():
        (run,) = (folder / "rates").glob(f"digits-vgg6-{name}-*")
        assert records == read_records(run / "metrics.jsonl")
        assert [record["epoch"] for record in records] == [1, 2]
        for record in records:
            for quantity in QUANTITIES:
                layers = record[quantity]
                assert len(layers) == 5 and min(layers.values()) > 0


def test_rate_follows_the_steps_of_the_schedule(stored):
    # Of 18 steps it falls after 6, 10 and 14: 9 hold 6 of 1 and 3 of a tenth.
    fall = (1 * 0.1 + 4 * 0.01 + 4 * 0.001) / (6 + 3 * 0.1)
    for records in stored["runs"].values():
        for layer, first in records[0]["rate"].items():
            # The norms move by percents meanwhile.
            ratio = records[1]["rate"][layer] / first
            assert ratio == pytest.approx(fall, rel=0.1)


def test_angles_are_near_the_rates(stored):
    """Adam's steps are about as long as the learning rate per element, or shorter."""
    for records in stored["runs"].values():
        for layer, rate in records[0]["rate"].items():
            assert 0.2 * rate < records[0]["angle"][layer] < 1.2 * rate


def test_finished_runs_are_read(folder, monkeypatch):
    monkeypatch.setattr(
        "experiments.spherical_2020.effective_learning_rate.train_epochs",
        lambda *args: pytest.fail("it was trained again"),
    )
    main(["--smoke", "--out", str(folder.parent)])
