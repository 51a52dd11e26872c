"""What is measured is what its names say, and an epoch's mean is over its steps."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normopt
from experiments.papers.spherical_2020 import effective_learning_rate, protocol
from experiments.papers.spherical_2020.effective_learning_rate import main
from experiments.papers.spherical_2020.turning import (
    draw_factors,
    fit_rates,
    fit_widths,
    lengthen,
    measures,
)
from experiments.training import preparation
from experiments.training.preparation import TrainConfig
from experiments.training.runs import read_records
from experiments.training.steps import compiled_quickly
from tests.experiments.small_runs import NAMED


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small a network takes longer to compile than to train."""


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


@pytest.fixture(scope="module")
def prepared():
    config = TrainConfig(model="resnet8", optimizer=NAMED, batch_size=128)
    return preparation.prepare(config)


def test_factors_are_drawn_once_a_seed_for_each_kernel(prepared):
    params = prepared.state.params
    factors = draw_factors(params, 0)
    (pattern,) = protocol.CHANNEL_AXES
    assert list(factors) == normopt.leaf_paths(params, pattern)
    assert factors == draw_factors(params, 0) != draw_factors(params, 1)
    drawn = [f for seed in range(30) for f in draw_factors(params, seed).values()]
    assert 1 / 4 <= min(drawn) < 0.27 and 3.7 < max(drawn) <= 4
    # As many below 1 as above, within three deviations of a fair coin's.
    assert abs(np.mean(np.less(drawn, 1)) - 1 / 2) < 3 / 2 / len(drawn) ** 0.5


def test_lengthened_kernels_leave_the_function_as_it_is(prepared):
    job, before = prepared.loop.job, prepared.state
    factors = draw_factors(before.params, 0)
    after = lengthen(before, job, factors)
    measured = compiled_quickly(lambda params: measures(params, params, 1.0).norm)
    lengths = [measured(state.params) for state in (before, after)]
    for path, factor in factors.items():
        assert float(lengths[1][path] / lengths[0][path]) == pytest.approx(factor)
    paths = normopt.leaf_paths(before.params)
    others = [path not in factors for path in paths]
    leaves = (jax.tree.leaves(state.params) for state in (before, after))
    same = [np.array_equal(old, new) for old, new in zip(*leaves, strict=True)]
    assert same == others
    images, train = job.data.train.images[:32], compiled_quickly(job.network.train)
    logits = [
        train(state.params, state.model_state, images)[0] for state in (before, after)
    ]
    # Batch norm adds 1e-5 to variances that are 16 times smaller at most.
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-2 * np.std(logits[0]))


def records(angle_of):
    """Two epochs of four layers, whose lengths are not in the order of the widths."""
    widths, factors = [16, 16, 32, 64], {"a": 0.5, "b": 4.0, "c": 0.25, "d": 2.0}
    found = []
    for learning_rate in (1e-3, 1e-4):
        rates, angles = {}, {}
        for (layer, factor), width in zip(factors.items(), widths, strict=True):
            rates[layer] = learning_rate * width**0.5 / factor
            angles[layer] = learning_rate * angle_of(width**0.5, factor)
        found.append({"rate": rates, "angle": angles})
    return found, factors


def test_angles_that_follow_the_width_alone_are_told_from_those_that_turn_as_said():
    right, factors = records(lambda root, factor: 0.3 * root / factor)
    assert fit_rates(right) == pytest.approx((1, 1))
    assert fit_widths(right, factors).correlation < 0.5
    wide, _ = records(lambda root, factor: root)
    assert fit_widths(wide, factors) == pytest.approx((1, 1))
    assert fit_rates(wide).correlation < 0.5 and fit_rates(wide).slope < 0.5


@pytest.mark.slow("needs a real run")
def test_every_layer_of_every_run_is_stored(folder, stored):
    assert set(stored["runs"]) == {"adam", "adamsrt"}
    for name, records in stored["runs"].items():
        (run,) = (folder / "rates").glob(f"digits-vgg6-{name}-*")
        assert records == read_records(run / "metrics.jsonl")
        assert [record["epoch"] for record in records] == [1, 2]
        for record in records:
            for quantity in ("norm", "angle", "rate"):
                layers = record[quantity]
                assert len(layers) == 5 and min(layers.values()) > 0


@pytest.mark.slow("needs a real run")
def test_lengths_are_drawn_alike_and_settings_are_stored(stored):
    assert stored["seed"] == 0
    first, second = (records[0]["norm"] for records in stored["runs"].values())
    # Nine steps move them by percents, and the factors by several times.
    assert first == pytest.approx(second, rel=0.05)
    assert set(stored["factors"]) == set(first)
    for name, records in stored["runs"].items():
        trained = stored["optimizers"][name]
        assert trained["config"]["weight_decay"] == 0
        assert trained["config"]["learning_rate"]["init_value"] == 1e-3
        (origin,) = trained["provenance"]
        assert set(origin) == {"commit", "versions", "devices"}
        # He's initial lengths, the root of twice inputs over outputs, in all but the
        # first layer, whose eight filters of nine elements are too few for a mean.
        for stage, length in ((1, 1), (2, 1), (3, 1), (4, 2**0.5)):
            path = f"stages/{stage}/0/conv/kernel"
            expected = length * stored["factors"][path]
            assert records[0]["norm"][path] == pytest.approx(expected, rel=0.1)


@pytest.mark.slow("needs a real run")
def test_rate_follows_the_steps_of_the_schedule(stored):
    # Of 18 steps it falls after 6, 10 and 14: 9 hold 6 of 1 and 3 of a tenth.
    fall = (1 * 0.1 + 4 * 0.01 + 4 * 0.001) / (6 + 3 * 0.1)
    for records in stored["runs"].values():
        for layer, first in records[0]["rate"].items():
            # The norms move by percents meanwhile.
            ratio = records[1]["rate"][layer] / first
            assert ratio == pytest.approx(fall, rel=0.1)


@pytest.mark.slow("needs a real run")
def test_angles_are_near_the_rates(stored):
    """Adam's steps are about as long as the learning rate per element, or shorter."""
    for records in stored["runs"].values():
        for layer, rate in records[0]["rate"].items():
            assert 0.2 * rate < records[0]["angle"][layer] < 1.2 * rate


@pytest.mark.slow("needs a real run")
def test_finished_runs_are_read(folder, monkeypatch):
    monkeypatch.setattr(
        "experiments.papers.spherical_2020.effective_learning_rate.train_epochs",
        lambda *args: pytest.fail("it was trained again"),
    )
    main(["--smoke", "--out", str(folder.parent)])


def test_missing_data_is_an_error_of_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="^error: .*--data-dir") as error:
        main(["--dataset", "cifar10", "--out", str(out)])
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.slow("needs a real run")
def test_fresh_trains_again(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "smoke")
    trained = []

    def train_epochs(run, *arguments):
        trained.append(run.was_begun())
        raise OSError("the disk is full")

    monkeypatch.setattr(effective_learning_rate, "train_epochs", train_epochs)
    with pytest.raises(SystemExit, match="^error: the disk is full$"):
        main(["--smoke", "--fresh", "--out", str(tmp_path)])
    assert trained == [False]


def test_layers_are_drawn_by_depth():
    names = ("stages/0/0/conv1", "stages/1/0/conv1", "stem/conv")
    records = [{"norm": {f"{name}/kernel": 1.0 for name in names}}]
    layers = [layer for layer, _ in effective_learning_rate._layers(records)]
    assert layers == [f"{name}/kernel" for name in ("stem/conv", *names[:2])]


def test_the_claim_is_judged_over_the_layers_in_proportion():
    (claim,) = effective_learning_rate.EXHIBIT.claims

    def judged(power, layers=6):
        rates = {str(n): 1e-3 * 2**n for n in range(layers)}
        angles = {layer: rate**power for layer, rate in rates.items()}
        records = [{"rate": rates, "angle": angles}] * 2
        return claim.judge({"runs": dict.fromkeys(("adam", "adams"), records)})

    assert judged(0.85).verdict == judged(1.15).verdict == "reproduced"
    assert judged(0.5).verdict == judged(1.5).verdict == "not reproduced"
    assert "adam 0.500" in judged(0.5).ours and "n = 6 layers" in judged(0.5).ours
    # Through few layers there is always a line.
    assert judged(1.0, 4).verdict == "inconclusive"
