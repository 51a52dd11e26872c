"""Measure the bytes of state per parameter, of every optimizer here and optax's.

The claim of Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive
Moments for Training of Deep Networks", 2019, arXiv 1905.11286, abstract: NovoGrad's
memory footprint is half of Adam's. Each optimizer is given a network's parameters, in
float32 and in bfloat16, makes one step, and the bytes of the arrays in its state are
counted. Blocks are the output channels of the convolutions where an optimizer has none
unless told; NovoGrad has one a layer.

    python -m experiments novograd_2019.memory \
        --json experiments/results/novograd_2019/memory.json

takes half a minute on two CPU cores; what is finished stays, and the same command goes
on. There, on ResNet-18, NovoGrad and AdamSRT kept 4.0 bytes for each float32 parameter,
and optax.adamw 8.0. For a bfloat16 parameter NovoGrad kept 2.0 and optax.adamw 4.0, but
AdamW, NadamW and AdamP here 6.0: their second moments are float32, because 0.999 v
rounds to v in bfloat16.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console

import normopt
from experiments.config import Stored
from experiments.models import MODELS
from experiments.models.parameters import random_parameters
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.tables import Table
from experiments.training import provenance
from experiments.training.measuring import (
    make_room_for,
    measure_parts,
    one_line_errors,
)
from experiments.training.runs import write_json

CONVOLUTIONS = {r"conv\d?/kernel$": (-1,)}
MOMENTUM = 0.9
RATE = 1e-3
BASELINE = "optax.adamw"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Whose parameters to hand over."""

    model: Literal[tuple(MODELS)] = "resnet18"  # type: ignore[valid-type]
    """The network."""
    smoke: bool = False
    """Whether to take the smallest network instead."""
    json: Path | None = None
    """A file for the records."""
    out: Path = Path("runs/novograd_2019")
    """The folder for what is finished, from where the same command goes on."""
    fresh: bool = False
    """Measure again what is finished."""


def main(args: Sequence[str]) -> None:
    """Print the table that the command line asks for."""
    command = "python -m experiments novograd_2019.memory"
    config = tyro.cli(MemoryConfig, args=args, prog=command)
    if config.smoke:
        config = dataclasses.replace(config, model="resnet8")
    params, console = random_parameters(config.model), Console()
    with one_line_errors():
        make_room_for(config.json)
        stored = {
            "provenance": provenance.describe(),
            "model": config.model,
            "parameters": optax.tree.size(params),
            "rows": measure(config, params, console),
        }
        if config.json is not None:
            write_json(config.json, stored)
    console.print(table(stored))


def optimizers() -> dict[str, Callable[[], optax.GradientTransformation]]:
    """Return how to build every optimizer, ours by name and three of optax."""

    def ours(name: str) -> Callable[[], optax.GradientTransformation]:
        return lambda: normopt.make(name=name, **_options(name))

    theirs = {
        BASELINE: lambda: optax.adamw(RATE),
        "optax.sgd": lambda: optax.sgd(RATE, momentum=MOMENTUM),
        "optax.novograd": lambda: optax.novograd(RATE),
    }
    return theirs | {name: ours(name) for name in normopt.names()}


def measure(config: MemoryConfig, params: Any, console: Console) -> list[Row]:
    """Count the bytes of each optimizer's state after one step, if not done yet.

    Args:
        config: whose parameters they are.
        params: in float32; they are cast to measure bfloat16.
        console: gets a bar, and a line for each optimizer.

    Returns:
        One row an optimizer: bytes of state for a parameter of 4 and of 2 bytes.
    """
    low, build = optax.tree.cast(params, jnp.bfloat16), optimizers()

    def row_of(name: str) -> Row:
        return {
            "optimizer": name,
            "float32": _bytes_a_parameter(build[name](), params),
            "bfloat16": _bytes_a_parameter(build[name](), low),
        }

    settings = {"model": config.model}
    rows = measure_parts(config, "memory", settings, build, row_of, console)
    return list(rows.values())


def _options(name: str) -> dict[str, Any]:
    """Return what an optimizer is built with, from what its configuration takes."""
    sgd = {"name": "sgd", "learning_rate": RATE, "momentum": MOMENTUM}
    wanted: dict[str, Any] = {
        "clipped": {"inner": sgd, "max_norm": 1.0},
        "normalized": {"inner": sgd},
        "hyperball": {"inner": sgd, "learning_rate": RATE},
        "rotational": {"inner": sgd, "learning_rate": RATE},
        "muon": {"learning_rate": RATE, "rest": sgd},
        "normuon": {"learning_rate": RATE, "rest": sgd},
        "scion": {"learning_rate": RATE, "norms": "spectral", "rest": sgd},
    }.get(name, {"learning_rate": RATE})
    options = normopt.config(name, **wanted)
    if options.get("channel_axes", ()) is None:
        wanted["channel_axes"] = CONVOLUTIONS
    if options.get("momentum") == 0:
        wanted["momentum"] = MOMENTUM
    return wanted


def _bytes_a_parameter(optimizer: optax.GradientTransformation, params: Any) -> float:
    def step(params: Any) -> Any:
        return optimizer.update(params, optimizer.init(params), params)[1]

    state = jax.jit(step)(params)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return held / optax.tree.size(params)


def table(stored: Stored) -> Table:
    """Return a row for each optimizer, those with the least state first."""
    (baseline,) = (row for row in stored["rows"] if row["optimizer"] == BASELINE)
    dtypes = ("float32", "bfloat16")
    rows = sorted(stored["rows"], key=lambda row: (row["float32"], row["optimizer"]))
    return Table(
        f"state on {stored['model']}, {stored['parameters']:,} parameters",
        ("optimizer", *(one for d in dtypes for one in (d, f"{d} ratio"))),
        (
            (
                row["optimizer"],
                *(
                    f"{number:.2f}"
                    for dtype in dtypes
                    for number in (row[dtype], row[dtype] / baseline[dtype])
                ),
            )
            for row in rows
        ),
        f"bytes a parameter, by the dtype of the parameters; ratios to {BASELINE} with "
        "the same",
    )


def draw(path: Path, stored: Stored) -> None:
    """Draw the bytes a parameter of each optimizer.

    Args:
        path: the PNG to write.
        stored: the records.
    """
    rows = sorted(stored["rows"], key=lambda row: (-row["float32"], row["optimizer"]))
    names = [row["optimizer"] for row in rows]
    figures.bars(
        path,
        names,
        {
            f"{dtype} parameters": [row[dtype] for row in rows]
            for dtype in ("float32", "bfloat16")
        },
        "bytes of state a parameter",
    )


EXHIBIT = Exhibit(
    extent=lambda stored: f"one step on {stored['model']}; nothing is random",
    note="That NovoGrad keeps one half of Adam's state, the one number that the paper "
    "has, is arithmetic, which a test checks; no claim is counted for it.",
    tables=(table,),
    pictures=(
        Picture(
            "memory",
            "Bytes of state a parameter of every optimizer, for float32 and bfloat16.",
            draw,
        ),
    ),
)
