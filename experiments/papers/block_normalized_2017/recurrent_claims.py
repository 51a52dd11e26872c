"""What the abstract claims of recurrent networks, and what a small one's runs say."""

import functools

import numpy as np

from experiments.papers.block_normalized_2017 import recurrent
from experiments.papers.block_normalized_2017.network_claims import IF_SO
from experiments.report.claims import (
    Claim,
    Exhibit,
    Finding,
    Paired,
    Picture,
    Stored,
)


def _more_accurate(method: str, other: str, stored: Stored) -> Finding:
    """Compare the errors, each at the rate where the mean is lowest."""
    ours, theirs = (
        recurrent.best(stored["curves"][name], "errors").values
        for name in (method, other)
    )
    words = f"test error: {method} {ours.mean():.2%}, {other} {theirs.mean():.2%}"
    points = Paired.of((100 * (theirs - ours)).tolist())
    return points.is_positive("points lower", words)


def _faster(kind: str, stored: Stored) -> Finding:
    """Compare the orders of magnitude of the losses, each at its own best rate."""
    plain, normalized = (
        np.log10(recurrent.best(stored["curves"][name], "losses").values)
        for name in (kind, f"normalized {kind}")
    )
    ends = ", ".join(
        f"{name} {10 ** logs.mean():.2g}"
        for name, logs in ((kind, plain), (f"normalized {kind}", normalized))
    )
    decades = Paired.of((plain - normalized).tolist())
    return decades.is_positive("decades lower", f"training loss at the end: {ends}")


def _claims(kind: str) -> tuple[Claim, ...]:
    return (
        Claim(
            f"Normalizing accelerates the training of a recurrent network by {kind}.",
            functools.partial(_faster, kind),
            "after as many epochs, each at its own best learning rate, the logarithm "
            f"of the training loss is lower, {IF_SO}",
        ),
        _better(
            f"Normalized {kind} generalizes better on a recurrent network.",
            f"normalized {kind}",
            kind,
        ),
    )


def _better(text: str, method: str, other: str) -> Claim:
    return Claim(
        text,
        functools.partial(_more_accurate, method, other),
        f"each at its own best learning rate, the test error of {method} is below that "
        f"of {other}, {IF_SO}",
    )


def _extent(stored: Stored) -> str:
    seeds, rates = np.shape(next(iter(stored["curves"].values()))["errors"])
    return (
        f"n = {seeds} seeds at each of {rates} learning rates, {stored['epochs']} "
        f"epochs of {stored['training_images']} digits, an LSTM of {stored['hidden']} "
        "units"
    )


EXHIBIT = Exhibit(
    claims=(
        *_claims("SGD"),
        *_claims("Adam"),
        _better(
            "On recurrent networks, the normalized gradient does better with adaptive "
            "step sizes, such as Adam's.",
            "normalized Adam",
            "normalized SGD",
        ),
    ),
    extent=_extent,
    tables=(recurrent.table,),
    pictures=(
        Picture(
            "recurrent",
            "Test error and training loss at the end over the learning rate, for a "
            "recurrent network that SGD and Adam train, each plain and normalized; "
            "thin lines for the seeds.",
            recurrent.draw,
        ),
    ),
)
