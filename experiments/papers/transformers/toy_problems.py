"""Try optimizers on small problems whose answers are known: units, lengths, rounding.

A layer in other units: its weights times 1e-9 to 1e9, and what it gives divided by the
same, so that the function stays. A Rayleigh quotient, which ignores the length of its
argument: how near the smallest eigenvalue an optimizer comes, with noise and without,
how the length grows, and by what angle a step turns. And bfloat16 weights that decay
for 9,900 steps.

    python -m experiments transformers.toy_problems

takes about two minutes on two CPU cores. It writes `toy_problems.json` and
`toy_problems.png`, and what is finished; `--redraw` draws the records again.

Each optimizer is taken at the best of 9 rates, for the layer at a factor of 1. The
claims were written down before the runs: a loss of at most 1.5 times that at a factor
of 1 is as good, lengths that stay do so to a thousandth, and a compensated decay is
within 2 % of what it would be without rounding.

Seen: steps relative to the weights do not notice 18 decades of units, and all others
fail beyond 1.2 to 3. What that costs shows at a factor of 1, where hyperballs end at
1.6 times AdamW's loss and rotational Adam at 2.3 times. Of the quotient, with noise and
each at its best rate, Adam makes the argument 4 times as long and turns it by 0.008
radians a step, AdamSRT by 0.010, and a hyperball, whose rate is that angle, by 0.03.
Without noise AdamSRT comes 27 times closer to the eigenvalue than Adam, at the largest
rate of the grid; with noise they are on par. Uncompensated, no bfloat16 weight of 1
decays at all.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.novograd_2019.valleys import valley
from experiments.papers.transformers import toys
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "transformers.toy_problems"
AS_GOOD = 1.5  # times the loss at a factor of 1
EXPONENTS = np.linspace(-4, 0, 9)  # of 10, of the rates
FACTORS = np.array([-9.0, -6, -3, -2, -1, 0, 1, 2, 3, 6, 9])  # likewise, of the units
NOISES = np.array([0.0, 0.3, 3.0])
DECAYS = np.array([1e-5, 3e-5, 1e-4, 3e-4])
LAYER, QUOTIENT, DECAY = "layer, ", "quotient, ", "decay"


@dataclasses.dataclass(frozen=True)
class ToyOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 6
    """Runs of each setting."""
    steps: int = 300
    """Of each run."""


def main(args: Sequence[str]) -> None:
    """Make all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "steps": 10}, {"seeds": 2, "steps": 10}
    run(args, NAME, ToyOptions, measure, draw, table, least=least, small=small)


def measure(config: ToyOptions, console: Console) -> dict[str, Any]:
    """Make the runs of every problem, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each part.

    Returns:
        The settings; for each optimizer the losses, seeds x rates x factors; lengths,
        angles and distances of the quotient, seeds x rates x noises; and what is left
        of decayed weights.
    """
    stride = 4 if config.smoke else 1
    exponents, factors = EXPONENTS[::stride], FACTORS[:: 5 if config.smoke else 1]
    rates, size = 10.0**exponents, (config.steps, config.seeds)

    def layer(name: str) -> dict[str, Any]:
        make = toys.OPTIMIZERS[name]
        return {"losses": toys.scaled_layer(make, rates, 10.0**factors, *size).tolist()}

    def quotient(name: str) -> dict[str, Any]:
        found = toys.quotient(toys.ON_THE_SPHERE[name], rates, NOISES, *size)
        names = ("distances", "lengths", "angles")
        pairs = zip(names, found, strict=True)
        return {what: _finite(one).tolist() for what, one in pairs}

    parts = {
        **{LAYER + name: functools.partial(layer, name) for name in toys.OPTIMIZERS},
        **{QUOTIENT + n: functools.partial(quotient, n) for n in toys.ON_THE_SPHERE},
        DECAY: functools.partial(toys.decayed, 33 * config.steps, DECAYS),
    }
    told = {
        "steps": config.steps,
        "exponents": exponents.tolist(),
        "factors": factors.tolist(),
        "noises": NOISES.tolist(),
        "decays": DECAYS.tolist(),
    }
    settings = {**told, "seeds": config.seeds}
    found = measure_parts(
        config, "toy_problems", settings, parts, lambda name: parts[name](), console
    )
    of = {
        kind: {n.removeprefix(kind): v for n, v in found.items() if n.startswith(kind)}
        for kind in (LAYER, QUOTIENT)
    }
    return {
        "device": devices.describe(),
        **settings,
        "layer": of[LAYER],
        "quotient": of[QUOTIENT],
        "decay": found[DECAY],
    }


def by_factor(stored: Stored, name: str) -> np.ndarray:
    """Return the losses, seeds x factors, at the rate that is best at a factor of 1.

    Args:
        stored: what `toy_problems.json` holds.
        name: of the optimizer.
    """
    losses = np.asarray(stored["layer"][name]["losses"])
    at_one = losses[:, :, stored["factors"].index(0)]
    return losses[:, np.log(at_one).mean(axis=0).argmin()]


def decades(stored: Stored, name: str) -> np.ndarray:
    """Return over how many decades of factors each seed's loss is as good as at 1.

    Args:
        stored: what `toy_problems.json` holds.
        name: of the optimizer.
    """
    middle = stored["factors"].index(0)
    # By logarithms, which lie on straight lines between the factors.
    curves = np.log(by_factor(stored, name))
    return np.array(
        [
            valley(c, stored["factors"], middle, c[middle] + np.log(AS_GOOD)).width
            for c in curves
        ]
    )


def of_quotient(stored: Stored, name: str, what: str, noise: int = -1) -> np.ndarray:
    """Return what each seed's run came to, at the rate that comes nearest on average.

    Args:
        stored: what `toy_problems.json` holds.
        name: of the optimizer.
        what: is returned: distances, lengths or angles.
        noise: which of the noises.
    """
    found = stored["quotient"][name]
    distances = np.asarray(found["distances"])[:, :, noise]
    best = distances.mean(axis=0).argmin()
    return np.asarray(found[what])[:, best, noise]


def draw(path: Path, stored: Stored) -> None:
    """Draw losses over units, and distances and lengths of the quotient over rates.

    Args:
        path: the PNG to write.
        stored: what `toy_problems.json` holds.
    """
    rates = 10.0 ** np.array(stored["exponents"])
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(12.5, 4.8), layout="constrained")
        units, distances, lengths = figure.subplots(1, 3)
        for name in stored["layer"]:
            mean = np.exp(np.log(by_factor(stored, name)).mean(axis=0))
            units.plot(10.0 ** np.array(stored["factors"]), mean, **_line(name))
        units.set(
            xlabel="factor on a layer's weights",
            ylabel="loss over that at the start",
            title="in other units, at the rate best at 1",
        )
        for name, found in stored["quotient"].items():
            for what, axes in (("distances", distances), ("lengths", lengths)):
                mean = np.exp(np.log(np.asarray(found[what])).mean(axis=0))
                axes.plot(rates, mean[:, -1], **_line(name))
        noise = stored["noises"][-1]
        distances.set(
            ylabel="Rayleigh quotient above its minimum",
            title=f"a quotient, with noise of {noise:g}",
        )
        lengths.set(ylabel="length over that at the start", title="the same runs")
        for axes in (distances, lengths):
            axes.set(xlabel="learning rate")
        for axes in (units, distances, lengths):
            axes.set(xscale="log", yscale="log")
        shown = [axes.get_legend_handles_labels() for axes in (units, distances)]
        lines = {name: line for pair in shown for line, name in zip(*pair, strict=True)}
        legend = {"loc": "outside lower center", "ncols": 5, "frameon": False}
        figure.legend(lines.values(), lines, **legend)
        figure.suptitle(f"{stored['steps']} steps, mean of {stored['seeds']} seeds")
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the decades of units, and lengths, angles and distances by noise."""
    names = dict.fromkeys([*stored["layer"], *stored["quotient"]])

    def row_of(name: str) -> tuple[str, ...]:
        width = "-"
        if name in stored["layer"]:
            width = f"{decades(stored, name).mean():.1f}"
        cells = ["-"] * 4
        if name in stored["quotient"]:
            cells = [
                f"{of_quotient(stored, name, what, noise).mean():.2g}"
                for what, noise in (
                    ("distances", 0),
                    ("distances", -1),
                    ("lengths", -1),
                    ("angles", -1),
                )
            ]
        return (name, width, *cells)

    kept = zip(*(stored["decay"][way] for way in _WAYS), strict=True)
    decay = "; ".join(
        f"{decay:g}: {' / '.join(f'{left:.3f}' for left in lefts)}"
        for decay, lefts in zip(stored["decays"], kept, strict=True)
    )
    return Table(
        "a layer in other units, and a Rayleigh quotient",
        ("optimizer", "decades", "distance", "noisy", "length", "angle"),
        map(row_of, names),
        f"decades of units, of {np.ptp(stored['factors']):g}, with a loss as good; the "
        "quotient's distance\nto the smallest eigenvalue; with noise that, length over "
        f"the first, radians a step.\nbfloat16 left after {33 * stored['steps']:,} "
        f"decays, exact / as it is / compensated:\n{decay}",
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """Return what JSON can hold: a run that diverged is far away."""
    return np.nan_to_num(np.clip(values, 1e-30, 1e30), nan=1e30)


def _line(name: str) -> dict[str, Any]:
    colour, dashes = _LINES[name]
    return {"label": name, "color": colour, "linestyle": dashes, "linewidth": 1.6}


_WAYS = ("exact", "as it is", "compensated")
_LINES = {
    "adam": (figures.ORANGE, ":"),
    "adamw": (figures.ORANGE, "-"),
    "normalized adam": (figures.ORANGE, "--"),
    "adams": (figures.PURPLE, "--"),
    "adamsrt": (figures.PURPLE, "-"),
    "novograd": (figures.GREY, "--"),
    "muon": (figures.BLUE, "-"),
    "hyperball": (figures.GREEN, "-"),
    "rotational": (figures.GREEN, "--"),
    "sgd": (figures.GREY, "-"),
}
_PLAIN = {"unit": "", "scale": 1.0, "over": "paired seeds"}
UNITS = Metric(
    "decades of units with a loss as good",
    decades,
    "more",
    less_is_better=False,
    form="{:.1f}",
    **_PLAIN,
)
LENGTH = Metric(
    "length over that at the start",
    functools.partial(of_quotient, what="lengths"),
    form="{:.4f}",
    **_PLAIN,
)
DISTANCE = Metric(
    "log10 of the distance to the smallest eigenvalue, with noise",
    lambda stored, name: np.log10(of_quotient(stored, name, "distances")),
    form="{:.2f}",
    **_PLAIN,
)


def _decay_error(stored: Stored, way: str) -> float:
    left, exact = (np.asarray(stored["decay"][one]) for one in (way, "exact"))
    return float(np.abs(left / exact - 1).max())


DECAY_ERROR = Metric("largest error of a decay in bfloat16", _decay_error, scale=1.0)


def _extent(stored: Stored) -> str:
    return (
        f"n = {stored['seeds']} seeds, {stored['steps']} steps, "
        f"{len(stored['exponents'])} rates; {len(stored['factors'])} factors on a "
        f"layer, {len(stored['noises'])} noises, {len(stored['decays'])} decays"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "On hyperballs, a layer trains in more units than under AdamW.",
            (Check(UNITS, "hyperball", "adamw"),),
        ),
        Claim(
            "Rotational Adam trains a layer in more units than AdamW.",
            (Check(UNITS, "rotational", "adamw"),),
        ),
        Claim(
            "Adam lengthens weights whose length the loss ignores.",
            (Check(LENGTH, "adam", low=1.001),),
        ),
        Claim(
            "Hyperballs keep the length of weights.",
            (Check(LENGTH, "hyperball", low=0.999, high=1.001),),
        ),
        Claim(
            "AdamSRT comes closer to the smallest eigenvalue than Adam.",
            (Check(DISTANCE, "adamsrt", "adam"),),
        ),
        Claim(
            "Compensated, bfloat16 weights decay as they would without rounding.",
            (Check(DECAY_ERROR, "compensated", low=-1.0, high=0.02),),
        ),
    ),
    extent=_extent,
    tables=(table,),
    pictures=(
        Picture(
            "toy_problems",
            "The loss over a factor on a layer's weights, and over the learning rate "
            "the distance and the length of a Rayleigh quotient's argument.",
            draw,
        ),
    ),
)
