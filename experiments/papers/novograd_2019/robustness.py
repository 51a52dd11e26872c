"""Measure NovoGrad, AdamW and SGD in large batches, from other weights and in float16.

Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
Training of Deep Networks", 2019, arXiv 1905.11286, abstract: NovoGrad works well in a
large batch setting and is robust to the initial weights; the documentation of
TensorFlow Addons: it is numerically more stable than Adam. Neither has a value to
compare with. Network, images, modes and baselines are those of `modes`, each with 10
seeds, and for each size of a batch at the best of 7 rates over three decades.

    python -m experiments novograd_2019.robustness

takes eight minutes on two CPU cores. It writes `robustness.json`, `robustness.png`
and what is finished, from where the same command goes on; `--redraw` draws the records
again.

Fixed in advance. Batches: 20, 100 or all 400 images, after 30 epochs each. Weights: the
initial ones times 1e-6 to 10, at the best rate for a factor of 1; counted are the
decades of factors about 1 with an error of at most 1 point above that of 1. Float16:
parameters, images, gradients and all arithmetic of the training, but for what an
optimizer itself takes in float32, as NovoGrad the sums of squares and the second
moments, one number an array. The loss is multiplied by 2**-20 to 2**16, and the
gradients are not divided again: to NovoGrad and Adam, but for eps, the unit of the
gradient is nothing, so what a factor changes is what float16 loses. Counted are the
octaves of factors, about the best one, with an error of at most 1 point above that in
float32. Adam's eps of 1e-8 is 0 in float16, so it is also tried with 1e-4. Judged is
the paper's own mode, `sum, decay`, and in float16 against an AdamW whose state is in
float32 as its own is. The factors were chosen after a coarse look at other seeds, those
of 2**13 to 2**15 added later. The rates for larger batches were moved up, for all
alike, when the sums' best one with all images was the highest.

In brackets, one seed left out; between the factors, of which the lowest are 4 octaves
apart, widths are read off straight lines. Large batches: 30 steps do not tell, which is
what all images in a step leave; after these the sums are 4 points above AdamW and the
averages 36, which the weight of their first gradient may explain; with 100 images, too,
all are above both baselines. So short a training says little of the paper's, of
thousands of steps. Initial weights: it does not show for all modes. The averages have
almost three decades more than AdamW, or 0.7 where its one lost run is left out; the
sums have no more. From weights of a hundredth three in ten of the sums' runs never
learn, one of AdamW's, none of the averages' and all of SGD's.

Stability: it does not show where both have their state in float32: each mode is within
a point from 2**-16 to 2**14 and more, and AdamW so for an octave more. Where optax
keeps AdamW's moments in the dtype of the parameters, it is so nowhere, and with an eps
of 1e-4 from 2**0 to 2**8. In short: NovoGrad needs one number an array in float32 for
what takes Adam two arrays.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.novograd_2019.modes import BASELINES, PAPERS
from experiments.papers.novograd_2019.modes_training import (
    TRAIN_IMAGES,
    load_task,
    start,
)
from experiments.papers.novograd_2019.robustness_training import (
    FLOAT32,
    GRID,
    METHODS,
    SMALL_GRID,
    study,
)
from experiments.papers.novograd_2019.robustness_views import (
    ValleyOf,
    draw,
    seeds_of,
    table,
    units_valley,
    weights_valley,
)
from experiments.papers.novograd_2019.valleys import MARGIN, cut_in_words
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic, by_others
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "novograd_2019.robustness"
SMOKE = ("NovoGrad, sum",)
# Fewer steps of the largest batch do not tell how an optimizer takes it.
FEWEST_STEPS = 500


@dataclasses.dataclass(frozen=True)
class RobustnessOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 10
    """Runs of each setting, at least 2."""
    epochs: int = 30
    """Passes over the training images, for every size of a batch."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "epochs": 1}, {"seeds": 2, "epochs": 1}
    run(args, NAME, RobustnessOptions, measure, draw, table, least=least, small=small)


def measure(config: RobustnessOptions, console: Console) -> dict[str, Any]:
    """Train every optimizer in all settings, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer.

    Returns:
        The settings, and for each optimizer what `study` finds.
    """
    task, grid = load_task(), SMALL_GRID if config.smoke else GRID
    starts = {
        batch: [start(seed, config.epochs, batch) for seed in range(config.seeds)]
        for batch in grid.batches
    }
    names = SMOKE if config.smoke else METHODS
    told = {
        "epochs": config.epochs,
        "training_images": TRAIN_IMAGES,
        "batches": list(grid.batches),
        "scales": grid.scales,
        "units": grid.units,
    }
    settings = {**told, "seeds": config.seeds, "rates": grid.rates.step}

    def study_of(name: str) -> dict[str, Any]:
        return study(name, grid, starts, task)

    found = measure_parts(config, "robustness", settings, names, study_of, console)
    return {"device": devices.describe(), **told, "optimizers": found}


def _width(
    stored: Stored, name: str, valley: Callable[[str, Stored], ValleyOf]
) -> Statistic:
    of = valley(name, stored)
    return Statistic(seeds_of(stored), lambda seeds: of(seeds).width)


def _is_cut(
    stored: Stored, names: Sequence[str], valley: Callable[[str, Stored], ValleyOf]
) -> str:
    seeds = range(seeds_of(stored))
    return cut_in_words({name: valley(name, stored)(seeds) for name in names})


def _errors(stored: Stored, name: str) -> np.ndarray:
    most = str(stored["batches"][-1])
    return by_others(np.asarray(stored["optimizers"][name]["batches"][most]))


def _too_short(stored: Stored) -> str:
    steps = stored["epochs"] * stored["training_images"] // stored["batches"][-1]
    if steps >= FEWEST_STEPS:
        return ""
    return (
        f"{steps} steps of the largest batch; it takes {FEWEST_STEPS}, as "
        f"`--epochs {FEWEST_STEPS}` trains"
    )


# A rate that other seeds have chosen may be a bad one for a seed: spreads are skewed.
ERROR = Metric("test error in the largest batch", _errors, skewed=True)
WIDTHS = [
    Metric(
        f"{unit} of a factor on {what}",
        functools.partial(_width, valley=valley),
        "more",
        unit,
        less_is_better=False,
        scale=1.0,
        form="{:.2f}",
    )
    for unit, what, valley in (
        ("decades", "the initial weights", weights_valley),
        ("octaves", "the loss, in float16", units_valley),
    )
]


def _extent(stored: Stored) -> str:
    return (
        f"n = {seeds_of(stored)} seeds, {stored['epochs']} epochs of "
        f"{stored['training_images']} digits; {len(stored['batches'])} sizes of a "
        f"batch, {len(stored['scales'])} factors on the initial weights and "
        f"{len(stored['units'])} on the loss"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "NovoGrad works well with large batches.",
            tuple(Check(ERROR, PAPERS, name, -100 * MARGIN) for name in BASELINES),
            _too_short,
        ),
        Claim(
            "NovoGrad is robust to the initial weights.",
            tuple(Check(WIDTHS[0], PAPERS, name) for name in BASELINES),
            functools.partial(
                _is_cut, names=(PAPERS, *BASELINES), valley=weights_valley
            ),
        ),
        Claim(
            "NovoGrad is numerically more stable than Adam.",
            (Check(WIDTHS[1], PAPERS, FLOAT32),),
            functools.partial(_is_cut, names=(PAPERS, FLOAT32), valley=units_valley),
        ),
    ),
    extent=_extent,
    note="Judged is the paper's own mode, as in `novograd_2019.modes`. Both optimizers "
    "of the third claim have their state in float32: optax's AdamW keeps its moments "
    "in the dtype of the parameters, float16, and that alone decides; the table has "
    "it, with its own eps and with one of 1e-4, beside the one that is compared.",
    tables=(table,),
    pictures=(
        Picture(
            "robustness",
            "Test error of NovoGrad's four modes, AdamW and SGD over the "
            "images in a batch, over a factor on the initial weights, and, in "
            "float16, over a factor on the loss.",
            draw,
        ),
    ),
)
