"""Follow a transformer's kernels to the lengths and angles that a decay should lead to.

Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances Learning
Across Neural Networks", 2024, arXiv 2305.17212. Queries and keys are normalized, so the
loss ignores the length of each head of their kernels, and `normopt.equilibrium` says
where AdamW leads them. The other kernels have a length that matters, of which nothing
is predicted. `normopt.observe` notes lengths, steps over lengths, and angles of all of
them at each step.

    python -m experiments transformers.lengths_and_angles

takes about two minutes on two CPU cores. It writes `lengths_and_angles.json`,
`lengths_and_angles.png` and what is finished, from where the same command goes on;
`--redraw` draws the records again.

Fixed before any run: the model `nano` on the sources of Python's standard library, 4
windows of 128 bytes a step, at random places; AdamW with a constant rate of 0.005 and a
decay of 0.004 a step on kernels, independent of the rate, so that a length forgets
within 250 steps. Of 1,200 steps the last half counts. Over queries and keys the
geometric mean of measured over predicted is to be from 0.9 to 1.1 for angles and from
0.8 to 1.25 for lengths, as in `rotational_2024.equilibrium`, for convolutions.

Seen: queries and keys come to 1.06 times the angle that is predicted and 0.90 times the
length, which is still falling: 0.88 in the last 150 steps. Values, outputs and dense
kernels, of which nothing is predicted, are not far from it, with 0.90 to 1.00 times the
angle. The kernel of the logits is: 2.9 times as long, and a quarter of the angle.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console

import normopt
from experiments import data
from experiments.config import Options, Stored, run
from experiments.data import stdlib
from experiments.data.augment import AUGMENTATIONS
from experiments.models import LANGUAGE_MODELS
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.images import on_device
from experiments.training.measuring import measure_parts
from experiments.training.preparation import initial_weights, network_for
from experiments.training.steps import (
    Sums,
    arrays_of,
    initial_state,
    make_train_step,
    repeat,
    scans,
)

NAME = "transformers.lengths_and_angles"
MODEL, BATCH, STRETCHES = "nano", 4, 40
RATE, DECAY = 0.005, 0.004
ADAMW = {"name": "adamw", "learning_rate": RATE, "b1": 0.9, "b2": 0.99}
# A head is a block, where there are heads; else the whole kernel is.
AXES = {
    "(query|key|value)/kernel$": (1,),
    "out/kernel$": (0,),
    "kernel$": (),
}
# From the names of groups to the paths of their leaves: the first that matches.
GROUPS = {
    "queries, keys": "(query|key)/kernel$",
    "values": "value/kernel$",
    "out": "out/kernel$",
    "dense, first": "(gate|up)/kernel$",
    "dense, second": "down/kernel$",
    "logits": "^head/kernel$",
}
IGNORED = "queries, keys"  # the group whose length the loss ignores
QUANTITIES = ("weight", "relative_step", "angle")


@dataclasses.dataclass(frozen=True)
class LengthsAndAnglesOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 3
    """Runs, at least 2."""
    steps: int = 1200
    """Of each run, a multiple of 40."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "steps": STRETCHES}, {"seeds": 2, "steps": STRETCHES}
    options = LengthsAndAnglesOptions
    run(args, NAME, options, measure, draw, table, least=least, small=small)


def measure(config: LengthsAndAnglesOptions, console: Console) -> dict[str, Any]:
    """Train from each seed, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each seed.

    Returns:
        The settings and the digest of the text; what is predicted of each kernel; and
        of each seed what `follow` finds.
    """
    if config.steps % STRETCHES:
        raise ValueError(
            f"`steps` must be a multiple of {STRETCHES}, got steps={config.steps}"
        )
    told = {
        "model": MODEL,
        "steps": config.steps,
        "batch": BATCH,
        "rate": RATE,
        "decay": DECAY,
        "text": stdlib.load().fingerprint(),
    }
    seeds = {f"seed {seed}": seed for seed in range(config.seeds)}
    found = measure_parts(
        config,
        "lengths_and_angles",
        told,
        seeds,
        lambda name: follow(seeds[name], config.steps),
        console,
    )
    return {
        "device": devices.describe(),
        **told,
        "predicted": predicted(),
        "seeds": list(found.values()),
    }


def predicted() -> dict[str, dict[str, float]]:
    """Return the length and the angle of each kernel's blocks, were it to be ignored.

    A step is then at a right angle, nearly, and so as long, over the length, as the
    angle.
    """
    build = functools.partial(LANGUAGE_MODELS[MODEL], num_classes=256)
    params, _ = jax.eval_shape(lambda: arrays_of(lambda: build(rngs=nnx.Rngs(0))))
    leaves = dict(zip(normopt.leaf_paths(params), jax.tree.leaves(params), strict=True))
    axes = jax.tree.structure(params).flatten_up_to(normopt.by_path(AXES)(params))
    found = {}
    for (path, leaf), own in zip(leaves.items(), axes, strict=True):
        if own is None:
            continue
        size = leaf.size // math.prod(leaf.shape[axis] for axis in own)
        balance = normopt.equilibrium({**ADAMW, "weight_decay": DECAY}, size=size)
        found[path] = {
            "size": size,
            "weight": balance.length,
            "relative_step": balance.angle,
            "angle": balance.angle,
        }
    return found


def follow(seed: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Train from one seed, and note what the blocks of each kernel do.

    Args:
        seed: of the weights and the batches.
        steps: how many, a multiple of `STRETCHES`.

    Returns:
        By path and quantity, one of `QUANTITIES`, the root of the mean square over the
        blocks and the steps of each stretch.
    """
    text = data.load("stdlib", None)
    network = network_for(MODEL, text)
    adamw = normopt.make(**ADAMW, weight_decay={"kernel$": DECAY})
    optimizer = normopt.observe(adamw, AXES)
    train = make_train_step(network, optimizer, AUGMENTATIONS["stdlib"], BATCH)

    def step(carry: Any, *args: Any) -> Any:
        trained, totals = carry
        trained = train(trained, *args)
        return trained, jax.tree.map(jnp.add, totals, _squares(trained[0].opt_state))

    params, model_state = initial_weights(MODEL, text, seed)
    state = initial_state(params, model_state, optimizer)
    key, order_key = jax.random.split(jax.random.key(seed))
    windows = on_device(text.train)
    order = jax.random.randint(order_key, (steps * BATCH,), 0, len(windows))
    nothing = jax.tree.map(jnp.zeros_like, _squares(state.opt_state))
    run_steps, stretch = repeat(step, scan=scans()), steps // STRETCHES
    found: dict[str, dict[str, list[float]]] = {
        path: {quantity: [] for quantity in QUANTITIES} for path in nothing
    }
    for _ in range(STRETCHES):
        empty = Sums.zeros(), jax.tree.map(jnp.copy, nothing)
        carry = (state, empty[0]), empty[1]
        (state, _), totals = run_steps(carry, stretch, key, order, windows)
        for path, of_path in jax.device_get(totals).items():
            for quantity, total in of_path.items():
                mean = float(np.sqrt(total / stretch))
                found[path][quantity].append(float(f"{mean:.4g}"))
    return found


def _squares(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """Return means of squares over the blocks of each kernel, by quantity."""
    return {
        path: {name: jnp.mean(getattr(seen, name) ** 2) for name in QUANTITIES}
        for path, seen in normopt.observations(opt_state).items()
    }


def group_of(path: str) -> str:
    """Return the name of the group that a kernel is in."""
    return next(name for name, rule in GROUPS.items() if re.search(rule, path))


def over_predicted(stored: Stored, group: str, quantity: str) -> np.ndarray:
    """Return measured over predicted, seeds x stretches: the mean of a group's kernels.

    It is the geometric one.

    Args:
        stored: what `lengths_and_angles.json` holds.
        group: one of `GROUPS`.
        quantity: one of `QUANTITIES`.
    """
    expected = stored["predicted"]
    paths = [path for path in expected if group_of(path) == group]
    ratios = [
        [np.array(seed[path][quantity]) / expected[path][quantity] for path in paths]
        for seed in stored["seeds"]
    ]
    return np.exp(np.log(ratios).mean(axis=1))


def at_the_end(stored: Stored, group: str, quantity: str) -> np.ndarray:
    """Return measured over predicted in the last half of the steps, (seeds,).

    Args:
        stored: what `lengths_and_angles.json` holds.
        group: one of `GROUPS`.
        quantity: one of `QUANTITIES`.
    """
    ratios = over_predicted(stored, group, quantity)
    return np.sqrt(np.mean(ratios[:, ratios.shape[1] // 2 :] ** 2, axis=1))


def draw(path: Path, stored: Stored) -> None:
    """Draw what each group does over the steps, beside what is predicted.

    Args:
        path: the PNG to write.
        stored: what `lengths_and_angles.json` holds.
    """
    one = next(iter(stored["predicted"].values()))
    # Of an element: so all kernels have one prediction.
    units = {
        "weight": ("length of a block / √ its elements", one["size"] ** -0.5),
        "relative_step": ("length of the step / length", 1.0),
        "angle": ("angle of the step (radians)", 1.0),
    }
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (quantity, (label, unit)) in zip(panels, units.items(), strict=True):
            expected = one[quantity] * unit
            axes.axhline(expected, color="black", linestyle=":", linewidth=1.4)
            for group, line in LINES.items():
                ratios = over_predicted(stored, group, quantity)
                mean = np.exp(np.log(ratios).mean(axis=0))
                steps = (np.arange(len(mean)) + 0.5) * stored["steps"] / len(mean)
                axes.plot(steps, mean * expected, **line, label=group)
            axes.set(xlabel="step", ylabel=label)
            figures.log_scale(axes)
        handles, _ = panels[0].get_legend_handles_labels()
        told = "predicted where the loss ignores the length"
        handles.append(Line2D([], [], color="black", linestyle=":", label=told))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, frameon=False
        )
        figure.suptitle(
            f"{stored['model']} on Python's standard library, AdamW at a constant rate "
            f"of {stored['rate']:g}, decay {stored['decay']:g} a step; mean of "
            f"{len(stored['seeds'])} seeds"
        )
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return measured over predicted of each group, in the last half of the steps."""
    return Table(
        "measured over predicted, where the loss ignores lengths",
        ("kernels", "length", "step / length", "angle", "elements"),
        (
            (
                group,
                *(f"{at_the_end(stored, group, q).mean():.3f}" for q in QUANTITIES),
                f"{size_of(stored, group):,}",
            )
            for group in GROUPS
        ),
        f"means over {len(stored['seeds'])} seeds and the last half of the steps; the "
        "prediction is for\nqueries and keys alone; elements of a block",
    )


def size_of(stored: Stored, group: str) -> int:
    """Return the elements of a block in a group."""
    sizes = (
        one["size"]
        for path, one in stored["predicted"].items()
        if group_of(path) == group
    )
    return next(sizes)


_KINDS = (
    ("queries, keys", figures.PURPLE, "-", 2.4),
    ("values", figures.BLUE, "-", 1.4),
    ("out", figures.BLUE, "--", 1.4),
    ("dense, first", figures.GREEN, "-", 1.4),
    ("dense, second", figures.GREEN, "--", 1.4),
    ("logits", figures.ORANGE, "-", 1.4),
)
LINES = {
    name: {"color": colour, "linestyle": dashes, "linewidth": width}
    for name, colour, dashes, width in _KINDS
}


LENGTH, ANGLE = (
    Metric(
        f"{word} over the predicted one",
        functools.partial(at_the_end, quantity=quantity),
        form="{:.3f}",
        over="seeds",
    )
    for word, quantity in (("length", "weight"), ("angle", "angle"))
)
EXHIBIT = Exhibit(
    claims=(
        Claim(
            "Heads of queries and keys come to turn by the angle that is predicted.",
            (Check(ANGLE, IGNORED, low=0.9, high=1.1),),
        ),
        Claim(
            "Heads of queries and keys come to the length that is predicted.",
            (Check(LENGTH, IGNORED, low=0.8, high=1.25),),
        ),
    ),
    extent=lambda stored: (
        f"n = {len(stored['seeds'])} seeds, {stored['steps']:,} steps of "
        f"{stored['model']} with {stored['batch']} x 128 bytes of the sources of "
        f"Python {stored['text']['python']}"
    ),
    tables=(table,),
    pictures=(
        Picture(
            "lengths_and_angles",
            "Lengths, steps over lengths and angles of the kernels of a transformer "
            "over the steps: queries and keys, whose length the loss ignores, the "
            "others, and what is predicted.",
            draw,
        ),
    ),
)
