"""Go on from pretrained layers with a fraction of the learning rate on them.

OverLordGoldDragon, keras-adamw, 2019, on multipliers of the learning rate: where new
layers stand on pretrained ones, one rate for all is prone to overfitting; a fraction on
the pretrained ones can be better than freezing them; the more they are pretrained, the
lower the fraction should be; and it is often best not to pretrain them fully. Words
alone, no value. Here the two convolutions of `novograd_2019.modes` learn five of the
ten digits, from 800 images for 2, 8 or 32 epochs; then a new dense layer stands on
them, and all learn the other five digits from 50 images for 40 epochs.

    python -m experiments decoupled_decay_2019.pretrained_layers

takes two minutes on two CPU cores. It writes `pretrained_layers.json`,
`pretrained_layers.png` and what is finished, from where the same command goes on;
`--redraw` draws the records again.

Fixed before any run that is stored: which digits are which, a seed draws. AdamW without
decay, in batches of 20 and then 10, on a cosine to zero; pretraining is at a rate of
0.003. The pretrained layers have 1, 0.3, 0.1, 0.03 or 0.01 of the rate of the new one,
or none. For each fraction and length, 8 seeds choose one of 6 rates by the error on
300 images, and of the fractions between none and 1 the one that is judged; 60 other
seeds judge, on 400 other images. The range of rates was chosen after a look at four
seeds more.

Seen: at each length the seeds chose a fraction of 0.3. After 32 epochs it ends at an
error of 6.62 %, as one rate for all does; frozen layers end at 6.91 %, 0.29 points
above (0.09 to 0.49). So a fraction is better than freezing. Between a fraction and one
rate for all no difference larger than 0.24 points was seen: that one rate overfits was
not seen here, nor ruled out. Neither the best fraction nor the error depends on the
length of pretraining by more than sixty seeds can tell. With 0.03 after 32 epochs the
seeds chose too high a rate; that decides nothing.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from rich.console import Console

import normopt
from experiments.config import Options, Stored, run
from experiments.papers.novograd_2019 import modes_training
from experiments.papers.novograd_2019.modes_training import Params, predict
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric, Statistic, of_mean
from experiments.report.tables import Table
from experiments.training import devices, many_runs
from experiments.training.measuring import measure_parts

NAME = "decoupled_decay_2019.pretrained_layers"
LENGTHS = (2, 8, 32)  # epochs of pretraining
# Of the new layer's rate. Without a decay, a multiplier of 0 freezes.
FRACTIONS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
FROZEN, WHOLE = 0, len(FRACTIONS) - 1
EXPONENTS = np.linspace(-3, -0.5, 6)  # of 10, the new layer's rates
PRETRAINING_RATE = 3e-3
HALF = 5  # classes
PRETRAINING, TRAINING, TUNING, JUDGING = 800, 50, 300, 400  # images
BATCHES, EPOCHS = (20, 10), 40
LAYERS = r"^[01]/"  # the convolutions
FIRST_TUNING, FIRST_FRESH = 1000, 2000

COLOURS = (figures.BLUE, figures.GREEN, figures.ORANGE)


@dataclasses.dataclass(frozen=True)
class PretrainedLayersOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 60
    """Fresh seeds, which judge, at least 2."""
    tuning_seeds: int = 8
    """Other seeds, which choose rates and a fraction."""


class Start(NamedTuple):
    """What differs between the seeds.

    Attributes:
        params: initial ones of the convolutions, then of the dense layer on them.
        new: another dense layer.
        labels: (n,), int32: the place of each image's class in its half.
        pretraining: (steps, size of a batch), indices of images of the one half.
        training: likewise of the other half.
        tuning: (images,), of the other half.
        judging: likewise.
    """

    params: Params
    new: dict[str, jax.Array]
    labels: jax.Array
    pretraining: jax.Array
    training: jax.Array
    tuning: jax.Array
    judging: jax.Array


def main(args: Sequence[str]) -> None:
    """Train all runs, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "tuning_seeds": 1}, {"seeds": 2, "tuning_seeds": 1}
    options = PretrainedLayersOptions
    run(args, NAME, options, measure, draw, table, least=least, small=small)


def measure(config: PretrainedLayersOptions, console: Console) -> dict[str, Any]:
    """Pretrain for each length and go on, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each length.

    Returns:
        The settings, and for each length the mean errors of the tuning seeds, fractions
        x rates, the exponents of the best rates, and the errors of the fresh seeds at
        these, seeds x fractions.
    """
    images, _ = many_runs.standardised_digits()
    images = jnp.asarray(images)
    exponents = EXPONENTS[::2] if config.smoke else EXPONENTS
    lengths = {of_length(epochs): epochs for epochs in LENGTHS}

    def study(name: str) -> dict[str, Any]:
        epochs = 1 if config.smoke else lengths[name]
        tuning = [start(FIRST_TUNING + k, epochs) for k in range(config.tuning_seeds)]
        fresh = [start(FIRST_FRESH + k, epochs) for k in range(config.seeds)]
        each = [(c, 10.0**exponent) for c in FRACTIONS for exponent in exponents]
        shape = (len(FRACTIONS), len(exponents))
        chosen = errors_of(tuning, each, images)[..., 0].mean(axis=0).reshape(shape)
        best = exponents[chosen.argmin(axis=1)]
        pairs = list(zip(FRACTIONS, 10.0**best, strict=True))
        return {
            "tuning": chosen.round(5).tolist(),
            "best": best.tolist(),
            "errors": errors_of(fresh, pairs, images)[..., 1].round(5).tolist(),
        }

    told = {
        "fractions": list(FRACTIONS),
        "exponents": exponents.tolist(),
        "tuning_seeds": config.tuning_seeds,
        "seeds": config.seeds,
    }
    found = measure_parts(config, "pretrained_layers", told, lengths, study, console)
    return {"device": devices.describe(), **told, "lengths": found}


def of_length(epochs: int) -> str:
    """Return the name of what layers that were pretrained so long come to."""
    return f"{epochs} epochs"


def start(seed: int, epochs: int) -> Start:
    """Return halves of the classes, weights and batches.

    Args:
        seed: of all three.
        epochs: of pretraining.
    """
    random = np.random.default_rng(seed)
    _, labels = many_runs.standardised_digits()
    classes = random.permutation(2 * HALF)
    place = np.argsort(classes)[labels]
    known, new = (
        random.permutation(np.flatnonzero(place // HALF == h)) for h in (0, 1)
    )
    ends = np.cumsum([TRAINING, TUNING, JUDGING])
    training, tuning, judging, _ = np.split(new, ends)
    *convolutions, dense = modes_training.start(seed, epochs=1).params
    size = dense["kernel"].shape[0]

    def layer() -> dict[str, jax.Array]:
        kernel = random.normal(0, (2 / size) ** 0.5, (size, HALF))
        return {"kernel": jnp.asarray(kernel, float), "bias": jnp.zeros(HALF)}

    def batches(images: np.ndarray, batch: int, epochs: int) -> jax.Array:
        order = many_runs.shuffled_batches(random, len(images), batch, epochs)
        return jnp.asarray(images[np.asarray(order)])

    return Start(
        [*convolutions, layer()],
        layer(),
        jnp.asarray(place % HALF),
        batches(known[:PRETRAINING], BATCHES[0], epochs),
        batches(training, BATCHES[1], EPOCHS),
        jnp.asarray(tuning),
        jnp.asarray(judging),
    )


def errors_of(
    starts: Sequence[Start],
    settings: Sequence[tuple[float, float]],
    images: jax.Array,
) -> np.ndarray:
    """Pretrain from every start, and go on with every setting.

    Args:
        starts: one for each seed.
        settings: fractions of the rate, and rates.
        images: all of them.

    Returns:
        The errors on the images that tune and on those that judge, seeds x settings x
        2.
    """
    found = _all_errors(many_runs.stacked(starts), jnp.asarray(settings), images)
    return np.asarray(found, float)


# Compiled once for lengths of pretraining that are the same, as in a smoke run.
@jax.jit
def _all_errors(starts: Start, settings: jax.Array, images: jax.Array) -> jax.Array:
    def ends(start: Start) -> jax.Array:
        params = train(start.params, start.pretraining, start, images)
        params = [*params[:-1], start.new]

        def end(setting: jax.Array) -> jax.Array:
            fraction, rate = setting
            ended = train(params, start.training, start, images, rate, fraction)
            sets = (start.tuning, start.judging)
            return jnp.stack([error(ended, start, some, images) for some in sets])

        return jax.vmap(end)(settings)

    return jax.vmap(ends)(starts)


def train(
    params: Params,
    batches: jax.Array,
    start: Start,
    images: jax.Array,
    rate: jax.Array | float = PRETRAINING_RATE,
    fraction: jax.Array | float = 1.0,
) -> Params:
    """Return the parameters after a step for each batch.

    Args:
        params: initial ones.
        batches: (steps, size of a batch), indices of images.
        start: which has the labels.
        images: all of them.
        rate: of the dense layer at the first step; a cosine takes it to zero.
        fraction: of it that the convolutions have.
    """
    optimizer = normopt.adamw(
        rate,
        lr_multipliers={LAYERS: fraction, "": 1.0},
        schedule=normopt.cosine_restarts(len(batches)),
    )

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        logits, labels = predict(params, images[batch]), start.labels[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return many_runs.train(optimizer, loss, params, batches)


def error(params: Params, start: Start, some: jax.Array, images: jax.Array) -> Any:
    """Return the share of wrong answers on some images."""
    answers = predict(params, images[some]).argmax(axis=-1)
    return jnp.mean(answers != start.labels[some])


def between(stored: Stored, name: str) -> int:
    """Return the place of the fraction, neither none nor all, that seeds have chosen.

    Args:
        stored: what `pretrained_layers.json` holds.
        name: of a length of pretraining.
    """
    tuning = np.min(stored["lengths"][name]["tuning"], axis=1)
    return 1 + int(tuning[1:WHOLE].argmin())


def draw(path: Path, stored: Stored) -> None:
    """Draw the errors over the fraction, and over the rate that was chosen.

    Args:
        path: the PNG to write.
        stored: what `pretrained_layers.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        ends, rates = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(stored["fractions"]))
        for rank, (name, found) in enumerate(stored["lengths"].items()):
            line = {"color": COLOURS[rank], "label": f"pretrained for {name}"}
            spans = [of_mean(errors) for errors in np.transpose(found["errors"])]
            low, middle, high = np.transpose(spans)
            bars = (middle - low, high - middle)
            shifted = places + 0.08 * (rank - 1)
            ends.errorbar(shifted[1:], middle[1:], np.array(bars)[:, 1:], **line)
            alone = {"color": COLOURS[rank], "fmt": "o", "markersize": 4}
            ends.errorbar(shifted[0], middle[0], np.array(bars)[:, :1], **alone)
            for fraction, dashes in ((between(stored, name), "-"), (WHOLE, ":")):
                tuning = found["tuning"][fraction]
                x = 10 ** np.array(stored["exponents"])
                rates.plot(x, tuning, color=COLOURS[rank], linestyle=dashes)
        words = ["frozen", *(f"{c:g}" for c in stored["fractions"][1:])]
        ends.set_xticks(places, words)
        ends.set(
            xlabel="fraction of the new layer's rate on the pretrained ones",
            ylabel="test error",
            title=f"{stored['seeds']} fresh seeds, and 95 % of their mean",
        )
        rates.set(
            xlabel="the new layer's learning rate",
            title="tuning seeds: solid, the fraction chosen; dotted, 1",
            xscale="log",
        )
        top = max(
            np.mean(f["errors"], axis=0).max() for f in stored["lengths"].values()
        )
        ends.set_ylim(0, 2 * top)
        ends.yaxis.set_major_locator(MultipleLocator(0.05))
        ends.yaxis.set_major_formatter("{x:.0%}")
        figure.suptitle(
            f"five new digits from {TRAINING} images, on layers that know five others"
        )
        lines = ends.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the error and the rate for each fraction and length of pretraining."""

    def cell(found: Stored, place: int) -> str:
        span = of_mean(np.asarray(found["errors"])[:, place])
        half = 100 * (span.high - span.middle)
        return f"{span.middle:.2%} ± {half:.2f}"

    def row_of(place: int, fraction: float) -> tuple[str, ...]:
        word = f"{fraction:g}" if fraction else "frozen"
        lengths = stored["lengths"].values()
        rates = (f"{10 ** found['best'][place]:.2g}" for found in lengths)
        return (word, *(cell(found, place) for found in lengths), *rates)

    return Table(
        "test error by epochs of pretraining, and the rate of the new layer",
        ("fraction", *stored["lengths"], *(f"rate, {n}" for n in LENGTHS)),
        (row_of(*one) for one in enumerate(stored["fractions"])),
        f"{stored['seeds']} fresh seeds; ± half of the 95 % interval of their mean",
    )


MOST = of_length(LENGTHS[-1])
CHOSEN = "the fraction that is best"


def _errors(stored: Stored, arm: str) -> np.ndarray:
    """Return those of fresh seeds after the longest pretraining."""
    places = {"frozen": FROZEN, "one rate": WHOLE, CHOSEN: between(stored, MOST)}
    return np.asarray(stored["lengths"][MOST]["errors"])[:, places[arm]]


def _errors_after(stored: Stored, arm: str) -> np.ndarray:
    """Return those of fresh seeds with the best fraction after some pretraining."""
    name = arm if arm in stored["lengths"] else _best_part(stored)
    return np.asarray(stored["lengths"][name]["errors"])[:, between(stored, name)]


def _best_part(stored: Stored) -> str:
    """Return which of the shorter lengths the tuning seeds would choose."""
    shorter = [of_length(epochs) for epochs in LENGTHS[:-1]]
    return min(shorter, key=lambda name: np.min(stored["lengths"][name]["tuning"]))


def _best_fraction(stored: Stored, name: str) -> Statistic:
    """Return the exponent of 10 of the fraction, not none, with the lowest error."""
    errors = np.asarray(stored["lengths"][name]["errors"])[:, 1:]
    exponents = np.log10(stored["fractions"][1:])

    def of(seeds: np.ndarray) -> float:
        return float(exponents[errors[seeds].mean(axis=0).argmin()])

    return Statistic(len(errors), of)


def _lacks(stored: Stored) -> str:
    """Say that a rate may lie outside of those that were tried, if one may."""
    ends = (stored["exponents"][0], stored["exponents"][-1])
    for name, found in stored["lengths"].items():
        for place, best in enumerate(found["best"]):
            if best in ends:
                fraction = stored["fractions"][place]
                return (
                    f"the best rate after {name} with a fraction of {fraction:g} is at "
                    "an end of those that were tried"
                )
    return ""


ERROR = Metric("test error", _errors)
AFTER = Metric("test error with the best fraction", _errors_after)
FRACTION = Metric(
    "exponent of 10 of the best fraction",
    _best_fraction,
    unit="decades",
    scale=1.0,
    form="{:.2f}",
)


def _extent(stored: Stored) -> str:
    return (
        f"n = {stored['seeds']} fresh seeds at rates that {stored['tuning_seeds']} "
        f"others chose of {len(stored['exponents'])}; {len(stored['fractions'])} "
        f"fractions, {', '.join(stored['lengths'])} of pretraining"
    )


EXHIBIT = Exhibit(
    claims=(
        Claim(
            "A fraction of the learning rate on pretrained layers generalizes better "
            "than one rate for all.",
            (Check(ERROR, CHOSEN, "one rate"),),
            _lacks,
        ),
        Claim(
            "A fraction of the learning rate on pretrained layers generalizes better "
            "than freezing them.",
            (Check(ERROR, CHOSEN, "frozen"),),
            _lacks,
        ),
        Claim(
            "The more layers are pretrained, the lower the fraction that is best.",
            (Check(FRACTION, MOST, of_length(LENGTHS[0])),),
            _lacks,
        ),
        Claim(
            "It is better not to pretrain layers fully.",
            (Check(AFTER, "fewer epochs", MOST),),
            _lacks,
        ),
    ),
    extent=_extent,
    note="These are recommendations in the text of the Keras implementation, not of "
    "the paper. Rates, the fraction and the number of fewer epochs are chosen by other "
    "seeds on other images.",
    tables=(table,),
    pictures=(
        Picture(
            "pretrained_layers",
            "Test error over the fraction of the learning rate that pretrained layers "
            "have, a line for each length of pretraining; beside it the errors over "
            "the learning rate that chose the rates.",
            draw,
        ),
    ),
)
