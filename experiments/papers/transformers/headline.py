"""Train a larger language model once by each optimizer, at the rates of a smaller one.

The network is `micro`, 3 layers with 96 numbers a place, and reads 64 bytes of the
sources of Python's standard library at once. Each optimizer has the rate that
`transformers.language_model` had stored as best for a smaller network, a warm-up of 5 %
of the steps, and one seed, the same for all. A run of 1,500 steps is short, too: it
shows curves. Nothing is tuned here, and nothing judged.

    python -m experiments transformers.headline

takes a quarter of an hour on two CPU cores. It writes `headline.json`, `headline.png`
and what is finished, from where the same command goes on; `--redraw` draws the records
again. `--steps` makes it shorter or longer.

Seen, in bits per byte of the test text: NorMuon 2.09, Muon 2.11, rotational Adam 2.15,
AdamSRT and hyperballs 2.18, AdamW and normalized Adam 2.20, SGD and NovoGrad 2.26.
After 240 steps, at a schedule of that length, the order was another: normalized Adam
was third, and SGD was behind NovoGrad by 0.7.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments import data
from experiments.config import Options, Stored, run
from experiments.data import stdlib
from experiments.papers.transformers.language_model import LINES
from experiments.papers.transformers.language_training import (
    LOST,
    METHODS,
    POINTS,
    Task,
    bits_per_byte,
    check_multiples,
    load_task,
    schedule,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts
from experiments.training.preparation import initial_weights, network_for
from experiments.training.runs import read_json
from experiments.training.steps import (
    Sums,
    initial_state,
    make_train_step,
    repeat,
    scans,
)

NAME = "transformers.headline"
MODEL, WIDTH, CONTEXT, BATCH, SEED = "micro", 96, 64, 8, 0
SMOKE = ("adamw", "hyperball")
SWEEP = Path(__file__).parents[2] / "results/transformers/language_model.json"


@dataclasses.dataclass(frozen=True)
class HeadlineOptions(Options):
    """Where to write, and how much to compute."""

    steps: int = 1500
    """Of each run, a multiple of 20."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"steps": POINTS}, {"steps": POINTS}
    run(args, NAME, HeadlineOptions, measure, draw, table, least=least, small=small)


def measure(config: HeadlineOptions, console: Console) -> dict[str, Any]:
    """Train by every optimizer, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer.

    Returns:
        The settings and the digest of the text, and for each optimizer its rate and
        what `train` finds.
    """
    check_multiples("steps", [config.steps], POINTS, 10**6)
    rates = best_rates()
    names = SMOKE if config.smoke else tuple(METHODS)
    size = {"width": WIDTH, "context": CONTEXT, "batch": BATCH}
    task = load_task(**size, steps=config.steps)
    told = {"model": MODEL, "steps": config.steps, **size, "warm_up": task.warm_up}
    told["text"] = stdlib.load().fingerprint()

    def one(name: str) -> dict[str, Any]:
        return {"rate": rates[name], **train(name, rates[name], task)}

    settings = {**told, "rates": [rates[name] for name in names]}
    found = measure_parts(config, "headline", settings, names, one, console)
    return {"device": devices.describe(), **told, "runs": found}


def best_rates() -> dict[str, float]:
    """Return the best rate of each optimizer that `language_model` has stored."""
    stored = read_json(SWEEP, "python -m experiments transformers.language_model")
    return {name: stored["sweep"][name]["best"] for name in METHODS}


def train(name: str, rate: float, task: Task) -> dict[str, Any]:
    """Train `micro` by one optimizer.

    Args:
        name: of the optimizer.
        rate: the largest.
        task: the text, and how long.

    Returns:
        The curve on the held-out windows and the end on the test's, in bits a byte.
    """
    text = data.load("stdlib", None)
    network = network_for(MODEL, text)
    method = METHODS[name]
    optimizer = method.make(schedule(jnp.float32(rate), jnp.float32(1), task))
    step = make_train_step(network, optimizer, lambda key, x: x, task.batch)
    params, model_state = initial_weights(MODEL, text, SEED)
    state = initial_state(method.prepare(params), model_state, optimizer)
    key, order_key = jax.random.split(jax.random.key(SEED))
    # A window at each byte.
    windows = data.Text(task.text, stride=1, length=task.context + 1)
    size = (task.steps * task.batch,)
    order = jax.random.randint(order_key, size, 0, len(windows))
    of_network = {"network": network, "rest": model_state}
    bits_of = jax.jit(functools.partial(bits_per_byte, **of_network))
    run_steps, curve = repeat(step, scan=scans()), []
    for _ in range(POINTS):
        carry = state, Sums.zeros()
        stretch = task.steps // POINTS
        state, _ = run_steps(carry, stretch, key, order, windows)
        curve.append(float(bits_of(state.params, windows=task.held_out)))
    return {
        "curve": curve,
        "end": float(bits_of(state.params, windows=task.test)),
    }


def draw(path: Path, stored: Stored) -> None:
    """Draw every curve, and the same over the last half of the steps.

    Args:
        path: the PNG to write.
        stored: what `headline.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(11, 5), layout="constrained")
        panels = figure.subplots(1, 2)
        seen = np.array([found["curve"] for found in stored["runs"].values()])
        for name, found in stored["runs"].items():
            curve = np.array(found["curve"])
            steps = np.arange(1, len(curve) + 1) / len(curve) * stored["steps"]
            late = steps >= stored["steps"] / 2
            label = name if found["end"] < LOST else f"{name} (diverged)"
            line = LINES[name] | {"label": label, "linewidth": 1.5}
            for axes, shown in zip(panels, (steps > 0, late), strict=True):
                axes.plot(steps[shown], curve[shown], **line)
        half = (seen.shape[1] - 1) // 2
        titles = {"all steps": seen, "the last half": seen[:, half:]}
        for axes, (title, bits) in zip(panels, titles.items(), strict=True):
            # A run that diverged is far above.
            kept = bits[bits < LOST]
            low, high = (kept.min(), kept.max()) if kept.size else (0, LOST)
            room = 0.03 * (high - low)
            axes.set(xlabel="step", ylabel="bits per byte, held out", title=title)
            axes.set(ylim=(low - room, high + room))
        legend = {"loc": "outside lower center", "ncols": 5, "frameon": False}
        figure.legend(*panels[0].get_legend_handles_labels(), **legend)
        figure.suptitle(
            f"{stored['model']} on Python's standard library, {stored['steps']} steps "
            f"of {stored['batch']} x {stored['context']} bytes, one seed"
        )
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the ends, the best one first."""
    runs = sorted(stored["runs"].items(), key=lambda one: one[1]["end"])
    return Table(
        f"bits per byte at the end, {stored['model']}",
        ("optimizer", "rate", "test", "held out"),
        (
            (
                name,
                f"{found['rate']:.2g}",
                *(
                    f"{bits:.3f}" if bits < LOST else "diverged"
                    for bits in (found["end"], found["curve"][-1])
                ),
            )
            for name, found in runs
        ),
        "one seed, at the rate that was best for a smaller network: no interval",
    )


EXHIBIT = Exhibit(
    extent=lambda stored: (
        f"n = 1 seed, {stored['steps']} steps of {stored['model']} with "
        f"{stored['batch']} x {stored['context']} bytes of the sources of Python "
        f"{stored['text']['python']}"
    ),
    note="One seed and rates of a smaller network: it shows curves and decides "
    "nothing.",
    tables=(table,),
    pictures=(
        Picture(
            "headline",
            "Bits per byte of the held-out text over the steps, for nine optimizers; "
            "on the right the last half.",
            draw,
        ),
    ),
)
