"""Compile training steps for TPUs that are not there, and read what a chip would do.

The `libtpu` package compiles for a described topology on any machine. Compiled are the
whole training step of CIFAR-10, from the batch's augmentation to AdamSRT's new weights,
computing in bfloat16 on float32 weights, with the data set on every chip as `train` has
it; and the optimizer's step alone (`update` and `apply_updates` on donated float32
buffers) of AdamSRT, AdamS, NovoGrad and optax.adamw, and of AdamW inside `observe`.
Data-parallel, every chip has all weights. Under FSDP each weight is split along its
longest axis that the chips divide (of equally long ones the last: the output channels,
whose blocks then stay whole), its optimizer state by `normopt.state_sharding`, and each
step gathers a bfloat16 copy. A batch is of 128 images on 4 chips and of 1,024 on 256;
BatchNorm is over all of it. Numbers are the compiler's own and of one chip; nothing is
run.

    pip install -e '.[experiments,tpu-compile]' -c constraints.txt
    python -m experiments tpu_compile --json experiments/results/tpu_compile.json

takes about four minutes on two CPU cores; the same command again goes on with the
programs that are left. There libtpu 0.0.52 gave optax.adamw 28 bytes of main memory for
each parameter and step, AdamSRT 21 to 22, AdamS 20 to 21 and NovoGrad 20 to 21: what
two passes read stays on the chip between them. AdamW that is observed has 33 to 34, and
28 in a step that is not. Alone none of them exchanges anything, but under FSDP a number
for each block that is split: NovoGrad one, what is observed five. The data-parallel
training step has 36 sums over chips of 22 MB in all, the gradients and BatchNorm's
statistics. Under FSDP on 4 chips it gathers 22 MB, scatters 5.5 MB of the gradients'
sums and leaves 17 MB of sums whole; on 256 chips sums do the gathering too, 43 MB in
all. At its peak the step has 0.23 to 0.36 GB, of which 0.15 are the data set. Were that
images instead of rows, the peak would be 0.78 to 0.86: with a copy in another layout,
made anew in each step.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from rich.console import Console

from experiments.benchmarks import observe_time
from experiments.benchmarks.step_time import CASES
from experiments.benchmarks.tpu import hlo
from experiments.benchmarks.tpu.placed_steps import (
    abstract_model,
    lower_optimizer_step,
    lower_training_step,
    size_of_shard,
)
from experiments.benchmarks.tpu.tpu_tables import (
    BASELINE,
    STEP,
    Row,
    exchanges,
    programs,
    traffic,
)
from experiments.models import MODELS
from experiments.training import provenance
from experiments.training.devices import WITHOUT_CHIPS as ENVIRONMENT
from experiments.training.measuring import (
    make_room_for,
    measure_parts,
    one_line_errors,
)
from experiments.training.placement import fully_sharded, replicated
from experiments.training.runs import write_json

IMAGES_PER_CHIP = {"v5e:2x2": 32, "v5e:16x16": 4}
OPTIMIZERS = (BASELINE, "adamsrt", "adams", "novograd")
WAYS = {"data-parallel": replicated, "FSDP": fully_sharded}
# AdamW, of which each step is observed, or some are.
OBSERVED = {
    f"observed, {name}": case for name, case in observe_time.CASES.items() if case.step
}
PROGRAMS = (*OPTIMIZERS, *OBSERVED, STEP)


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
    """A file for the rows."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Compile again what is finished."""


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

    def __str__(self) -> str:
        """Name it among the others of a command."""
        return f"{self.topology}, {self.way}, {self.program}"


def main(args: Sequence[str]) -> None:
    """Print the tables that the command line asks for."""
    prog = "python -m experiments tpu_compile"
    config = tyro.cli(TpuCompileConfig, args=args, prog=prog)
    if config.smoke:
        first = config.topologies[:1]
        config = dataclasses.replace(config, model="resnet8", topologies=first)
    compile_and_show(functools.partial(measure, config), config.json)


def compile_and_show(
    measure: Callable[[str, Console], list[Row]], json: Path | None
) -> None:
    """Compile for TPUs that are not there, and print and store what that gives.

    Args:
        measure: from the version of what compiles and a console to the rows.
        json: a file for them.
    """
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "error: compiling for TPUs needs the package libtpu: pip install -e "
            "'.[experiments,tpu-compile]' -c constraints.txt"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # JAX would otherwise look for chips to run on.
    jax.config.update("jax_platforms", "cpu")
    console, libtpu = Console(), importlib.metadata.version("libtpu")
    console.print(f"JAX {jax.__version__}, libtpu {libtpu}")
    with one_line_errors():
        make_room_for(json)
        source = provenance.describe()
        source["versions"]["libtpu"] = libtpu
        stored = {"provenance": source, "rows": measure(libtpu, console)}
        if json is not None:
            write_json(json, stored)
    for table in (programs, traffic, exchanges):
        console.print(table(stored))


def measure(config: TpuCompileConfig, libtpu: str, console: Console) -> list[Row]:
    """Compile all programs, or read those that are finished.

    Args:
        config: which ones.
        libtpu: the version of what compiles.
        console: gets a bar, and a line for each program.

    Returns:
        One row a program, as of `compile_program`.
    """
    named = {str(program): program for program in programs_of(config)}
    return list(
        measure_parts(
            config,
            "tpu_compile",
            {"model": config.model, "smoke": config.smoke, "libtpu": libtpu},
            named,
            lambda name: compile_program(named[name]),
            console,
        ).values()
    )


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
    mesh = mesh_of(program.topology)
    network, params, model_state = _model(program.model)
    params = WAYS[program.way](params, mesh)
    if program.program == STEP:
        batch = program.images_of_chip * mesh.size
        adamsrt = CASES["adamsrt"].make()
        lowered = lower_training_step(
            network, params, model_state, adamsrt, mesh, batch
        )
    else:
        case = (CASES | OBSERVED)[program.program]
        lowered = lower_optimizer_step(case.make(), params)
    return {**program._asdict(), **row_of(lowered, params, mesh, program.program)}


def row_of(lowered: jax.stages.Lowered, params: Any, mesh: Mesh, program: str) -> Row:
    """Compile what is lowered; see `compile_program`.

    Args:
        lowered: an optimizer's step, or the training step.
        params: where they lie.
        mesh: the chips.
        program: its name.
    """
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    return {
        "chips": mesh.size,
        "parameters_of_chip": size_of_shard(params),
        "compile_seconds": seconds,
        **read(compiled, mesh.size),
        "main_memory_bytes": None
        if program == STEP
        else hlo.main_memory_bytes(compiled.as_text()),
    }


@functools.cache
def mesh_of(topology: str) -> Mesh:
    """Return the chips of a topology, along one axis."""
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
