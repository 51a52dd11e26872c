"""What the kernels of a transformer are held against."""

import json
from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments.papers.transformers import headline, lengths_and_angles
from experiments.papers.transformers.language_training import METHODS
from experiments.papers.transformers.lengths_and_angles import DECAY, GROUPS, RATE

QUERY, KEY, OUT = (
    f"layers/0/attention/{name}/kernel" for name in ("query", "key", "out")
)


def test_every_kernel_has_a_group_and_a_prediction():
    found = lengths_and_angles.predicted()
    assert {lengths_and_angles.group_of(path) for path in found} == set(GROUPS)
    # A head of nano maps 64 numbers to 32, and back.
    assert all(found[path]["size"] == 64 * 32 for path in (QUERY, KEY, OUT))
    for one in found.values():
        length = RATE * np.sqrt(one["size"] / (2 * DECAY))
        assert one["weight"] == pytest.approx(length)
        assert one["angle"] == pytest.approx(np.sqrt(2 * DECAY * 0.1 / 1.9))


def test_groups_are_means_of_ratios_and_the_last_half_counts():
    expected = {QUERY: {"angle": 2.0}, KEY: {"angle": 4.0}}
    seed = {QUERY: {"angle": [8.0, 2.0]}, KEY: {"angle": [4.0, 16.0]}}
    stored = {"predicted": expected, "seeds": [seed]}
    found = lengths_and_angles.over_predicted(stored, "queries, keys", "angle")
    np.testing.assert_allclose(found, [[2.0, 2.0]])
    seed[KEY]["angle"][1] = 4.0
    end = lengths_and_angles.at_the_end(stored, "queries, keys", "angle")
    np.testing.assert_allclose(end, [1.0])


def test_the_headline_takes_the_rates_that_are_stored():
    path = (
        Path(experiments.__file__).parent / "results/transformers/language_model.json"
    )
    sweep = json.loads(path.read_text("utf-8"))["sweep"]
    expected = {name: sweep[name]["best"] for name in METHODS}
    assert headline.best_rates() == expected and len(set(expected.values())) > 1
