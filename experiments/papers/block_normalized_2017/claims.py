"""What the paper and the example of the Keras implementation claim.

The example shows figures and says nothing of them, and its notebooks print what they
are drawn from; what is claimed of networks is what the abstract says of the method.
"""

import functools
from collections.abc import Sequence

from experiments.papers.block_normalized_2017 import (
    cifar_cnn,
    convex,
    deep_mlp,
    learning_rate_sensitivity,
    network_claims,
    recurrent_claims,
)
from experiments.papers.block_normalized_2017.learning_rate_sensitivity import ARRIVED
from experiments.report.claims import Chapter, Claim, Exhibit, Finding, Picture, Stored

# Learning rates that are far apart: by this factor and more.
FAR = 10


def _optimizes(method: str, stored: Stored) -> Finding:
    runs = stored["gaps"][method]
    start, ends = runs[0][0], [gaps[-1] for gaps in runs]
    arrived = [
        rate
        for rate, end in zip(stored["learning_rates"], ends, strict=True)
        if end <= ARRIVED * start
    ]
    falls = sum(end < start for end in ends)
    return Finding(
        falls == len(ends) and bool(arrived),
        f"the gap falls from {start:.3g} at {falls} of {len(ends)} rates, below "
        f"{ARRIVED:.0%} of it at {_rates(arrived)}; the smallest is {min(ends):.2g}",
    )


def _arrives_far_apart(stored: Stored) -> Finding:
    arrived, _ = _arrived(stored)
    factor = max(arrived) / min(arrived) if arrived else 0.0
    others = (
        f"{name} at {sum(n is not None for n in method['arrived_after'])}"
        for name, method in stored["methods"].items()
        if name != "normalized Adam"
    )
    return Finding(
        factor >= FAR,
        f"at {_rates(arrived)}, a factor of {factor:.0f}; "
        f"it arrives at {len(arrived)} rates, {', '.join(others)}",
    )


def _depends_on_the_rate(stored: Stored) -> Finding:
    arrived, ends = _arrived(stored)
    if len(arrived) < 2:
        return Finding(False, f"it arrives at {_rates(arrived)}")
    return Finding(
        max(ends) >= FAR * min(ends),
        f"where it arrives, it ends between {min(ends):.2g} and {max(ends):.2g}",
    )


def _arrived(stored: Stored) -> tuple[list[float], list[float]]:
    """Return the rates at which normalized Adam arrives, and the gaps there."""
    method = stored["methods"]["normalized Adam"]
    found = [
        (rate, end)
        for rate, end, steps in zip(
            stored["learning_rates"],
            method["gap_at_end"],
            method["arrived_after"],
            strict=True,
        )
        if steps is not None
    ]
    return [rate for rate, _ in found], [end for _, end in found]


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.2g}" for rate in rates) or "no rate"


def _convex_extent(stored: Stored) -> str:
    config = stored["config"]
    return (
        f"n = 1 problem (seed {config['seed']}) of {config['size']} unknowns, "
        f"{config['steps']:,} steps at each of {len(stored['learning_rates'])} rates"
    )


CHAPTER = Chapter(
    title="Block-Normalized Gradient Method",
    source="Yu, Huang, Lin, Salakhutdinov, Carbonell, 2017, arXiv 1707.04822, and the "
    "example of its Keras implementation. The example's text has figures alone; what "
    "its notebooks print, of one run each, stands beside ours. What is claimed of "
    "networks is what the abstract says.",
    exhibits={
        "block_normalized_2017.convex": Exhibit(
            claims=tuple(
                Claim(
                    f"{method[0].upper()}{method[1:]} optimizes a convex quadratic.",
                    functools.partial(_optimizes, method),
                    "L(x) - L(x*) falls at all rates, and below one percent at one",
                )
                for method in ("normalized SGD", "normalized Adam")
            ),
            extent=_convex_extent,
            tables=(convex.table,),
            pictures=(
                Picture(
                    "convex",
                    "L(x) - L(x*) over 1,000 steps at six learning rates, a panel for "
                    "each of normalized SGD, normalized Adam, Adam and RMSprop.",
                    convex.draw,
                ),
            ),
        ),
        "block_normalized_2017.learning_rate_sensitivity": Exhibit(
            claims=(
                Claim(
                    "How far normalized Adam gets depends on the initial rate.",
                    _depends_on_the_rate,
                    f"the gaps that it ends with, where they are below {ARRIVED:.0%} "
                    f"of the first one, differ by {FAR} times and more",
                ),
                Claim(
                    "Normalized Adam arrives with initial rates that are far apart.",
                    _arrives_far_apart,
                    f"the gap falls below {ARRIVED:.0%} at rates that differ by "
                    f"{FAR} times and more",
                ),
            ),
            extent=_convex_extent,
            tables=(learning_rate_sensitivity.table,),
            pictures=(
                Picture(
                    "learning_rate_sensitivity",
                    "The gap at the end, and the steps to one percent of the first "
                    "gap, over the learning rate, a line for each of four methods.",
                    learning_rate_sensitivity.draw,
                ),
            ),
        ),
        "block_normalized_2017.deep_mlp": network_claims.exhibit(
            "deep_mlp",
            "30 dense layers",
            deep_mlp.PUBLISHED,
            marks="; dotted lines where the learning rate changes",
        ),
        "block_normalized_2017.cifar_cnn": network_claims.exhibit(
            "cifar_cnn",
            "the convolutional network",
            cifar_cnn.PUBLISHED,
            network_claims.more_accurate(
                "On a convolutional network, the normalized gradient does better with "
                "SGD than with Adam.",
                "normalized SGD",
                "normalized Adam",
            ),
        ),
        "block_normalized_2017.recurrent": recurrent_claims.EXHIBIT,
    },
)
