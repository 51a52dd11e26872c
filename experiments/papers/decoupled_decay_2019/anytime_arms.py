"""Optimizers that restart, and what is read off their errors beside one cosine's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from experiments.papers.decoupled_decay_2019.grid_training import (
    BATCH,
    Make,
    from_text,
)

# With restarts, and without: the names of the paper.
PAIRS = {"SGDWR": "SGDW", "AdamWR": "AdamW"}
# An error is reached where a run is within so much of what one cosine ends with.
WITHIN = 0.01


def restarted(make: Make, cycles: Sequence[int], images: int) -> Make:
    """Return an optimizer that anneals in cycles, whatever eta_t it is given.

    The decay is the paper's normalized one: in a cycle that has T_i of all T updates it
    is sqrt(T / T_i) times that of a single cosine. The moments are kept.

    Args:
        make: gives the optimizer of one cosine; its decay stands last.
        cycles: their epochs.
        images: how many are trained on in an epoch.
    """
    updates = [epochs * images // BATCH for epochs in cycles]
    eta = normopt.cosine_restarts(updates)
    shares = np.asarray(updates) / sum(updates)
    factors = jnp.asarray(np.repeat(shares**-0.5, updates), float)

    def normalized(count: jax.Array) -> jax.Array:
        return eta(count) * factors[count]

    def make_restarted(
        learning_rate: Any, decay: Any, _: optax.Schedule
    ) -> optax.GradientTransformation:
        return optax.chain(
            make(learning_rate, 0.0, eta),
            normopt.decay_weights(decay, schedule=normalized),
        )

    return make_restarted


class Pair(NamedTuple):
    """Errors after each epoch, seeds x epochs.

    Attributes:
        cosine: on one cosine, at the best cell of that.
        restarts: with restarts, at the best cell of these.
        cosine_there: on one cosine, at the cell of the restarts.
    """

    cosine: np.ndarray
    restarts: np.ndarray
    cosine_there: np.ndarray

    @classmethod
    def of(cls, restarts: str, stored: Mapping[str, Any]) -> "Pair":
        """Read a pair off the records.

        Args:
            restarts: the name of the arm that has them, one of `PAIRS`.
            stored: what `anytime.json` holds.
        """
        arms = stored["arms"]
        wrong = (
            arms[PAIRS[restarts]]["wrong"],
            arms[restarts]["wrong"],
            arms[restarts]["wrong_on_one_cosine"],
        )
        return cls(*(from_text(each) / stored["judging_images"] for each in wrong))

    @property
    def bars(self) -> np.ndarray:
        """The errors to reach: what each seed's one cosine ends with, and `WITHIN`."""
        return self.cosine[:, -1] + WITHIN

    def epochs_needed(self) -> "Pair":
        """Return after how many epochs each run is first at its seed's bar."""
        return Pair(*(epochs_needed(curves, self.bars) for curves in self))


def pairs_of(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return those of `PAIRS` that were run, of which a smoke run has one.

    Args:
        stored: what `anytime.json` holds.
    """
    return {name: cosine for name, cosine in PAIRS.items() if name in stored["arms"]}


def epochs_needed(curves: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """Return after how many epochs each run's error is first at most its bar.

    Args:
        curves: errors after each epoch, runs x epochs.
        bars: one for each run. One that is never reached takes an epoch more than
            there are, the least that it can take.
    """
    reached = curves <= bars[:, None]
    never = curves.shape[1] + 1
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, never)
