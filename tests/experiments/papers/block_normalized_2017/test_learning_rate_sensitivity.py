"""The dependency on the rate is read off the runs of the convex experiment."""

import json

import pytest

from experiments.papers.block_normalized_2017 import convex
from experiments.papers.block_normalized_2017.convex import arrival
from experiments.papers.block_normalized_2017.learning_rate_sensitivity import (
    EXHIBIT,
    main,
)

NAME = "learning_rate_sensitivity"


@pytest.fixture(scope="module")
def stored(folder):
    return json.loads((folder / f"{NAME}.json").read_text())


@pytest.mark.slow("the smoke run of convex once more")
def test_it_sums_up_the_stored_runs(folder, stored):
    runs = json.loads((folder / "convex.json").read_text())
    assert stored["learning_rates"] == runs["learning_rates"]
    assert stored["config"] == runs["config"]
    assert stored["runs"]["provenance"] == runs["provenance"]
    assert list(stored["methods"]) == list(runs["gaps"])
    arrived = 0
    for name, method in stored["methods"].items():
        assert method["gap_at_end"] == [gaps[-1] for gaps in runs["gaps"][name]]
        for steps, gaps in zip(
            method["arrived_after"][0], runs["gaps"][name], strict=True
        ):
            bound = 0.01 * gaps[0]
            if steps is None:
                assert gaps[-1] > bound
                continue
            arrived += 1
            assert gaps[steps // 10] > bound
            assert max(gaps[steps // 10 + 1 :]) <= bound
    assert arrived >= 2


def test_a_run_that_leaves_again_has_not_arrived():
    assert arrival([100.0, 50.0, 1.0, 0.5], every=10) == 10
    assert arrival([100.0, 0.5, 3.0, 0.5], every=10) == 20
    assert arrival([100.0, 0.5, 0.5, 3.0], every=10) is None
    assert arrival([100.0, 0.5], every=10) == 0


@pytest.mark.slow("the smoke run of convex once more")
def test_runs_that_are_stored_are_not_computed_again(folder, tmp_path, monkeypatch):
    runs = json.loads((folder / "convex.json").read_text())
    runs["gaps"]["Adam"][1][-1] = 123.0
    (tmp_path / "convex.json").write_text(json.dumps(runs))
    monkeypatch.delattr(convex, "descend")
    main(["--out", str(tmp_path)])
    found = json.loads((tmp_path / f"{NAME}.json").read_text())
    assert found["methods"]["Adam"]["gap_at_end"][1] == 123.0


def problems(steps):
    """Twenty problems at three rates, where normalized Adam needs so many steps."""
    adam = [[None, 400 + n, 200] for n in range(20)]
    ours = [[n if n is None else n + k for n in steps] for k in range(20)]
    methods = {"Adam": adam, "normalized Adam": ours}
    return {
        "config": {"steps": 1000},
        "learning_rates": [0.001, 0.01, 0.1],
        "methods": {n: {"arrived_after": a} for n, a in methods.items()},
    }


def test_methods_are_compared_over_the_problems():
    # Faster, or at rates further apart, or neither.
    for steps, verdicts in (
        ([300, 200, 100], ["reproduced", "reproduced"]),
        ([500, 400, 300], ["not reproduced", "reproduced"]),
        ([None, 150, None], ["reproduced", "not reproduced"]),
        ([None, None, 600], ["not reproduced", "not reproduced"]),
    ):
        found = [claim.judge(problems(steps)) for claim in EXHIBIT.claims]
        assert [one.verdict for one in found] == verdicts
        assert all("n = 20 paired problems" in one.ours for one in found)
