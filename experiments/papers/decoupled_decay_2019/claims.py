"""What the paper and the Keras implementation claim of decay and warm restarts."""

import functools
import itertools
import math

import numpy as np

from experiments.papers.decoupled_decay_2019 import anytime, decay_grid, warm_restarts
from experiments.papers.decoupled_decay_2019.anytime_arms import PAIRS, WITHIN, Pair
from experiments.papers.decoupled_decay_2019.decay_grid import Alignment, alignment
from experiments.report.claims import (
    ERRORS,
    Chapter,
    Claim,
    Exhibit,
    Finding,
    Paired,
    Picture,
    Stored,
)

# Of eta_t, which float32 rounds.
TOLERANCE = 1e-6


def _uncouples(coupled: str, decoupled: str, stored: Stored) -> Finding:
    """Compare how far the valleys lean, whichever seed is left out."""
    holds, words = True, []
    for measure in ("rho", "slope"):
        lean = {}
        for name in (coupled, decoupled):
            # None: the best cells lie along an axis, or are one.
            found = [getattr(a, measure) or 0.0 for a in _alignments(name, stored)]
            lean[name] = [abs(value) for value in found]
            span = f"{min(found[1:]):.2f} to {max(found[1:]):.2f}"
            words.append(f"{measure} {found[0]:.2f} ({span}) for {name}")
        holds = holds and max(lean[decoupled]) < min(lean[coupled])
    found = "; ".join(words)
    if not stored["batch_norm"]:
        return Finding(None, f"without batch norm: {found}")
    return Finding(holds, f"with batch norm: {found}")


def _alignments(name: str, stored: Stored) -> list[Alignment]:
    """Return how a grid lies to its axes: with all seeds, then with each left out."""
    grid = stored["grids"][name]
    errors = np.asarray(grid["errors"])
    left = [np.delete(errors, seed, axis=0) for seed in range(len(errors))]
    return [
        alignment(some.mean(axis=0), grid["learning_rates"], grid["decays"])
        for some in (errors, *left)
    ]


def _generalizes(coupled: str, decoupled: str, stored: Stored) -> Finding:
    """Compare the best cells of two maps, seed by seed."""
    best = {name: _best_cell(name, stored) for name in (coupled, decoupled)}
    words = ", ".join(f"{name} {errors.mean():.2%}" for name, errors in best.items())
    points = Paired.of((100 * (best[coupled] - best[decoupled])).tolist())
    return points.is_positive("points lower", f"best test error: {words}")


def _best_cell(name: str, stored: Stored) -> np.ndarray:
    """Return the errors, a seed each, of the cell with the lowest mean."""
    errors = np.asarray(stored["grids"][name]["errors"])
    best = np.unravel_index(errors.mean(axis=0).argmin(), errors.shape[1:])
    return errors[:, *best]


def _is_sooner(restarts: str, stored: Stored) -> Finding:
    """Compare when runs are as good as one cosine is at its end, but for a margin."""
    needed = Pair.of(restarts, stored).epochs_needed()
    words = (
        f"epochs needed: {PAIRS[restarts]} {needed.cosine.mean():.1f}, "
        f"{restarts} {needed.restarts.mean():.1f}"
    )
    fewer = Paired.of((needed.cosine - needed.restarts).astype(float).tolist())
    return fewer.is_positive("epochs fewer", words)


def _ends_lower(restarts: str, stored: Stored) -> Finding:
    """Compare the errors after the last epoch, seed by seed."""
    pair = Pair.of(restarts, stored)
    cosine, restarted = pair.cosine[:, -1], pair.restarts[:, -1]
    words = (
        f"final test error: {PAIRS[restarts]} {cosine.mean():.2%}, "
        f"{restarts} {restarted.mean():.2%}"
    )
    lower = Paired.of((100 * (cosine - restarted)).tolist())
    return lower.is_positive("points lower", words)


def _is_cosine(run: str, stored: Stored) -> Finding:
    """Compare eta_t with the cosine, begun anew where it ends or the loop says so."""
    records, off = stored[run], 0.0
    t_cur, length = 0, warm_restarts.CYCLE
    for record in records:
        asked = record["restart"]
        if asked:
            t_cur, length = asked.get("t_cur", 0), asked.get("cycle_steps", length)
        elif t_cur == length:
            t_cur = 0
        eta = (1 + math.cos(math.pi * t_cur / (length - 1))) / 2
        off, t_cur = max(off, abs(record["eta"] - eta)), t_cur + 1
    pairs = itertools.pairwise(records)
    # A run begins with a cycle, and each restart begins one.
    starts = [1] + [b["step"] for a, b in pairs if b["restart"] or b["eta"] > a["eta"]]
    etas = [f"{records[step - 1]['eta']:.3f} at update {step}" for step in starts]
    return Finding(
        off <= TOLERANCE and len(starts) == 3,
        f"cycles begin with {', '.join(etas)}; the last has {records[-1]['eta']:.3f}; "
        f"at most {off:.0e} off the cosine",
    )


def _grid_claims(coupled: str, decoupled: str, kind: str) -> tuple[Claim, Claim]:
    return (
        Claim(
            f"L2 in the gradient couples decay and rate of {kind}; decoupled decay "
            "does less so.",
            functools.partial(_uncouples, coupled, decoupled),
            "with batch norm, the best cells of the map lean less, by rho and by "
            "slope, whichever seed is left out",
        ),
        Claim(
            f"{decoupled} generalizes better than {kind} with L2 in the gradient.",
            functools.partial(_generalizes, coupled, decoupled),
            "the best test error of its map is lower, seed by seed, by more than "
            f"{ERRORS} standard errors",
        ),
    )


def _anytime_claims(restarts: str, cosine: str) -> tuple[Claim, Claim]:
    return (
        Claim(
            f"Warm restarts converge faster: {restarts} than {cosine}.",
            functools.partial(_is_sooner, restarts),
            f"the error that one cosine ends with, plus {100 * WITHIN:g} point, is "
            "first reached after fewer epochs, seed by seed, by more than "
            f"{ERRORS} standard errors of the difference",
        ),
        Claim(
            f"Warm restarts generalize better: {restarts} than {cosine}.",
            functools.partial(_ends_lower, restarts),
            "the test error after the same number of epochs is lower, seed by seed, "
            f"by more than {ERRORS} standard errors of the difference",
        ),
    )


def _grid_extent(stored: Stored) -> str:
    errors = np.shape(next(iter(stored["grids"].values()))["errors"])
    return (
        f"n = {errors[0]} seeds for each of {errors[1]} x {errors[2]} cells, "
        f"{stored['epochs']} epochs of 200 digits"
    )


def _anytime_extent(stored: Stored) -> str:
    seeds = len(next(iter(stored["arms"].values()))["wrong"])
    epochs, cycles = sum(stored["cycles"]), ", ".join(map(str, stored["cycles"]))
    return (
        f"n = {seeds} seeds of each best cell, which {stored['tuning_seeds']} others "
        f"chose; {epochs} epochs of 200 digits, with restarts in cycles of {cycles}"
    )


def _restarts_extent(stored: Stored) -> str:
    updates = " and ".join(str(len(stored[run])) for run in ("automatic", "by_hand"))
    return f"n = 1 (seed {stored['seed']}), {updates} updates"


CHAPTER = Chapter(
    title="Decoupled Weight Decay Regularization",
    source="Loshchilov and Hutter, 2019, arXiv 1711.05101, and its Keras "
    "implementation. No value is published: there are figures and words.",
    exhibits={
        "decoupled_decay_2019.decay_grid": Exhibit(
            claims=(
                *_grid_claims("SGD, L2", "SGDW", "SGD"),
                *_grid_claims("Adam, L2", "AdamW", "Adam"),
            ),
            extent=_grid_extent,
            note="All of this is with batch norm, where the loss does not see how long "
            "the weights are. Without it, as `--no-batch-norm` trains, nothing is "
            "gained: the valleys of the decoupled forms lean as much, the other way. "
            "The head of the experiment's file has those numbers.",
            tables=(decay_grid.table,),
            pictures=(
                Picture(
                    "decay_grid",
                    "Maps of the test error over learning rate and decay, with the "
                    f"cells marked that are within {100 * decay_grid.MARGIN:g} points "
                    "of the best, for SGD and Adam with L2, SGDW and AdamW.",
                    decay_grid.draw,
                ),
            ),
        ),
        "decoupled_decay_2019.anytime": Exhibit(
            claims=tuple(
                claim for pair in PAIRS.items() for claim in _anytime_claims(*pair)
            ),
            extent=_anytime_extent,
            note="Each arm has the rate and decay that are best for it. `same cell` "
            "in the table is one cosine with those of the restarts: what it gains over "
            "one cosine, restarts do not gain. It was added once the arms had been "
            "compared, and decides nothing.",
            tables=(anytime.table,),
            pictures=(
                Picture(
                    "anytime",
                    "Test error after each epoch, on a log scale, on one cosine and "
                    "with warm restarts, for SGDW and AdamW: mean and deviation of the "
                    "seeds, with lines at the error to reach and at the restarts.",
                    anytime.draw,
                ),
            ),
        ),
        "decoupled_decay_2019.warm_restarts": Exhibit(
            claims=(
                Claim(
                    "eta_t restarts by itself, without a word from the training loop.",
                    functools.partial(_is_cosine, "automatic"),
                    "it is three equal cosines from 1 to 0",
                ),
                Claim(
                    "The loop can restart eta_t by hand, at any point of the cosine "
                    "and with another length.",
                    functools.partial(_is_cosine, "by_hand"),
                    "it is the cosine from where the loop asks for it",
                ),
            ),
            extent=_restarts_extent,
            tables=(warm_restarts.table,),
            pictures=(
                Picture(
                    "warm_restarts",
                    "eta_t and the learning rates in force over the updates: on the "
                    "left three equal cosines, on the right cosines begun by hand.",
                    warm_restarts.draw,
                ),
            ),
        ),
    },
)
