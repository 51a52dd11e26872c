"""Compile training steps for TPUs that are not there, and read what a chip would do.

The `libtpu` package compiles for a described topology on any machine. Compiled are the
whole training step of CIFAR-10, from the batch's augmentation to AdamSRT's new weights,
computing in bfloat16 on float32 weights, with the data set on every chip as `train` has
it; and the optimizer's step alone (`update` and `apply_updates` on donated float32
buffers) of AdamSRT, AdamS, NovoGrad and optax.adamw. Data-parallel, every chip has all
weights. Under FSDP each weight is split along its longest axis that the chips divide
(of equally long ones the last: the output channels, whose blocks then stay whole), its
optimizer state by `normopt.state_sharding`, and each step gathers a bfloat16 copy.
A batch is of 128 images on 4 chips and of 1,024 on 256; BatchNorm is over all of it.
Numbers are the compiler's own and of one chip; nothing is run.

    pip install -e '.[experiments,tpu-compile]' -c constraints.txt
    python -m experiments tpu_compile --json experiments/results/tpu_compile.json

takes about four minutes on two CPU cores. The same command again compiles what the file
does not have yet, if commit and packages are the same and no file differs from the
commit. There libtpu 0.0.52 gave optax.adamw 28 bytes of main memory for each parameter
and step, AdamSRT 21 to 22, AdamS 20 to 21 and NovoGrad 21: what two passes read stays
on the chip between them. Alone none of them exchanges anything, but under FSDP NovoGrad
a number for each split leaf. The data-parallel training step has 36 sums over chips of
22 MB in all, the gradients and BatchNorm's statistics. Under FSDP on 4 chips it gathers
22 MB, scatters 5.5 MB of the gradients' sums and leaves 17 MB of sums whole; on 256
chips sums do the gathering too, 43 MB in all. At its peak the step has 0.23 to 0.36 GB,
of which 0.15 are the data set. Were that images instead of rows, the peak would be 0.78
to 0.86: with a copy in another layout, made anew in each step.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from rich.console import Console

from experiments import hlo, provenance
from experiments.models import MODELS
from experiments.placed_steps import (
    abstract_model,
    lower_optimizer_step,
    lower_training_step,
    size_of_shard,
)
from experiments.placement import fully_sharded, replicated
from experiments.progress import counted
from experiments.runs import write_json
from experiments.step_time import CASES
from experiments.tpu_tables import BASELINE, STEP, Row, exchanges, programs, traffic

IMAGES_PER_CHIP = {"v5e:2x2": 32, "v5e:16x16": 4}
OPTIMIZERS = (BASELINE, "adamsrt", "adams", "novograd")
WAYS = {"data-parallel": replicated, "FSDP": fully_sharded}
PROGRAMS = (*OPTIMIZERS, STEP)

# Without these the library looks for the chips of this machine and waits for a metadata
# server that only Google's machines have.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Its lock is for the chips: without them, processes need not wait for each other.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class TpuCompileConfig:
    """What to compile, and for which chips."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """Whose training step."""
    topologies: tuple[Literal[tuple(IMAGES_PER_CHIP)], ...] = tuple(IMAGES_PER_CHIP)  # type: ignore[valid-type]
    """The chips and how they are wired."""
    smoke: bool = False
    """ResNet-8 on the first topology, with two images on each chip."""
    json: Path | None = None
    """A file for the rows, written after each of them; those in it are not compiled
    again."""


class Program(NamedTuple):
    """What is compiled, by the names that its row has.

    Attributes:
        topology: the chips and how they are wired.
        way: how the weights are placed.
        program: an optimizer's step, or the training step.
        model: whose.
        images_of_chip: the part of the batch on each chip.
    """

    topology: str
    way: str
    program: str
    model: str
    images_of_chip: int


def main(args: Sequence[str]) -> None:
    """Print the tables that the command line asks for."""
    prog = "python -m experiments tpu_compile"
    config = tyro.cli(TpuCompileConfig, args=args, prog=prog)
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "error: compiling for TPUs needs the package libtpu: pip install -e "
            "'.[experiments,tpu-compile]' -c constraints.txt"
        )
    if config.smoke:
        first = config.topologies[:1]
        config = dataclasses.replace(config, model="resnet8", topologies=first)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # JAX would otherwise look for chips to run on.
    jax.config.update("jax_platforms", "cpu")
    console, source, rows = Console(), origin(), []
    console.print(f"JAX {jax.__version__}, libtpu {source['versions']['libtpu']}")
    known = known_rows(config.json, source)
    for program in counted(programs_of(config), console, "programs"):
        if program in known:
            rows.append(known[program])
            continue
        rows.append(compile_program(program))
        console.print(in_words(rows[-1]), highlight=False)
        if config.json is not None:
            write_json(config.json, {"rows": rows, "provenance": source})
    for table in (programs, traffic, exchanges):
        console.print(table({"rows": rows}))


def origin() -> dict[str, Any]:
    """Return what compiles: as of any result, and the version of libtpu."""
    source = provenance.describe()
    source["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    return source


def known_rows(path: Path | None, source: Mapping[str, Any]) -> dict[Program, Row]:
    """Return the rows that an interrupted command left.

    Args:
        path: of its file, if any.
        source: what compiles now. Where it is not the file's, the rows are out of date,
            and where files differ from the commit, nobody can tell.
    """
    commit = source["commit"]
    if path is None or not path.exists() or commit is None or commit.endswith("+"):
        return {}
    stored = json.loads(path.read_text())
    if stored["provenance"] != source:
        return {}
    return {Program(*(r[k] for k in Program._fields)): r for r in stored["rows"]}


def programs_of(config: TpuCompileConfig) -> list[Program]:
    """Return what to compile, in order."""
    return [
        Program(
            topology,
            way,
            program,
            config.model,
            2 if config.smoke else IMAGES_PER_CHIP[topology],
        )
        for topology, way, program in itertools.product(
            config.topologies, WAYS, PROGRAMS
        )
    ]


def compile_program(program: Program) -> Row:
    """Compile a program.

    Returns:
        Its names; seconds of compiling; bytes of its arguments, of outputs that no
        donated argument makes room for, of temporaries and of the peak; operations,
        bytes accessed and the parameters that lie on one chip; the collectives; and for
        an optimizer the bytes that go to and from the chip's main memory.
    """
    mesh = _mesh(program.topology)
    network, params, model_state = _model(program.model)
    params = WAYS[program.way](params, mesh)
    if program.program == STEP:
        batch = program.images_of_chip * mesh.size
        adamsrt = CASES["adamsrt"].make()
        lowered = lower_training_step(
            network, params, model_state, adamsrt, mesh, batch
        )
    else:
        lowered = lower_optimizer_step(CASES[program.program].make(), params)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    return {
        **program._asdict(),
        "chips": mesh.size,
        "parameters_of_chip": size_of_shard(params),
        "compile_seconds": seconds,
        **read(compiled, mesh.size),
        "main_memory_bytes": None
        if program.program == STEP
        else hlo.main_memory_bytes(compiled.as_text()),
    }


@functools.cache
def _mesh(topology: str) -> Mesh:
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


@functools.cache
def _model(name: str) -> Any:
    return abstract_model(name)


def read(compiled: jax.stages.Compiled, chips: int) -> Row:
    """Return what the compiler says of one chip's part of a program."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "operations": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": hlo.collectives(compiled.as_text(), chips),
    }


def in_words(row: Row) -> str:
    """Return a line that says what was compiled, and in how many seconds."""
    where = f"{row['topology']}, {row['way']}"
    return f"{where}: {row['program']} compiled in {row['compile_seconds']:.0f} s"
