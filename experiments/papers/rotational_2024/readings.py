"""What is read off the stored lengths and angles."""

from typing import Any

import numpy as np

from experiments.report.claims import Stored


def worst(arm: Stored, quantity: str) -> np.ndarray:
    """Return how far off the prediction is at the worst setting of noise, by seed.

    Args:
        arm: what `measure_noise` found.
        quantity: length or angle.
    """
    predicted = np.array(arm[f"predicted_{quantity}"])[:, None]
    return np.max(np.abs(np.array(arm[quantity]) / predicted - 1), axis=0)


def by_layer(network: Stored, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what is predicted of a network and what was measured, seeds x layers."""
    predicted, measured = (
        np.array([seed[key] for seed in network["seeds"]])
        for key in (f"predicted_{quantity}", quantity)
    )
    return predicted, measured


def ratios(network: Stored, quantity: str) -> np.ndarray:
    """Return measured over predicted, the geometric mean over the layers, by seed."""
    predicted, measured = by_layer(network, quantity)
    return np.exp(np.mean(np.log(measured / predicted), axis=1))


def spread(network: Stored) -> np.ndarray:
    """Return the deviation over the layers of the logarithm of the angle, by seed."""
    _, measured = by_layer(network, "angle")
    return np.std(np.log(measured), axis=1)


def course(network: Stored) -> Any:
    """Return measured angles over predicted ones by stretch, the mean of all seeds."""
    return np.mean([seed["course"] for seed in network["seeds"]], axis=0)
