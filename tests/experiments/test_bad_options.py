"""Options out of range end a command with one line, and nothing is written."""

import pytest

from experiments.papers.block_normalized_2017 import convex
from experiments.papers.decoupled_decay_2019 import warm_restarts
from experiments.papers.spherical_2020 import effective_learning_rate


@pytest.mark.parametrize(
    ("experiment", "option", "given", "least"),
    [
        (convex, "size", 0, 1),
        (convex, "seed", -1, 0),
        (warm_restarts, "seed", -1, 0),
        (effective_learning_rate, "epochs", 1, 2),
        (effective_learning_rate, "seed", -1, 0),
    ],
)
def test_it_is_named_with_what_it_must_be(experiment, option, given, least, tmp_path):
    out = tmp_path / "absent"
    words = f"^error: `{option}` must be >= {least}, got {given}$"
    with pytest.raises(SystemExit, match=words):
        experiment.main([f"--{option}", str(given), "--out", str(out)])
    assert not out.exists()
