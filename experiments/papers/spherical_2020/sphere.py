"""Compare SGD under batch norm with its claimed equivalent on the unit sphere.

Roburin et al., "Spherical Perspective on Learning with Normalization Layers", 2020,
arXiv 2006.13382, abstract: "in the presence of BN layers, performing SGD alone is
actually equivalent to a variant of Adam constrained to the unit hypersphere". Two
batch-normalised layers (eps 0, so that the loss is blind to lengths) and a linear head
learn digits of scikit-learn in float64, from the same weights in the same batches,

    SGD           w <- (1 - lr wd) w - lr g
    on the sphere u <- (u - lr / (r^2 (1 - lr wd)) g(u)) / |...|
                  r^2 <- r^2 ((1 - lr wd)^2 + (lr / r^2)^2 |g(u)|^2)
    Adam's        u <- (u - (2 b2)^(-1/2) g(u) / sqrt(v)) / |...|
                  v <- b2 v + |g(u)|^2,  b2 = (1 - lr wd)^4

where u is the direction of a unit's weights and r their length. The second is SGD
itself in other words; in the third, the paper's variant of Adam without momentum, v
starts at r^4 / (2 lr^2 sqrt(b2)) and what it leaves out is of fourth order in lr.

    python -m experiments spherical_2020.sphere

takes half a minute on two CPU cores. It writes `sphere.json`, `sphere.png` and what is
finished, from where the same command goes on; `--redraw` draws the records again.

Each is also run with L2, and with momentum, which both schemes on the sphere take as
if it were of a flat space. Seen, over 200 steps in which the directions turn by 0.55
rad, and by 0.77 with L2: those of the scheme on the sphere stay within 4e-15 of SGD's,
and those of Adam's variant within 0.04, and 0.11 with L2; both effective rates are the
same to three digits. Where the rate is small, the angle to Adam's falls by 2**4.1 when
it is halved, so that the two are equivalent to second order and beyond, as the paper
has it. With momentum both schemes go another way, 0.9 rad apart at the end: what the
weights' length does to a momentum is missing, which AdamSRT and SGD-MRT put right.
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
from rich.console import Console

from experiments.config import Options, Stored, run
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.judging import Check, Claim, Metric
from experiments.report.tables import Table
from experiments.training import many_runs
from experiments.training.measuring import measure_parts

NAME = "spherical_2020.sphere"
WIDTHS, BATCH, IMAGES = (32, 32), 50, 400
RATE, DECAY, MOMENTUM = 0.5, 1e-2, 0.9
# Of a direction in float64, after a few hundred steps that each round.
ROUNDING = -10.0
# What Adam's variant leaves out is beyond the second order in the learning rate: over
# the first epoch, its angle falls by more than 2**2 where the rate is halved. An order
# is one of small rates: of these two.
ORDER, SMALL = 2.0, (RATE / 4, RATE / 8)
# Every so many steps are stored.
EVERY = 4


class Setting(NamedTuple):
    """What an arm of the experiment adds to SGD."""

    decay: float = 0.0
    momentum: float = 0.0


ARMS = {
    "SGD": Setting(),
    "SGD, L2": Setting(decay=DECAY),
    "SGD, momentum": Setting(momentum=MOMENTUM),
}

Tree = Any


@dataclasses.dataclass(frozen=True)
class SphereOptions(Options):
    """Where to write, and how much to compute."""

    seeds: int = 6
    """Runs of each arm, at least 2."""
    epochs: int = 25
    """Passes over the training images."""


def main(args: Sequence[str]) -> None:
    """Train all arms, print the summary, and write records and figure."""
    least, small = {"seeds": 2, "epochs": 1}, {"seeds": 2, "epochs": 2}
    run(args, NAME, SphereOptions, measure, draw, table, least=least, small=small)


def measure(config: SphereOptions, console: Console) -> dict[str, Any]:
    """Train every arm beside both schemes, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each arm.

    Returns:
        The settings, and for each arm the order in the rate of the angle to Adam's, a
        number a seed, and, seeds x steps: how far the directions have come,
        how far each scheme's are from them, and both effective rates; means over the
        units.
    """

    def arm_of(name: str) -> dict[str, Any]:
        with jax.enable_x64(True):
            found = follow_all(ARMS[name], config.seeds, config.epochs)
            angles = [
                follow_all(ARMS[name], config.seeds, 1, rate)["adam"][:, -1]
                for rate in SMALL
            ]
        orders = np.log2(angles[0] / angles[1])
        stored = {key: values[:, ::EVERY] for key, values in found.items()}
        return {"order": orders.round(3).tolist()} | {
            key: [[float(f"{x:.4g}") for x in seed] for seed in values]
            for key, values in stored.items()
        }

    settings = {"seeds": config.seeds, "epochs": config.epochs, "rate": RATE}
    arms = measure_parts(config, "sphere", settings, ARMS, arm_of, console)
    return {**settings, "decay": DECAY, "momentum": MOMENTUM, "arms": arms}


def follow_all(
    setting: Setting, seeds: int, epochs: int, rate: float = RATE
) -> dict[str, np.ndarray]:
    """Follow SGD and both schemes from several seeds.

    Args:
        setting: of the arm.
        seeds: how many.
        epochs: passes over the training images.
        rate: the learning rate.

    Returns:
        By quantity, seeds x steps.
    """
    images, labels = many_runs.standardised_digits()
    pixels = jnp.asarray(images.reshape(len(images), -1)[:IMAGES], float)
    task = pixels, jnp.asarray(labels[:IMAGES])
    one = jax.jit(lambda *start: follow(*start, setting, rate, task))
    found = [one(*start_of(seed, epochs)) for seed in range(seeds)]
    return {key: np.array([each[key] for each in found]) for key in found[0]}


def start_of(seed: int, epochs: int) -> tuple[Tree, jax.Array]:
    """Return initial weights, whose units differ in length, and batches."""
    random = np.random.default_rng(seed)
    shapes = zip((64, *WIDTHS[:-1]), WIDTHS, strict=True)
    params = {
        f"hidden{rank}": random.normal(size=shape) * random.uniform(0.5, 2, shape[1])
        for rank, shape in enumerate(shapes)
    }
    params = {name: leaf / len(leaf) ** 0.5 for name, leaf in params.items()}
    params["out"] = random.normal(size=(WIDTHS[-1], 10)) / WIDTHS[-1] ** 0.5
    batches = many_runs.shuffled_batches(random, IMAGES, BATCH, epochs)
    return jax.tree.map(jnp.asarray, params), batches


def loss(params: Tree, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy, which is blind to the lengths of hidden units."""
    hidden = pixels
    for name in params:
        hidden = hidden @ params[name]
        if name != "out":
            centred = hidden - hidden.mean(axis=0)
            hidden = jax.nn.relu(centred / jnp.sqrt((centred**2).mean(axis=0)))
    return optax.softmax_cross_entropy_with_integer_labels(hidden, labels).mean()


class Scheme(NamedTuple):
    """A point on the sphere and what tells its effective rate, by name of the layer."""

    params: Tree  # hidden units of length 1, and the head
    scale: Tree  # r^2, or v, one number a unit
    trace: Tree  # the momentum


def follow(
    params: Tree, batches: jax.Array, setting: Setting, rate: float, task: Any
) -> dict[str, jax.Array]:
    """Take the same steps by SGD and by both schemes; see the head of this file."""
    pixels, labels = task
    keep = 1 - rate * setting.decay
    hidden = [name for name in params if name != "out"]
    lengths = {name: _length(params[name]) for name in hidden}
    first = {n: w / lengths[n] if n in lengths else w for n, w in params.items()}
    nothing = jax.tree.map(jnp.zeros_like, params)
    squares = {name: r**2 for name, r in lengths.items()}
    moments = {name: r**4 / (2 * rate**2 * keep**2) for name, r in lengths.items()}

    def rate_of_radius(square: jax.Array) -> jax.Array:
        return rate / (square * keep)

    def rate_of_moment(moment: jax.Array) -> jax.Array:
        return (2 * keep**4) ** -0.5 / jnp.sqrt(moment)

    def on_sphere(scheme: Scheme, batch: jax.Array, rate_of: Any, next_of: Any) -> Any:
        gradient = jax.grad(loss)(scheme.params, pixels[batch], labels[batch])
        after, scale, trace = {}, {}, {}
        for name, w in scheme.params.items():
            trace[name] = setting.momentum * scheme.trace[name] + gradient[name]
            if name == "out":
                after[name] = keep * w - rate * trace[name]
                continue
            step = w - rate_of(scheme.scale[name]) * trace[name]
            after[name] = step / _length(step)
            scale[name] = next_of(scheme.scale[name], _length(trace[name]) ** 2)
        return Scheme(after, scale, trace)

    def step(carry: Any, batch: jax.Array) -> Any:
        (w, trace), exact, adam = carry
        rates = [
            _mean({n: of(scale) for n, scale in scheme.scale.items()})
            for scheme, of in ((exact, rate_of_radius), (adam, rate_of_moment))
        ]
        gradient = jax.grad(loss)(w, pixels[batch], labels[batch])
        trace = jax.tree.map(lambda t, g: setting.momentum * t + g, trace, gradient)
        w = jax.tree.map(lambda x, t: keep * x - rate * t, w, trace)
        exact = on_sphere(
            exact,
            batch,
            rate_of_radius,
            lambda square, g2: square * (keep**2 + (rate / square) ** 2 * g2),
        )
        adam = on_sphere(
            adam, batch, rate_of_moment, lambda moment, g2: keep**4 * moment + g2
        )
        u = {name: w[name] / _length(w[name]) for name in hidden}
        seen = {
            "travelled": _angle(first, u),
            "exact": _angle(exact.params, u),
            "adam": _angle(adam.params, u),
            "rate": rates[0],
            "adam_rate": rates[1],
        }
        return ((w, trace), exact, adam), seen

    schemes = Scheme(first, squares, nothing), Scheme(first, moments, nothing)
    _, seen = jax.lax.scan(step, ((params, nothing), *schemes), batches)
    return seen


def _length(weights: jax.Array) -> jax.Array:
    return jnp.sqrt((weights**2).sum(axis=0))


def _mean(by_layer: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate(list(by_layer.values())).mean()


def _angle(one: Tree, other: Tree) -> jax.Array:
    """Return the mean angle between units, exact also where it is tiny."""
    half = {name: _length(one[name] - other[name]) / 2 for name in other}
    return _mean({name: 2 * jnp.arcsin(jnp.minimum(h, 1)) for name, h in half.items()})


def draw(path: Path, stored: Stored) -> None:
    """Draw the angles and the effective rates over the steps, a column an arm.

    Args:
        path: the PNG to write.
        stored: what `sphere.json` holds.
    """
    quantities = (
        ("travelled", "the way of SGD's directions", figures.GREY, "-"),
        ("adam", "from SGD to Adam's variant", figures.ORANGE, "-"),
        ("exact", "from SGD to the scheme on the sphere", figures.BLUE, "-"),
    )
    rates = (
        ("rate", r"lr / $r^2$, by the length of the weights", figures.BLUE, "-"),
        ("adam_rate", "by Adam's second moment", figures.ORANGE, "--"),
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 6.2), layout="constrained")
        panels = figure.subplots(2, len(stored["arms"]), sharex=True, sharey="row")
        for column, (name, arm) in zip(panels.T, stored["arms"].items(), strict=True):
            for axes, lines in zip(column, (quantities, rates), strict=True):
                for key, label, colour, dashes in lines:
                    values = np.maximum(arm[key], 1e-17)
                    steps = 1 + EVERY * np.arange(values.shape[1])
                    ends = values.min(axis=0), values.max(axis=0)
                    band = {"color": colour, "alpha": 0.2, "linewidth": 0}
                    axes.fill_between(steps, *ends, **band)
                    middle = np.exp(np.log(values).mean(axis=0))
                    axes.plot(steps, middle, dashes, color=colour, label=label)
                axes.set(yscale="log")
            column[0].set_title(name)
            column[1].set_xlabel("step")
        panels[0, 0].set_ylabel("angle (rad)")
        panels[1, 0].set_ylabel("effective rate")
        shown = [axes.get_legend_handles_labels() for axes in panels[:, 0]]
        handles, labels = (sum(parts, []) for parts in zip(*shown, strict=True))
        place = {"loc": "outside lower center", "ncols": 2, "frameon": False}
        figure.legend(handles, labels, **place)
        figure.suptitle(
            f"two batch-normalised layers on {IMAGES} digits, float64, mean of "
            f"{stored['seeds']} seeds and their range"
        )
        figures.save(figure, path)


def table(stored: Stored) -> Table:
    """Return the largest angles of each arm, and both rates at the end."""

    def row_of(name: str, arm: Stored) -> tuple[str, ...]:
        angles = (np.max(arm[key]) for key in ("travelled", "exact", "adam"))
        ends = (np.array(arm[key])[:, -1].mean() for key in ("rate", "adam_rate"))
        return (name, *(f"{x:.2g}" for x in angles), *(f"{x:.3g}" for x in ends))

    return Table(
        "largest angles over steps and seeds (rad), and effective rates at the end",
        ("arm", "travelled", "sphere", "Adam's", "lr / r^2", "Adam's rate"),
        (row_of(*arm) for arm in stored["arms"].items()),
        "from SGD's directions to those of the scheme on the sphere and of Adam's",
    )


def _off(stored: Stored, name: str) -> np.ndarray:
    return np.log10(np.max(stored["arms"][name]["exact"], axis=1))


def _order(stored: Stored, name: str) -> np.ndarray:
    return np.array(stored["arms"][name]["order"])


EXACT = Metric("log10 of the largest angle to the sphere's (rad)", _off, form="{:.2f}")
ADAM = Metric("order in lr of the angle to Adam's variant", _order, form="{:.2f}")

EXHIBIT = Exhibit(
    claims=(
        Claim(
            "With batch norm, SGD is a scheme on the unit sphere whose rate is "
            "lr / r^2, also with L2.",
            tuple(
                Check(EXACT, name, low=-np.inf, high=ROUNDING)
                for name in ("SGD", "SGD, L2")
            ),
        ),
        Claim(
            "With batch norm, SGD alone is equivalent, to second order in lr, to a "
            "variant of Adam constrained to the unit hypersphere.",
            tuple(Check(ADAM, name, low=ORDER) for name in ("SGD", "SGD, L2")),
        ),
    ),
    extent=lambda stored: (
        f"n = {stored['seeds']} seeds, {stored['epochs']} epochs of {IMAGES} digits in "
        f"batches of {BATCH}, learning rate {stored['rate']:g}, decay "
        f"{stored['decay']:g}, momentum {stored['momentum']:g}"
    ),
    note="Momentum is of the weights, whose length changes from step to step: a scheme "
    "that keeps it on the sphere as if that were flat goes another way, and no claim "
    "is made of it. AdamSRT and SGD-MRT are the paper's answer.",
    tables=(table,),
    pictures=(
        Picture(
            "sphere",
            "Angles between SGD's directions and those of both schemes on the sphere, "
            "and the effective rates of both, over the steps: for SGD, with L2 and "
            "with momentum.",
            draw,
        ),
    ),
)
