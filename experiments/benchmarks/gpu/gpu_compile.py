"""Compile optimizer steps for an H100 that is not there, and count what it would do.

JAX's plug-in for CUDA compiles for a described GPU on any machine. Compiled is the step
of every optimizer of `step_time` (`update` and `apply_updates` on donated float32
buffers) on the shapes of ResNet-18. Counted are the kernels, what they read and write
(a GPU keeps none of it between two of them, but for what its cache of 50 MB still has),
the temporaries, and the conditionals, at each of which the GPU waits for its host.
Nothing is run. Not to have JAX look for a GPU in everything else that it does, install
the plug-in in an environment of its own:

    pip install -e '.[experiments,gpu-compile]' -c constraints.txt
    python -m experiments gpu_compile --json experiments/results/gpu_compile.json

takes about three minutes on two CPU cores; the same command again goes on with the
optimizers that are left. No step has a conditional.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
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

from experiments.benchmarks.step_time import CASES
from experiments.benchmarks.tpu import hlo
from experiments.benchmarks.tpu.placed_steps import (
    abstract_model,
    lower_optimizer_step,
    size_of_shard,
)
from experiments.models import MODELS
from experiments.training import provenance
from experiments.training.measuring import (
    make_room_for,
    measure_parts,
    one_line_errors,
)
from experiments.training.placement import replicated
from experiments.training.runs import write_json

PLUGIN = "jax-cuda12-plugin"
# What the compiler asks of an H100 SXM, from NVIDIA's data sheet and CUDA's tables of
# compute capability 9.0: bytes, bytes a second, GHz.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
}
"""
# They name what is there: no kernel is run for them.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([a-z][a-z-]*)\(", re.M)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GpuCompileConfig:
    """What to compile."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """Whose shapes."""
    optimizers: tuple[Literal[tuple(CASES)], ...] = tuple(CASES)  # type: ignore[valid-type]
    """Whose steps."""
    smoke: bool = False
    """ResNet-8, two optimizers."""
    json: Path | None = None
    """A file for the rows."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Compile again what is finished."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    prog = "python -m experiments gpu_compile"
    config = tyro.cli(GpuCompileConfig, args=args, prog=prog)
    if not is_installed():
        sys.exit(
            f"error: compiling for GPUs needs the package {PLUGIN}, in an environment "
            "of its own: pip install -e '.[experiments,gpu-compile]' -c constraints.txt"
        )
    if config.smoke:
        config = dataclasses.replace(
            config, model="resnet8", optimizers=("optax.adamw", "normalized")
        )
    # The plug-in would say that it finds no driver, and JAX look for a GPU to run on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    console, plugin = Console(), importlib.metadata.version(PLUGIN)
    console.print(f"JAX {jax.__version__}, {PLUGIN} {plugin}")
    with one_line_errors():
        make_room_for(config.json)
        source = provenance.describe()
        source["versions"][PLUGIN] = plugin
        rows = measure_parts(
            config,
            "gpu_compile",
            {"model": config.model, "plugin": plugin},
            config.optimizers,
            lambda name: compile_step(name, config.model),
            console,
        )
        stored = {"provenance": source, "rows": list(rows.values())}
        if config.json is not None:
            write_json(config.json, stored)
    console.print(table(stored))


def is_installed() -> bool:
    """Tell whether JAX's plug-in for CUDA is there."""
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda12") is not None
    except ModuleNotFoundError:
        return False


def compile_step(name: str, model: str) -> Row:
    """Compile the step of an optimizer of `step_time`.

    Returns:
        Its name; seconds of compiling; kernels and conditionals; bytes a parameter that
        the kernels move, None if some of them may not run, and bytes of temporaries.
    """
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology="1x1x1"
    )
    mesh = Mesh(np.asarray(topology.devices), ("data",), axis_types=(AxisType.Auto,))
    _, params, _ = abstract_model(model)
    params = replicated(params, mesh)
    lowered = lower_optimizer_step(CASES[name].make(), params)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return {
        "optimizer": name,
        "compile_seconds": seconds,
        "temporary_bytes": memory.temp_size_in_bytes,
        **read(compiled.as_text(), size_of_shard(params)),
    }


def read(text: str, parameters: int) -> Row:
    """Count what stands in the text of a compiled program."""
    conditionals = len(re.findall(r" conditional\(", text))
    entry = text[text.index("\nENTRY ") :]
    kernels = [one for one in _OPERATION.findall(entry) if one not in _FREE]
    moved = None if conditionals else hlo.main_memory_bytes(text) / parameters
    return {
        "kernels": len(kernels),
        "conditionals": conditionals,
        "bytes_of_parameter": moved,
    }


def table(stored: Mapping[str, Any]) -> Table:
    """Return a row for each optimizer."""
    # Without rules between columns it fits a terminal of 80.
    shown = Table(
        "optimizer",
        title="a step, compiled for an H100",
        caption="bytes a parameter that kernels move, and the fewest that would do",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("s", "kernels", "conditionals", "temp MB", "bytes", "least"):
        shown.add_column(name, justify="right")
    for row in stored["rows"]:
        moved = row["bytes_of_parameter"]
        shown.add_row(
            row["optimizer"],
            f"{row['compile_seconds']:.0f}",
            str(row["kernels"]),
            str(row["conditionals"]),
            f"{row['temporary_bytes'] / 1e6:.1f}",
            "-" if moved is None else f"{moved:.1f}",
            str(CASES[row["optimizer"]].traffic),
        )
    return shown
