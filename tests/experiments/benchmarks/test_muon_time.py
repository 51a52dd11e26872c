"""The time of Muon's step and of its compiling, beside optax's."""

import json

import jax
import optax
import pytest

from experiments.benchmarks import muon_time


@pytest.mark.slow("compiles eight programs")
def test_smoke_measures_each_beside_the_baseline(tmp_path, capsys):
    file = tmp_path / "muon_time.json"
    muon_time.main(["--smoke", "--out", str(tmp_path), "--json", str(file)])
    rows = {row["optimizer"]: row for row in json.loads(file.read_text())["rows"]}
    assert len(rows) == 2 * len(muon_time.CASES)
    for name, case in muon_time.CASES.items():
        for of in ("step", "compile"):
            row = rows[f"{name}, {of}"]
            assert row["seconds"] > 0
            assert row["bar"] == getattr(case, of)
            assert (row["ratio"] is None) == (name == muon_time.BASELINE)
    assert f"a step of {len(muon_time.SIZES)} matrices" in capsys.readouterr().out


@pytest.mark.slow("compiles optax's Muon")
def test_all_step_the_same_matrices_to_the_same_place():
    params = muon_time.parameters(1)
    gradients = optax.tree.random_like(jax.random.key(1), params)
    steps = []
    for name in (muon_time.BASELINE, "muon", "muon, one by one"):
        optimizer = muon_time.CASES[name].make()
        steps.append(
            jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]
        )
    for theirs, *ours in zip(*map(jax.tree.leaves, steps), strict=True):
        for step in ours:
            assert abs(theirs - step).max() < 2e-3 * abs(theirs).max()
