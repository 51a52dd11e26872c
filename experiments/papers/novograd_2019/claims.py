"""What the paper's abstract and the documentation of its implementation claim."""

import functools
from collections.abc import Mapping

import numpy as np

from experiments.papers.novograd_2019 import memory, modes
from experiments.papers.novograd_2019.robustness_training import WIDE
from experiments.papers.novograd_2019.robustness_views import (
    best,
    draw,
    seeds_of,
    table,
    valleys_of_units,
    valleys_of_weights,
)
from experiments.papers.novograd_2019.valleys import Valley
from experiments.report.claims import (
    ERRORS,
    FEWEST_SEEDS,
    Chapter,
    Claim,
    Exhibit,
    Finding,
    Paired,
    Picture,
    Stored,
)

MODES = tuple(name for name in modes.METHODS if name.startswith("NovoGrad"))
BASELINES = tuple(name for name in modes.METHODS if name not in MODES)
ADAMS = ("AdamW", WIDE)
# Of the half: NovoGrad keeps a float a layer besides.
TOLERANCE = 0.01


def _half(dtype: str, stored: Stored) -> Finding:
    held = {row["optimizer"]: row[dtype] for row in stored["rows"]}
    ratio = held["novograd"] / held[memory.BASELINE]
    return Finding(
        abs(ratio - 0.5) <= TOLERANCE,
        f"{ratio:.3f}: {held['novograd']:.2f} bytes a parameter, "
        f"{held[memory.BASELINE]:.2f} of {memory.BASELINE}",
    )


def _on_par(mode: str, stored: Stored) -> Finding:
    """Compare the errors at the best rates with the better baseline's, seed by seed."""
    found = {name: _best(name, stored) for name in (mode, *BASELINES)}
    bar = _better_baseline(found)
    points = _points_above(found[mode], found[bar])
    words = ", ".join(f"{name} {errors.mean():.2%}" for name, errors in found.items())
    words += f"; {points.in_words('points')} above {bar}"
    if points.seeds < FEWEST_SEEDS:
        return Finding(None, words)
    return Finding(_is_not_above(points), words)


def _best(name: str, stored: Stored) -> np.ndarray:
    """Return the errors, a seed each, at the rate with the lowest mean."""
    errors = np.asarray(stored["curves"][name]["errors"])
    return errors[:, errors.mean(axis=0).argmin()]


def _better_baseline(errors: Mapping[str, np.ndarray]) -> str:
    return min(BASELINES, key=lambda name: errors[name].mean())


def _points_above(errors: np.ndarray, others: np.ndarray) -> Paired:
    return Paired.of((100 * (errors - others)).tolist())


def _is_not_above(points: Paired) -> bool:
    return points.mean <= 0 or points.is_noise


def _large_batches(stored: Stored) -> Finding:
    """Compare as `_on_par` does, but where a step sees the most images."""
    least, *_, most = stored["batches"]
    small, large = (
        {name: best(stored["optimizers"][name], batch) for name in (*MODES, *BASELINES)}
        for batch in (least, most)
    )
    bar = _better_baseline(large)
    points = {mode: _points_above(large[mode], large[bar]) for mode in MODES}
    words = [f"{n} {small[n].mean():.2%} and {large[n].mean():.2%}" for n in large]
    for place, one in enumerate(points.values()):
        words[place] += f" ({one.mean:+.2f} ± {one.error:.2f})"
    seeds = len(large[bar])
    ours = f"with {least} and with {most} images: {', '.join(words)}; in brackets, "
    ours += f"points above {bar} over {seeds} paired seeds"
    if seeds < FEWEST_SEEDS:
        return Finding(None, ours)
    return Finding(all(map(_is_not_above, points.values())), ours)


def _robust(stored: Stored) -> Finding:
    valleys = {
        name: modes.valleys_of(stored["curves"][name]) for name in (*MODES, *BASELINES)
    }
    return _wider(valleys, "decades of learning rate")


def _from_other_weights(stored: Stored) -> Finding:
    names = (*MODES, *BASELINES)
    valleys = {name: valleys_of_weights(name, stored) for name in names}
    return _wider(valleys, "decades of a factor on the initial weights")


def _in_float16(stored: Stored) -> Finding:
    valleys = {name: valleys_of_units(name, stored) for name in (*MODES, *ADAMS)}
    return _wider(valleys, "octaves of a factor on the loss, in float16")


def _wider(valleys: Mapping[str, list[Valley]], of: str) -> Finding:
    """Find whether each mode's is wider than each other one's, whatever the seeds.

    Args:
        valleys: for each optimizer that of all seeds, then without each.
        of: what they are the widths of.
    """
    words = ", ".join(
        f"{name} {found.in_words()}" for name, (found, *_) in valleys.items()
    )
    words = f"{of}: {words}"
    others = [name for name in valleys if name not in MODES]
    sets = len(valleys[MODES[0]])
    # One that reaches an end of the grid may be wider than it seems.
    is_cut = any(one.cut for name in others for one in valleys[name])
    if sets <= FEWEST_SEEDS or is_cut:
        return Finding(None, words)
    # Seed by seed: the one that is left out is the same for all.
    widest = [max(valleys[name][k].width for name in others) for k in range(sets)]
    narrower = [
        one
        for name in MODES
        for one, bound in zip(valleys[name], widest, strict=True)
        if one.width <= bound
    ]
    if narrower and all(one.cut for one in narrower):
        return Finding(None, words)
    return Finding(not narrower, words)


def _modes_extent(stored: Stored) -> str:
    seeds, rates = np.shape(next(iter(stored["curves"].values()))["errors"])
    return (
        f"n = {seeds} seeds at each of {rates} learning rates, {stored['epochs']} "
        f"epochs of {stored['training_images']} digits"
    )


def _robustness_extent(stored: Stored) -> str:
    return (
        f"n = {seeds_of(stored)} seeds, {stored['epochs']} epochs of "
        f"{stored['training_images']} digits; {len(stored['batches'])} sizes of a "
        f"batch, {len(stored['scales'])} factors on the initial weights and "
        f"{len(stored['units'])} on the loss"
    )


CHAPTER = Chapter(
    title="NovoGrad",
    source="Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive "
    "Moments for Training of Deep Networks, 2019, arXiv 1905.11286, and the "
    "documentation of TensorFlow Addons. Both have words, and no number but the half.",
    exhibits={
        "novograd_2019.memory": Exhibit(
            claims=tuple(
                Claim(
                    f"NovoGrad's state takes half of the memory of Adam's, for {dtype} "
                    "parameters.",
                    functools.partial(_half, dtype),
                    published="one half",
                )
                for dtype in ("float32", "bfloat16")
            ),
            extent=lambda stored: f"one step on {stored['model']}; nothing is random",
            tables=(memory.table,),
        ),
        "novograd_2019.modes": Exhibit(
            claims=(
                Claim(
                    "NovoGrad is robust to the choice of learning rate.",
                    _robust,
                    "each of its modes stays within a point of its best error over "
                    "more decades than AdamW and SGD, whichever seed is left out",
                ),
                *(
                    Claim(
                        "NovoGrad is on par with well-tuned SGD and AdamW, or better: "
                        f"{mode.removeprefix('NovoGrad, ')}.",
                        functools.partial(_on_par, mode),
                        "each at its best rate, the error is not above the better "
                        f"one's, seed by seed, by more than {ERRORS} standard errors",
                    )
                    for mode in MODES
                ),
            ),
            extent=_modes_extent,
            tables=(modes.table,),
            pictures=(
                Picture(
                    "modes",
                    "Test error over the learning rate for NovoGrad's four modes, "
                    "AdamW and SGD; beside it the same, shifted to where the valleys "
                    "begin.",
                    modes.draw,
                ),
            ),
        ),
        "novograd_2019.robustness": Exhibit(
            claims=(
                Claim(
                    "NovoGrad works well with large batches.",
                    _large_batches,
                    "with all training images in a step, after as many epochs and at "
                    "its own best rate, the error of each of its modes is not above "
                    "the better one's of AdamW and SGD, seed by seed, by more than "
                    f"{ERRORS} standard errors",
                ),
                Claim(
                    "NovoGrad is robust to the initial weights.",
                    _from_other_weights,
                    "at its best rate for the initial weights as they are, each of its "
                    "modes stays within a point of its error with them over more "
                    "decades of a factor on them than AdamW and SGD, whichever seed is "
                    "left out",
                ),
                Claim(
                    "NovoGrad is numerically more stable than Adam.",
                    _in_float16,
                    "trained in float16, but for the sums and second moments that "
                    "NovoGrad itself takes in float32, each of its modes stays within "
                    "a point of its error in float32 over more octaves of a factor on "
                    "the loss than optax's AdamW, all in float16, with its own eps and "
                    "with one of 1e-4, whichever seed is left out",
                ),
            ),
            extent=_robustness_extent,
            note="The Adams of the third claim keep their moments in float16, as optax "
            "does with float16 parameters. `float32 inside` in the table is one that "
            "keeps them in float32, and computes so; it was added once the others had "
            "been compared, and decides nothing.",
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
        ),
    },
)
