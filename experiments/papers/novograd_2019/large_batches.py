"""Train with NovoGrad, AdamW and SGD in larger and larger batches, up to all images.

Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
Training of Deep Networks", 2019, arXiv 1905.11286, abstract: NovoGrad works well in a
large batch setting. Its values are of networks that take many GPUs. Network, images and
optimizers are those of `modes`, in batches of 20, 100 and all 400 images for 500
epochs each: the largest has 500 steps, the smallest 10,000.

    python -m experiments novograd_2019.large_batches

takes a quarter of an hour on two CPU cores, with `--batches 100 400` and beside other
work; batches of 20 were not timed. It writes `large_batches.json`, `large_batches.png`
and what is finished, from where the same command goes on; `--redraw` draws the records
again.

Fixed before any run that is stored: rates rise in a line for 5 % of the steps and fall
on a cosine to zero. For each size of a batch an optimizer is tried at 7 rates over
three decades, from 2 seeds, and the lowest mean error on 400 held-out images chooses
one; from 10 fresh seeds that rate is judged on the other 997. On par is what is worse
by less than a point in the largest batch, as in `modes`. The middles of the rates were
chosen after a look at one other seed.

Stored are the two larger ones, by `--batches 100 400`. Seen, errors and half of the
95 % intervals of their means:

                           100 images             400 images
    NovoGrad, sum, decay   5.42% +- 0.74%         5.37% +- 0.44%
    AdamW                  5.02% +- 0.19%         5.23% +- 0.39%
    SGD                    5.23% +- 0.29%         6.20% +- 0.48%

With all 400 NovoGrad is behind AdamW by a median of 0.05 points, 0.90 at most, so it is
on par. That it is ahead of SGD says little: two seeds have chosen the lowest rate of
SGD's valley. To these two seeds NovoGrad is within a point of its best at all rates
tried, over three decades, AdamW and SGD over about one; that was not asked before, so
it is not judged. A batch of all images has no noise left: large batches of large sets
are another matter. After 30 epochs only, without warm-up, as an earlier version judged
it, NovoGrad was behind AdamW by 1.2 points in batches of 100 and by 4 in batches of 400
(commit 4734aa3): in few steps it is slower.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.papers.novograd_2019.modes import BASELINES, PAPERS, TICKS
from experiments.papers.novograd_2019.modes_training import (
    METHODS,
    TRAIN_IMAGES,
    Make,
    Start,
    Task,
    load_task,
    start,
    train,
    wrong_answers,
)
from experiments.papers.novograd_2019.valleys import MARGIN
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, of_mean
from experiments.report.tables import Table
from experiments.training import devices, many_runs
from experiments.training.measuring import measure_parts

NAME = "novograd_2019.large_batches"
ARMS = (PAPERS, *BASELINES)
SMOKE = ARMS[:2]
# Exponents of 10, about which the rates lie; a size of a batch that is not named has
# those of the next one below.
MIDDLES = {
    PAPERS: {1: -2.0, 100: -1.5},
    "AdamW": {1: -2.5},
    "SGD": {1: -2.0, 100: -1.5},
}
SPREAD = np.linspace(-1.5, 1.5, 7)
WARM_UP = 0.05
TUNING_IMAGES = 400  # of those held out; the others judge
# `modes` has seen the first ten seeds.
FIRST_TUNING, FIRST_FRESH = 100, 200


@dataclasses.dataclass(frozen=True)
class LargeBatchesOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 10
    """Fresh seeds, from which the best rate is judged, at least 2."""
    tuning_seeds: int = 2
    """Other seeds, which choose that rate."""
    epochs: int = 500
    """Passes over the training images, and so steps of the largest batch."""
    batches: tuple[int, ...] = (20, 100, TRAIN_IMAGES)
    """Images in a step, divisors of 400, the largest last."""


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least = {"seeds": 2, "tuning_seeds": 1, "epochs": 1}
    small = {"seeds": 2, "tuning_seeds": 1, "epochs": 2, "batches": (100, 400)}
    run(args, NAME, LargeBatchesOptions, measure, draw, table, least=least, small=small)


def measure(config: LargeBatchesOptions, console: Console) -> dict[str, Any]:
    """Tune and judge every optimizer in every size of a batch, or read what is there.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each optimizer and size.

    Returns:
        The settings, and for each optimizer and size the exponents of 10 of the rates,
        the errors of the tuning seeds, seeds x rates, the exponent that is best, and
        the errors of the fresh seeds there.
    """
    _check(config.batches)
    task = load_task()
    spread = SPREAD[::3] if config.smoke else SPREAD
    names = SMOKE if config.smoke else ARMS
    # The largest batch, which is judged, first.
    each = [(name, batch) for batch in reversed(config.batches) for name in names]
    jobs = {part(*one): one for one in each}

    def starts(first: int, seeds: int, batch: int) -> list[Start]:
        each = range(first, first + seeds)
        return [start(seed, config.epochs, batch) for seed in each]

    def study(job: str) -> dict[str, Any]:
        name, batch = jobs[job]
        make = METHODS[name].make
        middles = MIDDLES[name]
        exponents = middles[max(size for size in middles if size <= batch)] + spread
        some = starts(FIRST_TUNING, config.tuning_seeds, batch)
        tuning, _ = errors_at(make, 10.0**exponents, some, task)
        best = exponents[tuning.mean(axis=0).argmin()]
        fresh = starts(FIRST_FRESH, config.seeds, batch)
        _, judged = errors_at(make, 10.0 ** best[None], fresh, task)
        return {
            "exponents": exponents.tolist(),
            "tuning": tuning.round(5).tolist(),
            "best": float(best),
            "errors": judged[:, 0].round(5).tolist(),
        }

    told = {
        "epochs": config.epochs,
        "training_images": TRAIN_IMAGES,
        "tuning_images": TUNING_IMAGES,
        "warm_up": WARM_UP,
        "tuning_seeds": config.tuning_seeds,
        "seeds": config.seeds,
    }
    # Sizes that are left out may be added later.
    settings = {**told, "spread": spread.tolist()}
    found = measure_parts(config, "large_batches", settings, jobs, study, console)
    sizes = {"batches": list(config.batches)}
    return {"device": devices.describe(), **told, **sizes, "found": found}


def _check(batches: Sequence[int]) -> None:
    """Raise ValueError at sizes of a batch that cannot be trained or told apart."""
    for batch in batches:
        if batch < 1 or TRAIN_IMAGES % batch:
            raise ValueError(
                f"`batches` must be divisors of {TRAIN_IMAGES}, got {batch}"
            )
    if not batches or list(batches) != sorted(set(batches)):
        raise ValueError(f"`batches` must rise, the largest last, got {batches}")


def part(name: str, batch: int) -> str:
    """Return the name of what an optimizer's runs in one size of a batch come to."""
    return f"{name}, {batch} images"


def errors_at(
    make: Make, rates: np.ndarray, starts: Sequence[Start], task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Train at every rate from every start.

    Args:
        make: gives the optimizer.
        rates: the largest of each run.
        starts: one for each seed.
        task: what is trained on.

    Returns:
        The errors on the images that tune, and on those that judge, seeds x rates.
    """

    def errors(start: Start, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = train(make, rate, start, task, warm_up=WARM_UP)
        wrong = wrong_answers(params, task)
        return jnp.mean(wrong[:TUNING_IMAGES]), jnp.mean(wrong[TUNING_IMAGES:])

    return many_runs.over_all(errors, starts, rates)


def draw(path: Path, stored: Stored) -> None:
    """Draw the errors over the size of a batch, and those that chose the last rate.

    Args:
        path: the PNG to write.
        stored: what `large_batches.json` holds.
    """
    batches, most = stored["batches"], stored["batches"][-1]
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        sizes, rates = figure.subplots(1, 2, sharey=True)
        for rank, name in enumerate(names_of(stored)):
            line = figures.LINES[name] | {"linewidth": 2}
            spans = [of_mean(errors_of(stored, name, batch)) for batch in batches]
            low, middle, high = np.transpose(spans)
            # Bars of several optimizers at one size would hide one another.
            places = np.array(batches) * 10 ** (0.02 * (rank - 1))
            bars = {"yerr": (middle - low, high - middle), "marker": "o"}
            sizes.errorbar(places, middle, **bars, **line, label=name)
            found = stored["found"][part(name, most)]
            mean = np.mean(found["tuning"], axis=0)
            rates.plot(10 ** np.array(found["exponents"]), mean, **line)
            mark = {"color": line["color"], "marker": "o"}
            rates.plot(10 ** found["best"], mean.min(), **mark)
        sizes.set(
            xlabel="images in a batch",
            ylabel="test error, log scale",
            title=f"{stored['seeds']} fresh seeds, and 95 % of their mean",
            xscale="log",
            yscale="log",
            xlim=(batches[0] / 1.5, 1.5 * most),
        )
        rates.set(
            xlabel="largest learning rate",
            title=f"{most} images in a batch: {stored['tuning_seeds']} tuning seeds",
            xscale="log",
        )
        sizes.set_xticks(batches, batches)
        sizes.set_xticks([], minor=True)
        sizes.set_yticks([], minor=True)
        ticks = (0.03, 0.04, *TICKS)
        sizes.set_yticks(ticks, [f"{error:.0%}" for error in ticks])
        steps = " or ".join(f"{steps_of(stored, batch):,}" for batch in batches)
        figure.suptitle(
            f"{stored['training_images']} digits for {stored['epochs']} epochs, that "
            f"is {steps} steps"
        )
        lines = sizes.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the best rate and the error of each optimizer in each size of a batch."""

    def row_of(name: str, batch: int) -> tuple[str, ...]:
        found, span = (
            stored["found"][part(name, batch)],
            of_mean(errors_of(stored, name, batch)),
        )
        return (
            name,
            str(batch),
            f"{steps_of(stored, batch):,}",
            f"{10 ** found['best']:.2g}",
            f"{span.middle:.2%} ± {100 * (span.high - span.middle):.2f}",
        )

    return Table(
        "test error at the rate that the tuning seeds choose",
        ("optimizer", "images in a batch", "steps", "rate", "test error"),
        (row_of(n, b) for n in names_of(stored) for b in stored["batches"]),
        f"{stored['seeds']} fresh seeds; ± half of the 95 % interval of their mean",
    )


def names_of(stored: Stored) -> list[str]:
    """Return the optimizers that were trained."""
    most = stored["batches"][-1]
    return [name for name in ARMS if part(name, most) in stored["found"]]


def errors_of(stored: Stored, name: str, batch: int) -> np.ndarray:
    """Return the errors of the fresh seeds."""
    return np.asarray(stored["found"][part(name, batch)]["errors"])


def steps_of(stored: Stored, batch: int) -> int:
    """Return how many steps a run in batches of this size takes."""
    return stored["epochs"] * stored["training_images"] // batch


def _errors(stored: Stored, name: str) -> np.ndarray:
    return errors_of(stored, name, stored["batches"][-1])


FEWEST_STEPS = 500


def _lacks(stored: Stored) -> str:
    """Say what keeps the runs of the largest batch from telling, if anything does."""
    most = stored["batches"][-1]
    steps = steps_of(stored, most)
    if steps < FEWEST_STEPS:
        return f"{steps} steps of the largest batch; it takes {FEWEST_STEPS}"
    for name in ARMS:
        found = stored["found"][part(name, most)]
        if found["best"] in (found["exponents"][0], found["exponents"][-1]):
            return f"the best rate of {name} is at an end of those that were tried"
    return ""


# A run that is lost counts as one seed, however far off it is.
ERROR = Metric("test error in the largest batch", _errors, skewed=True)


def _extent(stored: Stored) -> str:
    most = stored["batches"][-1]
    return (
        f"n = {stored['seeds']} fresh seeds, {stored['epochs']} epochs of "
        f"{stored['training_images']} digits in batches of "
        f"{', '.join(map(str, stored['batches']))}; the last in "
        f"{steps_of(stored, most)} steps"
    )


def _stored_by(stored: Stored) -> tuple[str, ...]:
    batches = tuple(stored["batches"])
    if batches == LargeBatchesOptions.batches:
        return ("",)
    return (f"--batches {' '.join(map(str, batches))}",)


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "NovoGrad works well with large batches.",
            tuple(Check(ERROR, PAPERS, name, -100 * MARGIN) for name in BASELINES),
            _lacks,
        ),
    ),
    extent=_extent,
    stored_by=_stored_by,
    note="Each optimizer has, in each size of a batch, the rate that is best for other "
    "seeds on other images.",
    tables=(table,),
    pictures=(
        Picture(
            "large_batches",
            "Test error over the images in a batch for NovoGrad, AdamW and SGD, and, "
            "for the largest batch, the error over the learning rate that chose it.",
            draw,
        ),
    ),
)
