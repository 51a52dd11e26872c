"""SGD and the scheme on the sphere are one to rounding; momentum tells them apart."""

import jax
import numpy as np
import pytest

from experiments.papers.spherical_2020 import sphere
from experiments.papers.spherical_2020.sphere import Setting, follow_all


def angles(setting, **options):
    with jax.enable_x64(True):
        return follow_all(setting, seeds=1, epochs=1, **options)


def test_directions_agree_to_rounding_with_l2():
    found = angles(Setting(decay=0.1))
    assert found["travelled"][0, -1] > 0.1
    assert found["exact"].max() < 1e-14
    # The variant of Adam leaves out what is of fourth order in the rate.
    assert 1e-5 < found["adam"][0, -1] < 0.1
    np.testing.assert_allclose(found["rate"], found["adam_rate"], rtol=0.05)


@pytest.mark.slow("the contrast to the one above")
def test_momentum_is_not_that_of_a_flat_space():
    assert angles(Setting(momentum=0.9))["exact"][0, -1] > 0.01


@pytest.mark.slow("the order in the rate is in the stored results")
def test_what_is_left_out_falls_faster_than_the_second_order():
    ends = [angles(Setting(), rate=rate)["adam"][0, -1] for rate in (0.1, 0.05)]
    assert ends[0] / ends[1] > 2**3


def test_the_loss_is_blind_to_the_lengths_of_hidden_units():
    with jax.enable_x64(True):
        params, _ = sphere.start_of(0, epochs=1)
        pixels, labels = (
            np.random.default_rng(0).normal(size=(20, 64)),
            np.arange(20) % 10,
        )
        longer = {**params, "hidden0": params["hidden0"] * np.linspace(1, 9, 32)}
        ones, others = (sphere.loss(each, pixels, labels) for each in (params, longer))
    assert float(ones) == pytest.approx(float(others), rel=1e-12)
