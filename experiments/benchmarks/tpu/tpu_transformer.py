"""Compile optimizer steps of a transformer for TPUs that are not there.

The weights are those of `small` (8 layers, 512 wide, 26 million), whose layers are one
stack; compiled is the step of an optimizer alone, `update` and `apply_updates` on
donated float32 buffers, for v5e chips as `tpu_compile` has them: data-parallel with all
weights on every chip, and under FSDP with each weight split along its longest axis that
the chips divide. AdamSRT has the heads of queries and keys on the sphere; Muon
orthogonalizes each layer's matrices, heads together, and leaves the rest to
optax.adamw; hyperballs have a block for each layer's kernel. Numbers are the compiler's
own and of one chip; nothing is run.

    python -m experiments tpu_transformer \
        --json experiments/results/tpu_transformer.json

takes an hour on two CPU cores, most of it for Muon's steps; `--optimizers` names
others, which take two minutes. The same command again goes on with the programs that
are left. There libtpu 0.0.52 gave optax.adamw 28.0 bytes of main memory for each
parameter and step, hyperballs the same and a radius a block more, and AdamSRT 27.3,
whose queries and keys have one second moment a head. Data-parallel neither exchanges
anything. Under FSDP both sum over the chips what their blocks need: AdamSRT in one
exchange of 1.5 kB, hyperballs in two of 0.9 kB in all. Of Muon's steps the compiler had
not finished the first after seven minutes: it multiplies in the full precision of
float32. One such product of eight matrices of 512 x 512 took 1.5 s of a core to
compile, one in bfloat16 0.3 s, and a whole iteration 8.9 s and 1.1 s. With
`spread="data"` under FSDP on 256 chips, where each has one matrix of a shape at most, a
step took 203 s of a core to compile, and moves 15 MB to a chip in eight all-to-alls.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import tyro
from flax import nnx
from rich.console import Console

import normopt
from experiments.benchmarks.tpu.placed_steps import lower_optimizer_step
from experiments.benchmarks.tpu.tpu_compile import (
    IMAGES_PER_CHIP,
    WAYS,
    compile_and_show,
    mesh_of,
    row_of,
)
from experiments.benchmarks.tpu.tpu_tables import BASELINE, Row
from experiments.models import LANGUAGE_MODELS
from experiments.training.measuring import measure_parts

TOPOLOGIES = tuple(IMAGES_PER_CHIP)
RATE = 1e-3
INVARIANT = {"(query|key)/kernel$": (0, 2)}
MATRICES = {
    "(query|key|value)/kernel$": ((1,), (2, 3)),
    "out/kernel$": ((1, 2), (3,)),
    "dense/.*kernel$": ((1,), (2,)),
}
LAYERS = {"layers/.*kernel$": (0,), "(kernel|embedding)$": ()}

OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    BASELINE: lambda: optax.adamw(RATE),
    "adamsrt": lambda: normopt.adamsrt(RATE, channel_axes=INVARIANT),
    "muon": lambda: normopt.muon(RATE, matrices=MATRICES, rest=optax.adamw(RATE)),
    "hyperball": lambda: normopt.hyperball(optax.adam(RATE), RATE, LAYERS),
}


@dataclasses.dataclass(frozen=True)
class TpuTransformerConfig:
    """What to compile, and for which chips."""

    model: Literal[tuple(LANGUAGE_MODELS)] = "small"  # type: ignore[valid-type]
    """Whose weights, with the layers as one stack."""
    topologies: tuple[Literal[TOPOLOGIES], ...] = TOPOLOGIES  # type: ignore[valid-type]
    """The chips and how they are wired."""
    optimizers: tuple[Literal[tuple(OPTIMIZERS)], ...] = tuple(OPTIMIZERS)  # type: ignore[valid-type]
    """Whose steps; those of Muon take longest to compile."""
    smoke: bool = False
    """The smallest model on the first topology."""
    json: Path | None = None
    """A file for the rows."""
    out: Path = Path("runs")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Compile again what is finished."""


def main(args: Sequence[str]) -> None:
    """Print the tables that the command line asks for."""
    prog = "python -m experiments tpu_transformer"
    config = tyro.cli(TpuTransformerConfig, args=args, prog=prog)
    if config.smoke:
        first = config.topologies[:1]
        config = dataclasses.replace(config, model="nano", topologies=first)
    compile_and_show(functools.partial(measure, config), config.json)


def measure(config: TpuTransformerConfig, libtpu: str, console: Console) -> list[Row]:
    """Compile all steps, or read those that are finished.

    Args:
        config: which ones.
        libtpu: the version of what compiles.
        console: gets a bar, and a line for each step.

    Returns:
        One row a step, as of `tpu_compile.compile_program`.
    """
    named = {
        ", ".join(one): one
        for one in itertools.product(config.topologies, WAYS, config.optimizers)
    }
    settings = {"model": config.model, "smoke": config.smoke, "libtpu": libtpu}

    def compile_step(name: str) -> Row:
        return compile_optimizer(*named[name], config.model)

    found = measure_parts(
        config, "tpu_transformer", settings, named, compile_step, console
    )
    return list(found.values())


def compile_optimizer(topology: str, way: str, program: str, model: str) -> Row:
    """Compile the step of an optimizer.

    Args:
        topology: the chips and how they are wired.
        way: how the weights are placed.
        program: the optimizer.
        model: whose weights.
    """
    mesh = mesh_of(topology)
    params = WAYS[way](stacked_parameters(model), mesh)
    lowered = lower_optimizer_step(OPTIMIZERS[program](), params)
    names = {"topology": topology, "way": way, "program": program, "model": model}
    return {**names, **row_of(lowered, params, mesh, program)}


def stacked_parameters(model: str) -> Any:
    """Return the shapes of a transformer's float32 weights, its layers as one stack."""
    build = functools.partial(LANGUAGE_MODELS[model], scanned=True)
    shapes = nnx.eval_shape(lambda: build(num_classes=256, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    )
