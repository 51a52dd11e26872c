"""Follow the best learning rate over the width of a language model and over batches.

The text, and the rule by which rates are tried, are those of `language_model`, each
from 3 seeds. Adam has three forms of decay: coupled to the rate, as in optax;
independent of it; and none on hyperballs, which keep the length of weights. They are
held against each other in networks of 32 to 128 numbers a place, as it is said of the
last that the best rate moves least there. AdamW and Muon are also tried in batches of 8
to 64 windows, at equal numbers of bytes.

    python -m experiments transformers.best_rates

takes less than an hour on two CPU cores, beside other work. It writes
`best_rates.json`, `best_rates.png` and what is finished, from where the same command
goes on; `--redraw` draws the records again. `--widths` and `--batches` name fewer.

Where a best rate lies is read off a parabola through the best three of each seed. The
claims and their margin were written down before the runs.

Seen: each time the width doubles, from 32 to 64 to 128, the best rate falls by 0.77
octaves with coupled decay (0.021, 0.014, 0.0074), 0.64 with independent decay (0.028,
0.018, 0.011) and 0.31 on hyperballs (0.020, 0.017, 0.013). So it moves on hyperballs,
too, but less than half as far. Independent decay is ahead of coupled by 0.13 octaves
(0.09 to 0.17), hyperballs by 0.45 (0.04 to 0.87, a wide interval). From batches of 8 to
batches of 64, through 16 and 32, the best rate of AdamW rises from 0.018 to 0.031, and
Muon's from 0.034 to 0.076, that is by factors of 1.7 and 2.2, where the square root of
8 is 2.8. With equal numbers of bytes larger batches end worse: AdamW with 3.57 bits per
byte in place of 3.01, Muon with 3.34 in place of 2.88. The two decays were not tuned,
and no claim is made of batches.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console

import normopt
from experiments.config import Options, Stored, run
from experiments.data import stdlib
from experiments.papers.transformers.language_model import (
    LINES,
    near,
    tune,
)
from experiments.papers.transformers.language_training import (
    HEAD,
    METHODS,
    POINTS,
    Method,
    check_multiples,
    load_task,
)
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "transformers.best_rates"
COUPLED, INDEPENDENT, HYPERBALL = "coupled decay", "independent decay", "hyperball"
FORMS: Mapping[str, Method] = {
    COUPLED: Method(functools.partial(optax.adamw, weight_decay=0.1), -1.7),
    INDEPENDENT: Method(
        lambda rate: optax.chain(optax.adam(rate), normopt.decay_weights(1e-3)), -1.7
    ),
    HYPERBALL: METHODS["hyperball"],
}
IN_BATCHES = ("adamw", "muon")
SEEDS = (0, 1, 2)
_FIRST = 8  # windows in the batch of which `steps` are told


@dataclasses.dataclass(frozen=True)
class BestRatesOptions(Options):
    """Where to write, and how much to compute."""

    steps: int = 480
    """Of each run with the smallest batch, a multiple of 20."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Of the network, multiples of 32."""
    batches: tuple[int, ...] = (8, 16, 32, 64)
    """Windows in a step; `steps` times 8 over each is a multiple of 20 as well."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    small = {"steps": POINTS, "widths": (32,), "batches": ()}
    least = {"steps": POINTS}
    run(args, NAME, BestRatesOptions, measure, draw, table, least=least, small=small)


def measure(config: BestRatesOptions, console: Console) -> dict[str, Any]:
    """Train every form and optimizer, or read those that are finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each part.

    Returns:
        The settings and the digest of the text; for each form and width, and for each
        optimizer and batch, what `tune` finds.
    """
    if not (config.widths or config.batches):
        raise ValueError("`widths` and `batches` are both empty: name one at least")
    check_multiples("steps", [config.steps], POINTS, 10**6)
    check_multiples("widths", config.widths, HEAD, 1024)
    for batch in config.batches:
        if batch < 1 or config.steps * _FIRST % (batch * POINTS):
            raise ValueError(
                f"`batches` must be at least 1 and leave a multiple of {POINTS} steps "
                f"of `steps` times {_FIRST} windows, got {batch}"
            )
    context = 8 if config.smoke else 64
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}

    def add(name: str, method: Method, width: int, batch: int) -> None:
        steps = config.steps * _FIRST // batch
        size = {"width": width, "batch": batch, "steps": steps}
        jobs[name] = lambda: tune(method, SEEDS, load_task(context=context, **size))

    for width in config.widths:
        for form, method in FORMS.items():
            add(f"{form}, width {width}", method, width, _FIRST)
    for batch in config.batches:
        for name in IN_BATCHES:
            add(f"{name}, batch {batch}", METHODS[name], 32, batch)
    # What was left out may be added later.
    settings = {
        "steps": config.steps,
        "context": context,
        "seeds": len(SEEDS),
        "text": stdlib.load().fingerprint(),
    }
    found = measure_parts(
        config, "best_rates", settings, jobs, lambda name: jobs[name](), console
    )
    return {"device": devices.describe(), **settings, "found": found}


def best_exponents(found: Stored) -> np.ndarray:
    """Return where each seed's end is lowest, as an exponent of 10 of the rate.

    It is the lowest point of the parabola through the best rate and its neighbours, or
    the best rate itself at an end of the grid.

    Args:
        found: what `tune` did.
    """
    exponents = np.log10(found["rates"])
    lowest = []
    for ends in np.asarray(found["ends"]):
        best = int(ends.argmin())
        if best in (0, len(ends) - 1):
            lowest.append(exponents[best])
            continue
        left, middle, right = ends[best - 1 : best + 2]
        spacing = exponents[best + 1] - exponents[best]
        curvature = left - 2 * middle + right
        shift = (left - right) / (2 * curvature) if curvature > 0 else 0.0
        lowest.append(exponents[best] + spacing * shift)
    return np.array(lowest)


def shift_of(stored: Stored, form: str) -> np.ndarray | None:
    """Return by how many octaves each seed's best rate moves per doubled width.

    Args:
        stored: what `best_rates.json` holds.
        form: of decay.
    """
    widths, exponents = _over_widths(stored, form)
    if len(widths) < 2:
        return None
    slopes = np.polyfit(np.log10(widths), exponents, 1)[0]
    return np.abs(slopes)


def _over_widths(stored: Stored, form: str) -> tuple[list[int], list[np.ndarray]]:
    known = {
        int(name.rpartition(" ")[2]): best_exponents(found)
        for name, found in stored["found"].items()
        if name.startswith(f"{form}, width ")
    }
    return list(known), list(known.values())


def draw(path: Path, stored: Stored) -> None:
    """Draw the ends over the rate, a line for each width or batch.

    Args:
        path: the PNG to write.
        stored: what `best_rates.json` holds.
    """
    kinds = dict.fromkeys(name.partition(", ")[0] for name in stored["found"])
    with matplotlib.rc_context(figures.STYLE):
        size = (3.2 * len(kinds), 3.8)
        figure = Figure(figsize=size, layout="constrained")
        shared = {"sharex": True, "sharey": True, "squeeze": False}
        panels = figure.subplots(1, len(kinds), **shared)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            colour = LINES.get(kind, {"color": figures.ORANGE})["color"]
            mine = [n for n in stored["found"] if n.startswith(f"{kind}, ")]
            for row, name in enumerate(mine):
                found = stored["found"][name]
                mean = np.mean(found["ends"], axis=0)
                shade = {"color": colour, "alpha": 0.3 + 0.7 * (row + 1) / len(mine)}
                axes.plot(found["rates"], mean, label=name.partition(", ")[2], **shade)
                exponent = best_exponents(found).mean()
                height = np.interp(exponent, np.log10(found["rates"]), mean)
                axes.plot(10**exponent, height, "o", **shade)
            axes.set(title=kind, xscale="log", xlabel="largest learning rate")
            axes.legend(frameon=False, fontsize=8, loc="upper right")
        panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panels[0].xaxis.set_minor_locator(NullLocator())
        panels[0].xaxis.set_major_formatter("{x:g}")
        panels[0].set(ylabel="bits per byte at the end")
        means = [np.mean(f["ends"], axis=0) for f in stored["found"].values()]
        best, worst = (of(mean.min() for mean in means) for of in (min, max))
        panels[0].set(ylim=(best - 0.1, worst + 0.7))
        figure.suptitle(
            f"{stored['steps']} steps of {_FIRST} x {stored['context']} bytes, or as "
            f"many bytes in other batches; mean of {stored['seeds']} seeds"
        )
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the best rate of each, its end, and how wide its valley is."""

    def row_of(name: str, found: Stored) -> tuple[str, ...]:
        mean = np.mean(found["ends"], axis=0)
        exponents = best_exponents(found)
        return (
            name,
            f"{10 ** exponents.mean():.3g}",
            f"{10 ** np.ptp(exponents):.2f}",
            f"{mean.min():.3f}",
            near(found).in_words(),
        )

    return Table(
        "the best rate by width, and by batch at equal numbers of bytes",
        ("what", "best rate", "ratio", "end", "decades"),
        (row_of(*one) for one in stored["found"].items()),
        f"means of {stored['seeds']} seeds; ratio: of the highest of their best rates "
        "to the lowest\ndecades: of rates within 2 % of the best",
    )


SHIFT = Metric(
    "octaves that the best rate moves for a doubled width",
    shift_of,
    "less",
    "octaves",
    scale=1.0,
    form="{:.2f}",
)


def _extent(stored: Stored) -> str:
    return (
        f"n = {stored['seeds']} seeds at rates a factor of 2 apart, {stored['steps']} "
        f"steps "
        f"of 8 x {stored['context']} bytes of the sources of Python "
        f"{stored['text']['python']}; {len(stored['found'])} settings"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "On hyperballs the best rate moves less with the width than with a decay "
            "that is coupled to it.",
            (Check(SHIFT, HYPERBALL, COUPLED),),
        ),
        Claim(
            "With a decay that is independent of the rate, the best rate moves less "
            "with the width than with one that is coupled to it.",
            (Check(SHIFT, INDEPENDENT, COUPLED),),
        ),
    ),
    extent=_extent,
    tables=(table,),
    pictures=(
        Picture(
            "best_rates",
            "Bits per byte over the learning rate, a panel for each form of decay and "
            "optimizer, a line for each width or batch, a dot at its best rate.",
            draw,
        ),
    ),
)
