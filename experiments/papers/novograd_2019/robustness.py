"""Measure NovoGrad, AdamW and SGD from other weights and in float16.

Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
Training of Deep Networks", 2019, arXiv 1905.11286, abstract: NovoGrad is robust to the
initial weights; the documentation of TensorFlow Addons: it is numerically more stable
than Adam. Neither has a value to compare with. Network, images, modes and baselines are
those of `modes`, each with 10 seeds, at the best of 7 rates over three decades.

    python -m experiments novograd_2019.robustness

takes six minutes on two CPU cores. It writes `robustness.json`, `robustness.png` and
what is finished, from where the same command goes on; `--redraw` draws the records
again.

Fixed in advance. Weights: the initial ones times 1e-6 to 10, at the best rate for a
factor of 1; counted are the decades of factors about 1 with an error of at most 1 point
above that of 1. Float16: parameters, images, gradients and all arithmetic of the
training, but for what an optimizer itself takes in float32, as NovoGrad the sums of
squares and the second moments, one number an array. The loss is multiplied by 2**-20 to
2**16, and the gradients are not divided again: to NovoGrad and Adam, but for eps, the
unit of the gradient is nothing, so what a factor changes is what float16 loses. Counted
are the octaves of factors, about the best one, with an error of at most 1 point above
that in float32. Adam's eps of 1e-8 is 0 in float16, so it is also tried with 1e-4.
Judged is the paper's own mode, `sum, decay`, and in float16 against an AdamW whose
state is in float32 as its own is. The factors were chosen after a coarse look at other
seeds, those of 2**13 to 2**15 added later.

In brackets, one seed left out; between the factors, of which the lowest are 4 octaves
apart, widths are read off straight lines. Initial weights: it does not show for all
modes. The averages have almost three decades more than AdamW, or 0.7 where its one lost
run is left out; the sums have no more. From weights of a hundredth three in ten of the
sums' runs never learn, one of AdamW's, none of the averages' and all of SGD's.

Stability: it does not show where both have their state in float32: each mode is within
a point from 2**-16 to 2**14 and more, and AdamW so for an octave more. Where optax
keeps AdamW's moments in the dtype of the parameters, it is so nowhere, and with an eps
of 1e-4 from 2**0 to 2**8. In short: NovoGrad needs one number an array in float32 for
what takes Adam two arrays. Runs in larger batches, of 30 steps, were dropped for those
of `large_batches`: after the runs the stored file was converted into a form without
them, without a change of the other numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

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
from experiments.papers.novograd_2019.valleys import cut_in_words
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic
from experiments.training import devices
from experiments.training.measuring import measure_parts

NAME = "novograd_2019.robustness"
SMOKE = ("NovoGrad, sum",)


@dataclasses.dataclass(frozen=True)
class RobustnessOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 10
    """Runs of each setting, at least 2."""
    epochs: int = 30
    """Passes over the training images."""


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
    starts = [start(seed, config.epochs) for seed in range(config.seeds)]
    names = SMOKE if config.smoke else METHODS
    told = {
        "epochs": config.epochs,
        "training_images": TRAIN_IMAGES,
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
        f"{stored['training_images']} digits; {len(stored['scales'])} factors on the "
        f"initial weights and {len(stored['units'])} on the loss"
    )


EXHIBIT = Exhibit(
    claims=(
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
    "of the second claim have their state in float32: optax's AdamW keeps its moments "
    "in the dtype of the parameters, float16, and that alone decides; the table has "
    "it, with its own eps and with one of 1e-4, beside the one that is compared.",
    tables=(table,),
    pictures=(
        Picture(
            "robustness",
            "Test error of NovoGrad's four modes, AdamW and SGD over a factor on the "
            "initial weights, and, in float16, over a factor on the loss.",
            draw,
        ),
    ),
)
