"""Compiling for TPUs: what is read from the compiler, and what is said without it."""

import copy
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from experiments.benchmarks.step_time import CASES
from experiments.benchmarks.tpu import tpu_compile
from experiments.benchmarks.tpu.hlo import collectives, main_memory_bytes
from experiments.benchmarks.tpu.placed_steps import (
    IMAGE,
    TRAINING_IMAGES,
    abstract_model,
    lower_training_step,
    size_of_shard,
)
from experiments.benchmarks.tpu.tpu_compile import (
    ENVIRONMENT,
    OBSERVED,
    PROGRAMS,
    WAYS,
    main,
)
from experiments.benchmarks.tpu.tpu_tables import BASELINE, STEP
from experiments.training import provenance
from experiments.training.placement import fully_sharded, replicated

ROOT = Path(__file__).parents[4]
CLEAN = {"commit": "a" * 40, "versions": {}, "devices": {"cpu": 1}}
MISSING = importlib.util.find_spec("libtpu") is None
ADVICE = "pip install -e '.[experiments,tpu-compile]' -c constraints.txt"
FOUR = AbstractMesh((4,), ("data",))
SHAPES = {
    "kernel": (3, 3, 8, 16),
    "square": (3, 3, 16, 16),
    "head": (64, 10),
    "bias": (10,),
}

# As the TPU's compiler writes it: a gathering that other work hides stands there three
# times with one channel, and a sum of which each chip keeps a part is a fusion.
HLO = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.4 (input_0: f32[8,16], input_1: f32[4]) -> (f32[8,4], f32[1]) {
  %all-reduce.9 = (f32[8,16]{1,0:T(8,128)}, /*index=1*/f32[4]{0}) all-reduce(%a, %b), channel_id=9, to_apply=%add
  ROOT %slice = (f32[8,4]{1,0}, f32[1]{0}) fusion(%all-reduce.9)
}

%async_collective_fusion.1 (param: bf16[3,2]) -> bf16[3,8] {
  ROOT %all-gather.1 = bf16[3,8]{1,0:T(8,128)(2,1)} all-gather(%param), channel_id=6, dimensions={1}
}

%async_collective_fusion.2 (param: bf16[3,2]) -> bf16[3,8] {
  ROOT %all-gather.2 = bf16[3,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%param), channel_id=6, dimensions={1}
}

ENTRY %main (p: f32[2]) -> f32[] {
  %all-reduce.1 = (f32[16]{0:T(128)S(1)}, f32[16]{0:T(128)S(1)}) all-reduce(%x, %y), channel_id=1, metadata={op_name="all-reduce(x)"}
  %all-reduce.2 = s32[]{:T(128)} all-reduce(%z), channel_id=2
  %reduce-scatter.1 = f32[2]{0} reduce-scatter(%w), channel_id=3, dimensions={0}
  %collective-permute-start.1 = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%v), channel_id=4
  %collective-permute-done.1 = f32[4]{0} collective-permute-done(%collective-permute-start.1)
  ROOT %sum = f32[] fusion(%all-reduce.2), calls=%all-reduce-fusion
}
"""  # noqa: E501

STEP_HLO = """HloModule jit_step

%fused (a: f32[64], b: f32[64]) -> f32[64] {
  ROOT %sum = f32[64]{0} add(%a, %b)
}

ENTRY %main (p: f32[64], g: f32[64], n: f32[16]) -> (f32[64], f32[16]) {
  %p = f32[64]{0:T(128)} parameter(0), metadata={op_name="p"}
  %g = f32[64]{0:T(128)} parameter(1)
  %n = f32[16]{0:T(128)} parameter(2)
  %copy-start = (f32[64]{0:T(128)S(1)}, f32[64]{0:T(128)}, u32[]{:S(2)}) copy-start(%g)
  %copy-done = f32[64]{0:T(128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[64]{0:T(128)}), f32[32]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:32]}
  %slice-done = f32[32]{0:T(128)S(1)} slice-done(%slice-start)
  %slice-start.1 = ((f32[64]{0:T(128)}), f32[32]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[32:64]}
  %slice-done.1 = f32[32]{0:T(128)S(1)} slice-done(%slice-start.1)
  %whole = f32[64]{0:T(128)S(1)} custom-call(%slice-done, %slice-done.1), custom_call_target="ConcatBitcast"
  %both = (f32[64]{0:T(128)S(1)}, f32[16]{0:T(128)}) fusion(%whole, %copy-done, %n), calls=%fused, metadata={op_name="f(x)"}
  %new = f32[64]{0:T(128)S(1)} get-tuple-element(%both), index=0
  %count = f32[16]{0:T(128)} get-tuple-element(%both), index=1
  %some = (f32[64]{0:T(128)}) conditional(%is_time, %count, %p), branch_computations={%no, %yes}
  %copy-start.1 = (f32[64]{0:T(128)}, f32[64]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%new)
  %copy-done.1 = f32[64]{0:T(128)} copy-done(%copy-start.1)
  ROOT %tuple = (f32[64]{0:T(128)}, f32[16]{0:T(128)}) tuple(%copy-done.1, %count)
}
"""  # noqa: E501


def shapes():
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
    }


def specs(params):
    return {name: tuple(leaf.sharding.spec) for name, leaf in params.items()}


def test_without_libtpu_the_command_says_what_to_install(monkeypatch):
    def compile_program(program):
        raise AssertionError("it began to work")

    monkeypatch.setattr(tpu_compile, "compile_program", compile_program)
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--smoke"])
    assert str(stopped.value.code).startswith("error: ")
    assert ADVICE in stopped.value.code


@pytest.mark.slow("a process for what another test says of this one")
@pytest.mark.skipif(not MISSING, reason="libtpu is installed")
def test_without_libtpu_the_command_exits_with_1_and_writes_nothing(tmp_path):
    file = tmp_path / "rows.json"
    done = run("--json", str(file), "--out", str(tmp_path))
    assert done.returncode == 1
    assert ADVICE in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow("compiles every program")
@pytest.mark.skipif(MISSING, reason=f"libtpu is not installed: {ADVICE}")
def test_the_command_prints_and_stores_a_row_for_every_program(tmp_path):
    file = tmp_path / "rows.json"
    done = run("--smoke", "--json", str(file), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    stored = json.loads(file.read_text())
    assert stored["provenance"]["versions"]["libtpu"]
    rows = {(row["way"], row["program"]): row for row in stored["rows"]}
    assert set(rows) == {(way, name) for way in WAYS for name in PROGRAMS}
    for (way, name), row in rows.items():
        assert row["peak_bytes"] >= row["argument_bytes"] > 0
        # What is donated is taken: only small things come out beside it.
        assert row["output_bytes"] < 1e5
        # Blocks of channels stay whole. NovoGrad's are leaves, of which the parts
        # have a number each to add, and so are some that are observed.
        split = {"novograd", *OBSERVED} if way == "FSDP" else set()
        assert bool(row["collectives"]) == (name in {STEP, *split}), (way, name)
    (sums,) = rows["FSDP", "novograd"]["collectives"]
    assert sums["kind"] == "all-reduce" and sums["bytes"] < 4 * 30
    # The data set lies there and is not copied to take a batch of it.
    size = TRAINING_IMAGES * math.prod(IMAGE)
    for way in WAYS:
        step = rows[way, STEP]
        assert step["argument_bytes"] > size
        assert step["temporary_bytes"] < 0.1 * size
    sizes = {way: rows[way, BASELINE]["parameters_of_chip"] for way in WAYS}
    assert sizes["FSDP"] < 0.3 * sizes["data-parallel"]
    kinds = {
        way: {found["kind"] for found in rows[way, STEP]["collectives"]} for way in WAYS
    }
    assert kinds["data-parallel"] == {"all-reduce"} and "all-gather" in kinds["FSDP"]


def run(*arguments):
    # On the flags of the tests, which are those of a CPU, libtpu would abort.
    environment = {**os.environ, "COLUMNS": "80"}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments", "tpu_compile", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.fixture
def compiled(monkeypatch):
    """The programs that the command compiles, up to as many as the test lets it."""
    done = []

    def compile_program(program):
        if len(done) == done_at_most[0]:
            raise KeyboardInterrupt
        done.append(program)
        return {
            **program._asdict(),
            "chips": 4,
            "parameters_of_chip": 10,
            "compile_seconds": 1.0,
            "main_memory_bytes": 280,
            "collectives": [],
            **dict.fromkeys(("argument_bytes", "temporary_bytes", "peak_bytes"), 1),
            **dict.fromkeys(("bytes_accessed", "operations"), 1),
        }

    done_at_most = [None]
    monkeypatch.setattr(tpu_compile, "compile_program", compile_program)
    library = types.ModuleType("libtpu")
    library.__spec__ = ModuleSpec("libtpu", None)
    monkeypatch.setitem(sys.modules, "libtpu", library)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def compiled(file, *arguments, of=CLEAN, libtpu="1", at_most=None):
        done.clear()
        done_at_most[0] = at_most
        monkeypatch.setattr(provenance, "describe", lambda: copy.deepcopy(of))
        monkeypatch.setattr(importlib.metadata, "version", lambda _: libtpu)
        command = ["--json", str(file), "--out", str(file.parent), *arguments]
        if at_most is None:
            main(command)
        else:
            with pytest.raises(SystemExit, match="interrupted; the same command"):
                main(command)
        return list(done)

    return compiled


def test_a_killed_command_goes_on_where_it_was(compiled, tmp_path):
    whole = compiled(tmp_path / "at once" / "rows.json")
    assert len(whole) == len(set(whole)) == 2 * len(WAYS) * len(PROGRAMS)
    file = tmp_path / "rows.json"
    assert compiled(file, at_most=7) == whole[:7]
    assert compiled(file, at_most=2) == whole[7:9]
    assert compiled(file) == whole[9:]
    assert json.loads(file.read_text()) == json.loads(
        (tmp_path / "at once" / "rows.json").read_text()
    )
    assert compiled(file) == []
    # Nothing of the smaller model is known.
    assert {program.model for program in compiled(file, "--smoke")} == {"resnet8"}


def test_what_another_libtpu_compiled_is_compiled_again(compiled, tmp_path):
    file = tmp_path / "rows.json"
    compiled(file, at_most=3)
    assert len(compiled(file, libtpu="2")) == 2 * len(WAYS) * len(PROGRAMS)
    versions = json.loads(file.read_text())["provenance"]["versions"]
    assert versions == {"libtpu": "2"}


def test_an_exchange_counts_once_and_with_the_whole_array():
    assert collectives(HLO, 4) == [
        {"kind": "all-reduce", "count": 2, "bytes": 2 * 16 * 4 + 4},
        {"kind": "reduce-scatter", "count": 2, "bytes": (8 * 16 + 4) * 4 + 4 * 2 * 4},
        {"kind": "all-gather", "count": 1, "bytes": 3 * 8 * 2},
        {"kind": "collective-permute", "count": 1, "bytes": 4 * 4},
    ]


def test_a_program_without_exchanges_has_none():
    assert collectives("ENTRY %main {\n  %all-reduce-x = f32[] add(%a, %b)\n}", 4) == []


def test_main_memory_is_what_does_not_lie_on_the_chip():
    assert main_memory_bytes(STEP_HLO) == 4 * (
        64  # of %g to the chip, where it stays
        + 2 * 32  # of %p in two slices
        + 64  # of what is new from the chip
        + (16 + 16)  # %n is read and %count written
    )


def test_every_parameter_is_split_along_its_longest_axis():
    params = fully_sharded(shapes(), FOUR)
    assert specs(params) == {
        "kernel": (None, None, None, "data"),
        "square": (None, None, None, "data"),
        "head": ("data",),
        "bias": (),
    }
    assert size_of_shard(params) == (9 * 8 * 16 + 9 * 256 + 640) // 4 + 10


def test_data_parallel_parameters_are_whole_on_each_chip():
    params = replicated(shapes(), FOUR)
    assert set(specs(params).values()) == {()}
    assert size_of_shard(params) == 9 * 8 * 16 + 9 * 256 + 640 + 10


def test_the_training_step_computes_in_bfloat16_on_float32_weights():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    network, params, model_state = abstract_model("resnet8")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    params = fully_sharded(params, mesh)
    optimizer = CASES["adamsrt"].make()
    lowered = lower_training_step(network, params, model_state, optimizer, mesh, 4)
    lines = [line for line in lowered.as_text().split("\n") if ".convolution(" in line]
    # Seven convolutions and both gradients of each, but for the images' own.
    assert len(lines) == 7 * 3 - 1
    assert all(
        "bf16" in line and "f32" not in line.replace("bf16", "") for line in lines
    )
    state, _ = lowered.out_info
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        *(np.dtype("float32"), np.dtype("int32"))
    }
