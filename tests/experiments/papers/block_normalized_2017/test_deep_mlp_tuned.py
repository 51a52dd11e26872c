"""Each optimizer is tuned by some seeds and judged by others; a run is what it says."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import data
from experiments.papers.block_normalized_2017 import deep_mlp, deep_mlp_tuned
from experiments.papers.block_normalized_2017.deep_mlp_training import (
    End,
    Task,
    ends_of,
)
from experiments.papers.block_normalized_2017.deep_mlp_tuned import (
    FIRST_FRESH,
    TUNING,
    main,
    study,
    table,
)
from experiments.papers.block_normalized_2017.methods import METHODS, SMOKE

EXPONENTS = np.array([-1.0, 0.0, 1.0])


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small a network takes longer to compile than to train."""


@pytest.fixture(scope="module")
def task():
    settings = deep_mlp.SETTINGS | {"layers": 2, "width": 16}
    digits = data.load("digits").first(300)
    return Task(digits, settings, "max", (1e-2, 1e-3), batch=100, epochs=2)


@pytest.fixture
def found(monkeypatch):
    """What a study finds where losses and errors are best at different multiples."""
    asked = []

    def ends(method, seeds, multiples, task):
        asked.append((tuple(seeds), [math.log10(one) for one in multiples]))
        at = np.tile(np.log10(multiples), (len(seeds), 1))
        # The first seed alone would choose others.
        spread = np.where(np.arange(len(seeds)) == 0, 5.0, 1.0)[:, None]
        losses = np.exp(np.abs(at - 1) + spread)
        return End(
            np.stack([losses + 1, losses], axis=-1), 0.1 + at**2, 0.2 + abs(at) / 10
        )

    monkeypatch.setattr(deep_mlp_tuned, "ends_of", ends)
    return study("SGD", EXPONENTS, (0, 1, 2), (7, 8), None), asked


def test_some_seeds_choose_and_fresh_ones_are_judged(found):
    arm, asked = found
    assert asked[0] == ((0, 1, 2), [-1, 0, 1])
    assert sorted(asked[1:]) == [((7, 8), [0]), ((7, 8), [1])]
    assert (arm["best_by_loss"], arm["best_by_error"]) == (1, 0)
    # By epoch at the one, on the test images at the other.
    np.testing.assert_allclose(
        arm["fresh_losses"], [[math.e**5 + 1, math.e**5], [math.e + 1, math.e]], 1e-4
    )
    assert arm["fresh_errors"] == [0.2, 0.2]
    assert max(TUNING) < FIRST_FRESH


def test_a_choice_at_the_end_of_what_was_tried_is_marked(found):
    arm, _ = found
    stored = {
        "rates": [0.01],
        "fresh_seeds": 2,
        "data": {"test": 360},
        "arms": {"SGD": arm},
    }
    _, by_loss, _, by_error, _, _ = table(stored).rows[0]
    assert (by_loss, by_error) == ("10 (end)", "1")


@pytest.mark.slow("compiles the network")
def test_a_multiple_is_one_of_all_rates_and_seeds_differ(task):
    higher = dataclasses.replace(task, rates=[10 * rate for rate in task.rates])
    tenfold, same = (
        ends_of("SGD", (0, 1), multiples, one)
        for multiples, one in (((1.0, 10.0), task), ((0.1, 1.0), higher))
    )
    assert tenfold.losses.shape == (2, 2, 4) and tenfold.test_error.shape == (2, 2)
    np.testing.assert_allclose(tenfold.losses, same.losses, rtol=1e-4)
    assert (np.diff(tenfold.losses, axis=0) != 0).all()
    assert (np.abs(np.diff(tenfold.losses[..., -1], axis=1)) > 0.05).all()


@pytest.mark.slow("compiles the network")
@pytest.mark.parametrize("method", METHODS)
def test_training_teaches_what_was_held_out_too(method, task):
    end = ends_of(method, (0,), (3.0,), dataclasses.replace(task, epochs=8))
    losses = end.losses[0, 0]
    assert losses[-1] < 0.8 * losses[0]
    assert end.validation_error[0, 0] < 0.75 and end.test_error[0, 0] < 0.75


@pytest.mark.slow("compiles the network")
def test_a_run_that_diverged_knows_nothing(task):
    end = ends_of("SGD", (0,), (1e38,), task)
    assert end.losses[0, 0, -1] == pytest.approx(math.log(10))
    assert end.test_error[0, 0] > 0.85


@pytest.mark.slow("needs a real run")
def test_the_loss_is_without_the_l2_term(task):
    """That of some layers whose term is a thousand begins where that of others does."""
    heavy = dataclasses.replace(task, settings=task.settings | {"l2": 10.0})
    first, other = (
        ends_of("SGD", (0,), (1e-6,), one).losses[0, 0, 0] for one in (task, heavy)
    )
    assert first == pytest.approx(other, rel=1e-3)


@pytest.mark.slow("needs a real run")
def test_every_arm_is_stored(stored):
    assert list(stored["arms"]) == list(SMOKE)
    for arm in stored["arms"].values():
        assert np.diff(arm["exponents"]) == pytest.approx(1)
        assert np.shape(arm["losses"]) == np.shape(arm["errors"]) == (2, 3)
        assert np.shape(arm["fresh_losses"]) == (2, 3)
        assert np.shape(arm["fresh_errors"]) == (2,)


def test_a_single_seed_is_refused_for_it_has_no_deviation(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
