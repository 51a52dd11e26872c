"""Compare warm restarts with one cosine: how soon they are good, how good at the end.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101,
Figure 4 and appendix B, after their "SGDR: Stochastic Gradient Descent with Warm
Restarts", 2017, arXiv 1608.03983. On the digits of `decay_grid`, with its network and
its batch norm, for 60 epochs: SGDW and AdamW on one cosine to zero, SGDWR and AdamWR on
cosines of 4, 8, 16 and 32 epochs. Both end annealed.

    python -m experiments decoupled_decay_2019.anytime

takes three minutes on two CPU cores. It writes `anytime.json` and `.png` and what is
finished, from where the same command goes on; `--redraw` draws the stored records
again.

As in the paper the decay is normalized by the length of the cycle: that of a cycle of
T_i of all T updates is sqrt(T / T_i) times that of one cosine, here 3.9, 2.7, 1.9 and
1.4 times. Moments are kept over a restart.

The paper gives no number; its words are that AdamWR comes to the results of AdamW, with
a much better performance before the end. Fixed before the arms were compared: the
cycles; a grid of learning rates and decays for each arm, whose best cell is that of the
lowest mean final error over 8 seeds; other seeds to compare these cells by, in pairs,
on the same test images. These other seeds were 16, until two programs that only round
differently gave different answers; then they became 48. How fast an arm is says the
mean over the epochs of its best error so far. Seen, mean errors after some epochs,
epochs to a point above what one cosine ends with, and standard errors:

              rate  decay        4      12      28              60  needed
    SGDW      2^-4   2^-7    8.00%   7.15%   7.32%  6.05% +- 0.05%     8.3
    SGDWR     2^-5   2^-8   11.30%   7.10%   6.61%  6.08% +- 0.07%    13.2
    AdamW     2^-8   2^-7    9.83%   6.98%   7.09%  6.73% +- 0.06%     8.1
    AdamWR    2^-7   2^-8   10.31%   6.87%   6.74%  6.62% +- 0.06%     7.0

So restarts do not generalise better here than one cosine by more than 0.24 points. The
task is an easy one: one cosine is first within a point of its end after eight of its 60
epochs, long before it is annealed, so which is faster is not judged by it; a shorter
one, as `--first-cycle 1`, can if it still improves at its end. `same cell` in the table
is one cosine with the rate and decay of the restarts, which were added once the arms
had been compared, and decide nothing: it needs 6.0 epochs where AdamWR needs 7.0, so
that it is rate and decay that are faster there, not the restart. Where the third cycle
ends, after epoch 28, restarts are ahead, as the paper would have it, by 0.71 +- 0.11
points for SGDW and 0.35 +- 0.09 for AdamW.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.decoupled_decay_2019.anytime_arms import (
    PAIRS,
    WITHIN,
    Pair,
    pairs_of,
    restarted,
)
from experiments.papers.decoupled_decay_2019.grid_training import (
    METHODS,
    TRAIN_IMAGES,
    Make,
    cell_curves,
    grid_errors,
    load_task,
    start,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "decoupled_decay_2019.anytime"
ARMS = [name for pair in PAIRS.items() for name in reversed(pair)]
SMOKE = ARMS[:2]
# Each cycle is so many times as long as the one before.
GROWTH = 2


@dataclasses.dataclass(frozen=True)
class AnytimeOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 48
    """Runs of each arm's best cell, which are compared in pairs."""
    tuning_seeds: int = 8
    """Other runs, of every cell, which tell the best."""
    first_cycle: int = 4
    """Epochs until the first restart; each further cycle takes twice as many."""
    cycles: int = 4
    """How many cycles; one cosine is as long as all of them."""


def main(args: Sequence[str]) -> None:
    """Train the grids and the best cells, and write records, figure and summary."""
    least = {"seeds": 2, "tuning_seeds": 1, "first_cycle": 1, "cycles": 2}
    small = {"seeds": 2, "tuning_seeds": 2, "first_cycle": 1, "cycles": 2}
    run(args, NAME, AnytimeOptions, measure, draw, table, least=least, small=small)


def measure(config: AnytimeOptions, console: Console) -> dict[str, Any]:
    """Train each arm, on every cell and then on its best, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each arm.

    Returns:
        The settings, the epochs of the cycles, and for each arm the exponents of 2,
        the mean final errors, rates x decays, the indices of its best cell, and how
        many answers of that are wrong after each epoch, a text for each seed; of an arm
        with restarts, those of one cosine at the same cell as well.
    """
    cycles = [config.first_cycle * GROWTH**cycle for cycle in range(config.cycles)]
    hidden, stride = (16, 5) if config.smoke else (64, 1)
    task = load_task(sum(cycles), hidden, batch_norm=True)
    seeds = range(config.tuning_seeds + config.seeds)
    starts = [start(seed, task) for seed in seeds]
    tuning, judged = starts[: config.tuning_seeds], starts[config.tuning_seeds :]
    held_out = len(task.labels) - TRAIN_IMAGES

    def arm_of(name: str) -> dict[str, Any]:
        method = METHODS[PAIRS.get(name, name)]
        make = restarted(method.make, cycles) if name in PAIRS else method.make
        # The maps of `decay_grid` without their rims, where none is near its best.
        rates = method.learning_rates[1:-1:stride]
        decays = method.decays[1:-1:stride]
        errors = grid_errors(make, rates, decays, tuning, task).mean(axis=0)
        row, column = np.unravel_index(errors.argmin(), errors.shape)

        def wrong(make: Make) -> list[str]:
            curves = cell_curves(make, rates[row], decays[column], judged, task)
            counts = np.rint(held_out * curves).astype(int)
            # Text has them in one line for each seed, JSON's numbers in one each.
            return [" ".join(map(str, of_seed)) for of_seed in counts]

        arm = {
            "learning_rates": list(rates),
            "decays": list(decays),
            "mean_final_errors": errors.round(5).tolist(),
            "best": [int(row), int(column)],
            "wrong": wrong(make),
        }
        if name in PAIRS:
            arm["wrong_on_one_cosine"] = wrong(method.make)
        return arm

    told = {
        "cycles": cycles,
        "tuning_seeds": config.tuning_seeds,
        "hidden": hidden,
        "held_out": held_out,
    }
    settings = {**told, "seeds": config.seeds, "stride": stride}
    names = SMOKE if config.smoke else ARMS
    arms = measure_parts(config, "anytime", settings, names, arm_of, console)
    return {"device": devices.describe(), **told, "arms": arms}


def draw(path: Path, stored: Stored) -> None:
    """Draw the errors over the epochs, mean and standard deviation of the seeds.

    Args:
        path: the PNG to write.
        stored: what `anytime.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 5), layout="constrained")
        pairs = pairs_of(stored)
        (panels,) = figure.subplots(1, len(pairs), sharey=True, squeeze=False)
        for axes, (restarts, cosine) in zip(panels, pairs.items(), strict=True):
            _draw_pair(axes, restarts, stored)
            axes.set(title=f"{cosine} and {restarts}", xlabel="epoch")
        seeds = len(next(iter(stored["arms"].values()))["wrong"])
        figure.suptitle(f"digits, with batch norm: {seeds} seeds, mean and deviation")
        figures.log_scale(panels[0])
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylabel("test error")
        for axes in panels:
            axes.legend(frameon=False, fontsize=8)
        figures.save(figure, path)


def _draw_pair(axes: Any, restarts: str, stored: Stored) -> None:
    pair = Pair.of(restarts, stored)
    epochs = range(1, 1 + pair.cosine.shape[1])
    shade, own = figures.GREY, figures.LINES[restarts]["color"]
    for label, curves, colour in (
        ("one cosine", pair.cosine, shade),
        ("restarts", pair.restarts, own),
    ):
        mean, deviation = curves.mean(axis=0), curves.std(axis=0, ddof=1)
        ends = (mean - deviation, mean + deviation)
        axes.fill_between(epochs, *ends, color=colour, alpha=0.2, linewidth=0)
        axes.plot(epochs, mean, color=colour, linewidth=1.8, label=label)
    axes.plot(
        epochs,
        pair.cosine_there.mean(axis=0),
        color=shade,
        linestyle=(0, (4, 1.5)),
        linewidth=1,
        label="one cosine, rate and decay of the restarts",
    )
    line = {"color": "#555555", "linewidth": 1}
    label = f"final error of one cosine + {100 * WITHIN:g} point"
    axes.axhline(pair.bars.mean(), linestyle="-.", label=label, **line)
    axes.vlines(
        np.cumsum(stored["cycles"])[:-1],
        0,
        1,
        transform=axes.get_xaxis_transform(),
        linestyle=":",
        label="a restart",
        **line,
    )


def table(stored: Stored) -> Table:
    """Return each arm's best cell, its errors as cycles end, and the epochs it needs.

    Below each pair stands one cosine at the cell of the restarts.
    """
    ends, rows = np.cumsum(stored["cycles"]), []
    for restarts, cosine in pairs_of(stored).items():
        pair = Pair.of(restarts, stored)
        cells = [_cell(stored["arms"][name]) for name in (cosine, restarts, restarts)]
        names = (cosine, restarts, f"{cosine}, same cell")
        for name, cell, curves, needed in zip(
            names, cells, pair, pair.epochs_needed(), strict=True
        ):
            *before, last = (f"{mean:.2%}" for mean in curves[:, ends - 1].mean(axis=0))
            error = 100 * curves[:, -1].std(ddof=1) / len(curves) ** 0.5
            row = (
                name,
                *cell,
                *before,
                f"{last} ± {error:.2f}",
                f"{needed.mean():.1f}",
            )
            rows.append(row)
    return Table(
        "mean test error after some epochs; rate and decay in powers of 2",
        ("arm", "rate", "decay", *(f"at {end}" for end in ends), "needed"),
        rows,
        "± standard errors; needed: epochs to the final error of one cosine + "
        f"{100 * WITHIN:g} point;\nruns that never get there count as {ends[-1] + 1}",
    )


def _cell(arm: Mapping[str, Any]) -> tuple[str, str]:
    row, column = arm["best"]
    return str(arm["learning_rates"][row]), str(arm["decays"][column])


def _areas(stored: Stored, name: str) -> np.ndarray:
    """Return each seed's mean over the epochs of the best error so far."""
    return np.minimum.accumulate(_curves(stored, name), axis=1).mean(axis=1)


def _ends(stored: Stored, name: str) -> np.ndarray:
    return _curves(stored, name)[:, -1]


def _curves(stored: Stored, name: str) -> np.ndarray:
    for restarts, cosine in PAIRS.items():
        pair = Pair.of(restarts, stored) if name in (restarts, cosine) else None
        if pair is not None:
            return pair.restarts if name == restarts else pair.cosine
    raise ValueError(f"{name!r} is none of {ARMS}")


def _is_flat(restarts: str, stored: Stored) -> str:
    """Say that one cosine has nearly arrived before restarts could tell."""
    needed, epochs = Pair.of(restarts, stored).epochs_needed(), sum(stored["cycles"])
    mean = needed.cosine.mean()
    if mean >= epochs / 2:
        return ""
    return (
        f"one cosine is within {100 * WITHIN:g} point of its end after {mean:.0f} of "
        f"{epochs} epochs; a task that still improves at its end can tell, as with "
        "`--first-cycle 1`"
    )


AREA = Metric("mean over the epochs of the best test error so far", _areas)
ERROR = Metric("final test error", _ends)


def _extent(stored: Stored) -> str:
    seeds = len(next(iter(stored["arms"].values()))["wrong"])
    epochs, cycles = sum(stored["cycles"]), ", ".join(map(str, stored["cycles"]))
    return (
        f"n = {seeds} seeds of each best cell, which {stored['tuning_seeds']} others "
        f"chose; {epochs} epochs of 200 digits, with restarts in cycles of {cycles}"
    )


EXHIBIT = Exhibit(
    claims=tuple(
        claim
        for restarts, cosine in PAIRS.items()
        for claim in (
            Claim(
                f"Warm restarts converge faster: {restarts} than {cosine}.",
                (Check(AREA, restarts, cosine),),
                functools.partial(_is_flat, restarts),
            ),
            Claim(
                f"Warm restarts generalize better: {restarts} than {cosine}.",
                (Check(ERROR, restarts, cosine),),
            ),
        )
    ),
    extent=_extent,
    note="Each arm has the rate and decay that are best for it. `same cell` "
    "in the table is one cosine with those of the restarts: what it gains over "
    "one cosine, restarts do not gain. It was added once the arms had been "
    "compared, and decides nothing.",
    tables=(table,),
    pictures=(
        Picture(
            "anytime",
            "Test error after each epoch, on a log scale, on one cosine and "
            "with warm restarts, for SGDW and AdamW: mean and deviation of the "
            "seeds, with lines at the error to reach and at the restarts.",
            draw,
        ),
    ),
)
