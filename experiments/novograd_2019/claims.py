"""What the paper's abstract and the documentation of its implementation claim."""

import functools

import numpy as np

from experiments.claims import (
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
from experiments.novograd_2019 import memory, modes

MODES = tuple(name for name in modes.METHODS if name.startswith("NovoGrad"))
BASELINES = tuple(name for name in modes.METHODS if name not in MODES)
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
    bar = min(BASELINES, key=lambda name: found[name].mean())
    points = Paired.of((100 * (found[mode] - found[bar])).tolist())
    words = ", ".join(f"{name} {errors.mean():.2%}" for name, errors in found.items())
    words += f"; {points.in_words('points')} above {bar}"
    if points.seeds < FEWEST_SEEDS:
        return Finding(None, words)
    return Finding(points.mean <= 0 or points.is_noise, words)


def _best(name: str, stored: Stored) -> np.ndarray:
    """Return the errors, a seed each, at the rate with the lowest mean."""
    errors = np.asarray(stored["curves"][name]["errors"])
    return errors[:, errors.mean(axis=0).argmin()]


def _robust(stored: Stored) -> Finding:
    decades = {name: _decades(name, stored) for name in (*MODES, *BASELINES)}
    # Seed by seed: the one that is left out is the same for all.
    holds = all(
        min(decades[name][k] for name in MODES)
        > max(decades[name][k] for name in BASELINES)
        for k in range(len(decades[MODES[0]]))
    )
    words = ", ".join(f"{name} {found[0]:.2f}" for name, found in decades.items())
    return Finding(holds, f"decades of learning rate: {words}")


def _decades(name: str, stored: Stored) -> list[float]:
    """Return the width of the valley: with all seeds, then with each left out."""
    curve = stored["curves"][name]
    errors = np.asarray(curve["errors"])
    left = [np.delete(errors, seed, axis=0) for seed in range(len(errors))]
    return [
        modes.near_best(some.mean(axis=0), curve["exponents"]).decades
        for some in (errors, *left)
    ]


def _modes_extent(stored: Stored) -> str:
    seeds, rates = np.shape(next(iter(stored["curves"].values()))["errors"])
    return (
        f"n = {seeds} seeds at each of {rates} learning rates, {stored['epochs']} "
        f"epochs of {stored['training_images']} digits"
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
                Claim("NovoGrad is numerically more stable than Adam.", find=None),
                Claim(
                    "NovoGrad works well with large batches, and is robust to the "
                    "initial weights.",
                    find=None,
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
    },
)
