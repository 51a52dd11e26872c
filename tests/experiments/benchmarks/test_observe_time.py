"""The time of an observed step and of its compiling, beside one that is not."""

import json

import pytest

from experiments.benchmarks import observe_time


@pytest.mark.slow("compiles six programs")
def test_smoke_measures_each_beside_the_baseline(tmp_path, capsys):
    file = tmp_path / "observe_time.json"
    observe_time.main(["--smoke", "--out", str(tmp_path), "--json", str(file)])
    rows = {row["optimizer"]: row for row in json.loads(file.read_text())["rows"]}
    assert len(rows) == 2 * len(observe_time.CASES)
    assert {name: row["bar"] for name, row in rows.items()} == {
        "adamw, step": None,
        "adamw, compile": None,
        "every=1, step": 1.25,
        "every=1, compile": 1.5,
        "every=50, step": 1.03,
        "every=50, compile": 1.5,
    }
    for row in rows.values():
        assert row["seconds"] > 0
        assert (row["ratio"] is None) == (row["bar"] is None)
    assert "a step of resnet8" in capsys.readouterr().out
