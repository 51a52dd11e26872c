"""Compiling for GPUs: what is read from the compiler, and what is said without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.gpu import gpu_compile
from experiments.benchmarks.gpu.gpu_compile import is_installed, main, read

ROOT = Path(__file__).parents[2]
ADVICE = "pip install -e '.[experiments,gpu-compile]' -c constraints.txt"
# As the GPU's compiler writes it.
HLO = """HloModule jit_step, is_scheduled=true

%fused (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %m = f32[64]{0} multiply(%p, %p)
}

ENTRY %main (w: f32[64], n: s32[]) -> (f32[64], f32[64]) {
  %w = f32[64]{0} parameter(0)
  %n = s32[] parameter(1)
  %square = f32[64]{0} fusion(%w), kind=kLoop, calls=%fused
  %both = (f32[64]{0}, f32[64]{0}) fusion(%square, %w), kind=kLoop, calls=%fused
  %one = f32[64]{0} get-tuple-element(%both), index=0
  %copy = f32[64]{0} copy(%one)
  ROOT %tuple = (f32[64]{0}, f32[64]{0}) tuple(%copy, %one)
}
"""


def test_kernels_are_what_runs_and_their_bytes_what_they_read_and_write():
    assert read(HLO, 64) == {
        "kernels": 3,
        "conditionals": 0,
        # The square 2, both 4, the copy 2 arrays of as many floats as parameters.
        "bytes_of_parameter": 4 * (2 + 4 + 2),
    }


def test_what_may_not_run_moves_no_known_number_of_bytes():
    text = HLO.replace(" copy(%one)", " conditional(%n, %one, %one)")
    assert read(text, 64)["conditionals"] == 1
    assert read(text, 64)["bytes_of_parameter"] is None


def test_without_the_plug_in_the_command_says_what_to_install(monkeypatch):
    def compile_step(name, model):
        raise AssertionError("it began to work")

    monkeypatch.setattr(gpu_compile, "compile_step", compile_step)
    monkeypatch.setitem(sys.modules, "jax_plugins", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--smoke"])
    assert str(stopped.value.code).startswith("error: ")
    assert ADVICE in stopped.value.code


@pytest.mark.slow("compiles two steps")
@pytest.mark.skipif(not is_installed(), reason=f"no plug-in for CUDA: {ADVICE}")
def test_the_command_prints_and_stores_a_row_for_every_optimizer(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "experiments", "gpu_compile", "--smoke"]
    environment = {**os.environ, "COLUMNS": "80"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [*command, "--json", str(file), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    rows = {row["optimizer"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["optax.adamw", "normalized"]
    for row in rows.values():
        assert row["conditionals"] == 0 and row["kernels"] > 0
    moved = {name: row["bytes_of_parameter"] for name, row in rows.items()}
    assert 28 <= moved["optax.adamw"] < 29 and moved["normalized"] > 32
