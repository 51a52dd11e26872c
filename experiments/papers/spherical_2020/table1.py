"""Train the cells of Table 1 over several seeds and print them beside the paper's.

Roburin et al., "Spherical Perspective on Learning with Normalization Layers", 2020,
arXiv 2006.13382, Table 1: test accuracy of seven optimizers for ResNet-20, ResNet-18
and VGG-16 on CIFAR-10, CIFAR-100 and SVHN; see `spherical_2020.train` for the protocol.
Each seed of a cell is a run of that command, with its folder.

    python -m experiments spherical_2020.table1 --data-dir DIR

takes half a minute on two CPU cores with `--smoke`; a full run has not been made yet
and wants an accelerator. `--columns` and `--optimizers` take a part of the grid,
`--epochs` shortens the schedule and `--seeds` says how many. The same command again
goes on where it stopped, and one that names more cells or wants more seeds trains only
those. `table1.json`, of which `table1.png` is drawn, keeps the cells that a command
does not name; one that is trained with other settings replaces that of before. One that
diverged ends no others: it is stored as such. `--redraw` prints the table again and
draws the figure.

A first part for one GPU, two of the columns after each other, is

    python -m experiments spherical_2020.table1 --data-dir DIR --seeds 3 --epochs 60 \
        --columns cifar10/resnet20 cifar100/resnet18

Published: the paper's columns of the table. Seen, on two CPU cores: ResNet-20 after 12
epochs of the first 5,000 images, three seeds: Adam 51.2 +- 0.7 % of the test images,
AdamW 50.7 +- 0.5, AdamS 50.4 +- 0.6, AdamSRT 50.3 +- 0.7, AdamG 49.8 +- 1.5, SGD 47.1
+- 1.1 and SGD-MRT 46.2 +- 0.7. The adaptive ones lead so early, where the paper has SGD
ahead, and differ by less than three seeds can tell. A cell took half an hour and more
on a core of its own, two at a time:

    python -m experiments spherical_2020.table1 --data-dir DIR --seeds 3 --epochs 12 \
        --columns cifar10/resnet20 --images 5000
"""

import dataclasses
import functools
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments import data
from experiments.config import Options, Stored, ask
from experiments.papers.spherical_2020 import (
    cell_settings,
    protocol,
    table1_claims,
    table1_figure,
    train,
)
from experiments.papers.spherical_2020.train import SMOKE_DATASET
from experiments.report.claims import Exhibit, Picture
from experiments.report.tables import Table
from experiments.train import train as run_train
from experiments.training import devices, preparation, provenance
from experiments.training.loop import TrainingDiverged
from experiments.training.measuring import (
    check_least,
    folder_of,
    one_line_errors,
    read_stored,
    showing,
)
from experiments.training.runs import write_json

# What a smoke run trains, unless told.
SMOKE_COLUMNS, SMOKE_OPTIMIZERS, SMOKE_SEEDS = ("cifar10/resnet20",), ("adamsrt",), 2

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table1Options(Options):
    """Which cells, how many seeds, and where to write."""

    columns: tuple[Literal[protocol.COLUMNS], ...] = ()  # type: ignore[valid-type]
    """The columns to train; none named: all, or one in a smoke run."""
    optimizers: tuple[Literal[protocol.OPTIMIZERS], ...] = ()  # type: ignore[valid-type]
    """The rows to train; none named: all, or one in a smoke run."""
    seeds: int = 5
    """Runs a cell, with seeds from 0 on; two in a smoke run."""
    epochs: int = protocol.EPOCHS
    """Passes over the training images; the steps of the rate keep their fractions."""
    images: int | None = None
    """Train on so many of the training images, the first ones; left out, on all."""
    data_dir: Path | None = None
    """The folder with the official files of the data sets, or its parent."""
    channel_axes: Literal["paper", "auto"] = "paper"
    """The blocks: the paper's rule, or what the loss tells."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in."""


def main(args: Sequence[str]) -> None:
    """Train what is missing of the grid, store the table and print it."""
    config = ask(Table1Options, "spherical_2020.table1", args)
    check_least(config, seeds=1, epochs=1, images=protocol.BATCH_SIZE)
    folder, console, diverged = folder_of(config), Console(), []
    records = folder / "table1.json"
    if config.redraw and not records.exists():
        sys.exit(f"error: --redraw needs {records}, which a run without it writes")
    if not config.redraw:
        with one_line_errors():
            diverged = measure(config, folder / "cells", records, console)
    stored = read_stored(records)
    with showing(records, redraw=config.redraw):
        shown = table(stored)
        if stored["cells"]:
            table1_figure.draw(folder / "table1.png", stored)
    console.print(shown)
    console.print(f"{records}", markup=False, highlight=False, soft_wrap=True)
    if diverged:
        names = ", ".join(
            f"--columns {cell['column']} --optimizers {cell['optimizer']}"
            for cell in diverged
        )
        sys.exit(f"error: diverged: {names}; with --fresh that one is trained again")


def measure(
    config: Table1Options, cells_folder: Path, records: Path, console: Console
) -> list[Cell]:
    """Train every cell that is not finished, and store each beside those of the file.

    Args:
        config: which cells.
        cells_folder: for their folders.
        records: the JSON file, written after each cell.
        console: where progress goes.

    Returns:
        Those of the cells that diverged.
    """
    diverged = []
    columns = config.columns or (SMOKE_COLUMNS if config.smoke else protocol.COLUMNS)
    names = config.optimizers or (
        SMOKE_OPTIMIZERS if config.smoke else protocol.OPTIMIZERS
    )
    for column in columns:
        dataset, _ = column.split("/")
        images = data.load(
            SMOKE_DATASET if config.smoke else dataset,
            None if config.smoke else config.data_dir,
        )
        if config.images is not None:
            images = images.first(config.images)
        for name in names:
            cell = _train_cell(config, column, name, images, cells_folder, console)
            records.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                records, {**_with(cell, records), "provenance": provenance.describe()}
            )
            if "diverged" in cell:
                diverged.append(cell)
    return diverged


def _with(cell: Cell, records: Path) -> dict[str, list[Cell]]:
    """Return the cells of a file and one more, which replaces that of its place.

    So a command that names a part of the grid keeps what others have trained. Cells
    that diverged have a list of their own, for they have no accuracy.
    """
    stored = read_stored(records) if records.exists() else {"cells": []}
    cells = _in_order([*_all_cells(stored), cell])
    return {
        "cells": [one for one in cells if "diverged" not in one],
        "diverged": [one for one in cells if "diverged" in one],
    }


def _all_cells(stored: Mapping[str, Any]) -> list[Cell]:
    return [*stored["cells"], *stored.get("diverged", [])]


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells in the order of the paper, the last one of each place."""
    by_place = {(one["column"], one["optimizer"]): one for one in cells}
    places = itertools.product(protocol.COLUMNS, protocol.OPTIMIZERS)
    return [by_place[place] for place in places if place in by_place]


def _train_cell(
    config: Table1Options,
    column: str,
    optimizer: str,
    images: data.Dataset,
    cells_folder: Path,
    console: Console,
) -> Cell:
    """Train the seeds of a cell, each a run of its own, but for finished ones."""
    dataset, model = column.split("/")
    seeds = list(range(SMOKE_SEEDS if config.smoke else config.seeds))
    results, sources, runs = [], [], []
    for seed in seeds:
        asked = train.ask(
            train.SphericalTrainConfig(
                dataset=dataset,
                model=model,
                optimizer=optimizer,
                channel_axes=config.channel_axes,
                epochs=config.epochs,
                seed=seed,
                dtype=config.dtype,
                runs_dir=cells_folder,
                smoke=config.smoke,
                fresh=config.fresh,
            ),
            images,
        )
        runs.append(asked.run)
        try:
            results.append(_result(asked, console))
        except TrainingDiverged as error:
            found = {"seed": seed, "words": f"seed {seed}: {error}"}
            results = [{"steps": asked.plan.total_steps, "diverged": found}]
        sources += [one for one in asked.run.provenance() if one not in sources]
        if "diverged" in results[-1]:
            break
    # The seeds' own settings, but for what differs and how often they are logged.
    left_out = ("seed", "log_every")
    common = {k: v for k, v in runs[0].config.items() if k not in left_out}
    # A run's configuration names the one only where it is chosen, the other never.
    chosen = {"dtype": config.dtype, "channel_axes": config.channel_axes}
    kept = results[-1]
    if "diverged" not in kept:
        keys = ("test_accuracy", "tested_step")
        kept = {key: [result[key] for result in results] for key in keys}
    return {
        "column": column,
        "optimizer": optimizer,
        "images": len(images.train),
        **kept,
        "epochs": common["epochs"],
        "steps": results[-1]["steps"],
        "device": devices.describe().splitlines()[0],
        "provenance": sources,
        "config": {**chosen, **common, "seeds": seeds},
    }


def _result(asked: preparation.Asked, console: Console) -> dict[str, Any]:
    """Train a run, or read the result of one that is finished."""
    if asked.run.is_finished() and not asked.config.fresh:
        return asked.run.result()
    say = functools.partial(
        console.print, markup=False, highlight=False, soft_wrap=True
    )
    prepared = preparation.complete(asked, say=say)
    return run_train(prepared, fresh=asked.config.fresh, console=console)


def table(stored: Stored) -> Table:
    """Return the table of what is stored: ours, the paper's and the difference.

    Args:
        stored: what `table1.json` holds.
    """
    cells = _in_order(_all_cells(stored))
    return Table(
        "test accuracy in percent, mean ± standard deviation (seeds)",
        ("data/network", "optimizer", "ours", "paper", "diff", "epochs"),
        map(_row, cells),
        _caption(cells),
        left=2,
    )


def _row(cell: Cell) -> tuple[str, ...]:
    row = protocol.PAPER["test_accuracy_percent_mean_std"][cell["optimizer"]]
    paper, deviation = row[cell["column"]]
    words, difference = "diverged", "-"
    if "diverged" not in cell:
        ours = [100 * accuracy for accuracy in cell["test_accuracy"]]
        words = cell_settings.in_words(ours)
        difference = f"{statistics.mean(ours) - paper:+.2f}"
    return (
        cell["column"],
        cell["optimizer"] + ("*" if cell["optimizer"] == "adamg" else ""),
        words,
        f"{paper:.2f} ± {deviation:.2f}",
        difference,
        str(cell["epochs"]),
    )


def _caption(cells: Sequence[Mapping[str, Any]]) -> str:
    lines = cell_settings.devices_of(cells)
    lines.append(f"the paper's epochs: {protocol.EPOCHS}")
    trained_on = ", ".join(f"{n:,}" for n in sorted({cell["images"] for cell in cells}))
    lines.append(f"training images: {trained_on}")
    lines += dict.fromkeys(
        f"trained in the place of {cell['column']}: {ours}"
        for cell in cells
        if (ours := "{dataset}/{model}".format(**cell["config"])) != cell["column"]
    )
    if any(cell["optimizer"] == "adamg" for cell in cells):
        lines.append(f"* {protocol.ADAMG_NOTE}")
    lines += [
        f"{cell['column']} {cell['optimizer']}: {cell['diverged']['words']}"
        for cell in cells
        if "diverged" in cell
    ]
    return "\n".join(lines)


EXHIBIT = Exhibit(
    claims=table1_claims.CLAIMS,
    extent=table1_claims.extent,
    tables=(table1_claims.grid, table),
    pictures=(
        Picture(
            "table1",
            "Test accuracy of each optimizer on each data set and network: the seeds, "
            "their mean, and the paper's mean in words.",
            table1_figure.draw,
        ),
    ),
    stored_by=functools.partial(cell_settings.commands, usual=Table1Options),
    without_results={"cells": []},
)
