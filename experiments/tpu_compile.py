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

takes about five minutes on two CPU cores. There libtpu 0.0.52 gave optax.adamw 28 bytes
of main memory for each parameter and step, AdamSRT 21 to 22, AdamS 20 to 21 and
NovoGrad 21: what two passes read stays on the chip between them. Alone none of them
exchanges anything, but under FSDP NovoGrad a number for each split leaf. The
data-parallel training step has 36 sums over chips of 22 MB in all, the gradients and
BatchNorm's statistics. Under FSDP on 4 chips it gathers 22 MB, scatters 5.5 MB of the
gradients' sums and leaves 17 MB of sums whole; on 256 chips sums do the gathering too,
43 MB in all. Of the peak of 0.8 GB, 0.15 are the data set and 0.6 its copy in another
layout, made anew in each step.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import hlo, provenance
from experiments.models import MODELS
from experiments.placed_steps import (
    abstract_model,
    lower_optimizer_step,
    lower_training_step,
    size_of_shard,
)
from experiments.placement import fully_sharded, replicated
from experiments.runs import write_json
from experiments.step_time import CASES

IMAGES_PER_CHIP = {"v5e:2x2": 32, "v5e:16x16": 4}
BASELINE = "optax.adamw"
OPTIMIZERS = (BASELINE, "adamsrt", "adams", "novograd")
WAYS = {"data-parallel": replicated, "FSDP": fully_sharded}
STEP = "training step"

# Without these the library looks for the chips of this machine and waits for a metadata
# server that only Google's machines have.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Its lock is for the chips: without them, processes need not wait for each other.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

Row = dict[str, Any]


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
    """A file for the rows, written after each of them."""


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
    origin = provenance.describe()
    origin["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    console, rows = Console(), []
    console.print(f"JAX {jax.__version__}, libtpu {origin['versions']['libtpu']}")
    for row in measure(config):
        rows.append(row)
        console.print(
            f"{row['topology']}, {row['way']}: {row['program']} compiled in "
            f"{row['compile_seconds']:.0f} s",
            highlight=False,
        )
        if config.json is not None:
            write_json(config.json, {"rows": rows, "provenance": origin})
    for table in (programs, traffic, exchanges):
        console.print(table({"rows": rows}))


def measure(config: TpuCompileConfig) -> Iterator[Row]:
    """Compile one program after the other.

    Args:
        config: which model, and for which chips.

    Yields:
        A row a program: seconds of compiling; bytes of its arguments, of outputs that
        no donated argument makes room for, of temporaries and of the peak; operations,
        bytes accessed and the parameters that lie on one chip; the collectives; and for
        an optimizer the bytes that go to and from the chip's main memory.
    """
    for topology in config.topologies:
        images = 2 if config.smoke else IMAGES_PER_CHIP[topology]
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
        mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
        for way in WAYS:
            network, params, model_state = abstract_model(config.model)
            params = WAYS[way](params, mesh)
            made = {name: CASES[name].make() for name in OPTIMIZERS}
            programs = {
                name: lower_optimizer_step(optimizer, params)
                for name, optimizer in made.items()
            }
            programs[STEP] = lower_training_step(
                network, params, model_state, made["adamsrt"], mesh, images * mesh.size
            )
            for program, lowered in programs.items():
                began = time.perf_counter()
                compiled = lowered.compile()
                seconds = time.perf_counter() - began
                yield {
                    "topology": topology,
                    "chips": mesh.size,
                    "way": way,
                    "model": config.model,
                    "program": program,
                    "images_of_chip": images,
                    "parameters_of_chip": size_of_shard(params),
                    "compile_seconds": seconds,
                    **read(compiled, mesh.size),
                    "main_memory_bytes": None
                    if program == STEP
                    else hlo.main_memory_bytes(compiled.as_text()),
                }


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


def programs(stored: Mapping[str, Any]) -> Table:
    """Return seconds, memory, bytes and operations of each program."""
    table = _empty(
        "programs, a chip",
        "MB of arguments, of temporaries, at the peak, and accessed by XLA's count",
        ("s", "args", "temp", "peak", "all", "GFLOP"),
    )
    for row in stored["rows"]:
        memory = (row[f"{part}_bytes"] for part in ("argument", "temporary", "peak"))
        table.add_row(
            *_names(row),
            f"{row['compile_seconds']:.0f}",
            *(f"{size / 1e6:.0f}" for size in memory),
            f"{row['bytes_accessed'] / 1e6:.0f}",
            f"{row['operations'] / 1e9:.2f}",
        )
    return table


def traffic(stored: Mapping[str, Any]) -> Table:
    """Return the bytes that each optimizer's step moves, for each parameter."""
    table = _empty(
        "an optimizer's step, a chip",
        f"bytes a parameter there, and the ratio to {BASELINE}: of main memory alone, "
        "and accessed by XLA's count",
        ("parameters", "main", "ratio", "all", "ratio"),
    )
    alone = {_names(row): row for row in stored["rows"] if row["program"] != STEP}
    for (*where, program), row in alone.items():
        baseline, cells = alone[*where, BASELINE], []
        for count in ("main_memory_bytes", "bytes_accessed"):
            cells.append(f"{row[count] / row['parameters_of_chip']:.1f}")
            cells.append(f"{row[count] / baseline[count]:.2f}")
        table.add_row(*where, program, f"{row['parameters_of_chip']:,}", *cells)
    return table


def exchanges(stored: Mapping[str, Any]) -> Table:
    """Return what the chips exchange in each program."""
    table = _empty("collectives", None, ("kind", "count", "MB"))
    for row in stored["rows"]:
        for found in row["collectives"] or [{"kind": "none", "count": 0, "bytes": 0}]:
            table.add_row(
                *_names(row),
                found["kind"],
                str(found["count"]),
                f"{found['bytes'] / 1e6:.3f}",
            )
    return table


def _empty(title: str, caption: str | None, numbers: Sequence[str]) -> Table:
    # Without rules between columns it fits a terminal of 80.
    table = Table(
        *("chips", "way", "program"),
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _names(row: Row) -> tuple[str, str, str]:
    return row["topology"], row["way"], row["program"]
