import json

import jax
import pytest

import normopt
from experiments.benchmarks import compile_time
from experiments.benchmarks.compile_time import (
    CASES,
    PATTERNS,
    CompileTimeConfig,
    main,
    parameters,
)
from tests.experiments.small_runs import quiet


@pytest.fixture
def uncached():
    folder = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.mark.slow("compiles every case")
@pytest.mark.usefixtures("uncached")
def test_the_command_prints_and_stores_a_row_for_every_case(tmp_path, capsys):
    file = tmp_path / "rows.json"
    main(["--smoke", "--json", str(file), "--out", str(tmp_path)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["optimizer"] for row in rows] == list(CASES)
    printed = capsys.readouterr().out
    for row in rows:
        case = CASES[row["optimizer"]]
        assert row["trace_seconds"] > 0 and row["compile_seconds"] > 0
        assert (row["baseline"], row["bar"]) == (case.baseline, case.bar)
        assert (row["holds"] is None) == (case.bar is None)
        line = next(
            x for x in printed.split("\n") if x.split()[:1] == [row["optimizer"]]
        )
        assert ("holds" in line or "missed" in line) == (case.bar is not None)


def test_there_are_a_thousand_leaves_and_two_thirds_have_blocks():
    params = parameters(CompileTimeConfig().layers)
    leaves = jax.tree.leaves(params)
    assert len(leaves) >= 1000
    state = jax.eval_shape(CASES["adamsrt"].make().init, params)
    (moments,) = (s for s in state if isinstance(s, normopt.ScaleByBlockAdamState))
    assert len(moments.nu.blocks) / len(leaves) == pytest.approx(2 / 3, abs=0.01)


def test_every_one_of_the_ten_rules_is_the_first_for_some_leaf():
    assert len(PATTERNS) == 10
    paths = normopt.leaf_paths(parameters(10))
    rules = normopt.by_path({pattern: pattern for pattern in PATTERNS})
    chosen = jax.tree.leaves(rules(parameters(10)))
    assert set(chosen) == set(PATTERNS) and len(paths) == 30


# The first time of a command does not count; the second round is ten times as slow.
COLD = [(99.0, 99.0)]
OURS = len(CASES) - 1
ROUNDS = [(1.0, 1.0), *[(2.0, 2.0)] * OURS], [(10.0, 10.0), *[(20.0, 20.0)] * OURS]


def timed(monkeypatch, tmp_path, rounds, times):
    left = iter(times)
    monkeypatch.setattr(compile_time, "trace_and_compile", lambda *_: next(left))
    config = CompileTimeConfig(layers=10, rounds=rounds, out=tmp_path)
    return {row["optimizer"]: row for row in compile_time.measure(config, quiet())}


def test_ratios_are_of_the_same_round(monkeypatch, tmp_path):
    rows = timed(monkeypatch, tmp_path, 2, COLD + ROUNDS[0] + ROUNDS[1])
    assert rows["novograd"]["ratio"] == 2.0 and not rows["novograd"]["holds"]
    assert rows["novograd"]["quartiles"] == [2.0, 2.0]
    assert rows["adamsrt+rules"]["ratio"] == 1.0 and rows["adamsrt+rules"]["holds"]


def test_rounds_that_are_finished_are_not_timed_again(monkeypatch, tmp_path, committed):
    timed(monkeypatch, tmp_path, 1, COLD + ROUNDS[0])
    rows = timed(monkeypatch, tmp_path, 2, COLD + ROUNDS[1])
    assert rows["optax.adamw"]["trace_seconds"] == 5.5
    assert rows["novograd"]["quartiles"] == [2.0, 2.0]
    assert timed(monkeypatch, tmp_path, 2, []) == rows
    # What may change the times is told apart.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert timed(monkeypatch, tmp_path, 1, COLD + ROUNDS[1]) != rows


def test_programs_that_would_be_read_from_a_cache_are_refused():
    with pytest.raises(SystemExit, match="JAX_COMPILATION_CACHE_DIR is .*; unset it"):
        main(["--smoke"])


def test_too_few_layers_for_the_rules_are_refused():
    with pytest.raises(SystemExit, match="`layers` must be >= 10, got 9"):
        main(["--layers", "9"])
