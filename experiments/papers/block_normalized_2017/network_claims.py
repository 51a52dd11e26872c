"""What the abstract claims of networks, and what their curves over some seeds say."""

import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.papers.block_normalized_2017 import curve_figures
from experiments.papers.block_normalized_2017.curve_figures import Published
from experiments.report.claims import (
    ERRORS,
    FEWEST_SEEDS,
    NO_VALUE,
    Claim,
    Exhibit,
    Finding,
    Paired,
    Picture,
    Stored,
    is_whole,
)

# What the example trains on: the official training images, and epochs at each rate.
WHOLE = {"mnist": (60_000, 10), "cifar10": (50_000, 50)}
IF_SO = (
    f"seed by seed, by more than {ERRORS} standard errors of the difference, over "
    f"{FEWEST_SEEDS} seeds and more"
)


def exhibit(
    name: str, network: str, published: Published, *more: Claim, marks: str = ""
) -> Exhibit:
    """Return what a report shows of a network.

    Args:
        name: of its records.
        network: what it is.
        published: what the notebook printed.
        more: claims of it alone.
        marks: what its figures show besides.
    """
    at_edge = {"train": "", "test": "; at the right edge what the notebook printed"}
    return Exhibit(
        claims=(*_claims(network, published), *more),
        extent=_extent,
        tables=(curve_figures.table,),
        pictures=tuple(
            Picture(
                f"{name}_{split}",
                f"Loss, on a log scale, and accuracy on {images} images over the "
                f"epochs for {network}, by SGD and Adam, each plain and "
                f"normalized; thin lines for the seeds, where there are several"
                f"{marks}{at_edge[split]}.",
                functools.partial(_draw, split=split),
            )
            for split, images in curve_figures.SPLITS.items()
        ),
        whole=tuple(_command(seed) for seed in range(FEWEST_SEEDS)),
        stored_by=_commands,
    )


def more_accurate(
    text: str, method: str, other: str, published: str = NO_VALUE
) -> Claim:
    """Return the claim that one method ends with a higher test accuracy."""
    return Claim(
        text,
        _of_the_whole(functools.partial(_more_accurate, method, other)),
        f"it ends with a higher test accuracy, {IF_SO}",
        published,
    )


def _claims(network: str, published: Published) -> tuple[Claim, ...]:
    return tuple(
        claim
        for kind in ("SGD", "Adam")
        for claim in (
            Claim(
                f"Normalizing accelerates the training of {network} by {kind}.",
                _of_the_whole(functools.partial(_faster, kind)),
                "the training loss that the plain optimizer ends with is first reached "
                f"in fewer epochs, {IF_SO}",
            ),
            more_accurate(
                f"Normalized {kind} generalizes better on {network}.",
                f"normalized {kind}",
                kind,
                published.in_words(),
            ),
        )
    )


def _faster(kind: str, stored: Stored) -> Finding:
    """Compare the epochs to the loss that the plain optimizer of the seed ends with.

    Its own are those to when it is there first: before its end, where the loss wavers.
    """
    plain, needed, epochs = [], [], 0
    for seed in stored["seeds"].values():
        losses, normalized = (
            seed["curves"][name]["train_loss"] for name in (kind, f"normalized {kind}")
        )
        epochs = len(losses)
        plain.append(_first_at(losses[-1], losses))
        needed.append(_first_at(losses[-1], normalized))
    there = ", ".join("never" if n is None else str(n) for n in needed)
    words = (
        f"{kind}'s loss after {epochs} epochs is first reached after: "
        f"{', '.join(map(str, plain))}; normalized, after: {there}"
    )
    if None in needed:
        return Finding(False, words)
    sooner = Paired.of([a - b for a, b in zip(plain, needed, strict=True)])
    return sooner.is_positive("epochs sooner", words)


def _first_at(bound: float, losses: Sequence[float]) -> int | None:
    """Return the epoch after which a loss is at most the bound, None if none is."""
    return next((n for n, loss in enumerate(losses, 1) if loss <= bound), None)


def _more_accurate(method: str, other: str, stored: Stored) -> Finding:
    ours, theirs = (
        [
            100 * seed["curves"][name]["test_accuracy"][-1]
            for seed in stored["seeds"].values()
        ]
        for name in (method, other)
    )
    words = ", ".join(
        f"{name} {statistics.mean(percents):.2f} %"
        for name, percents in ((method, ours), (other, theirs))
    )
    more = Paired.of([a - b for a, b in zip(ours, theirs, strict=True)])
    return more.is_positive("points", f"test accuracy: {words}")


def _of_the_whole(find: Callable[[Stored], Finding]) -> Callable[[Stored], Finding]:
    """Judge by runs of the example's length, of all images and enough seeds, alone."""

    def found(stored: Stored) -> Finding:
        config, (holds, words) = stored["config"], find(stored)
        images, epochs = WHOLE[config["data"]]
        ran = config["epochs_per_rate"]
        if ran != epochs or not is_whole(config["images"], images):
            holds = None
            words += f"; after {ran} epochs of {config['images']:,} images, where the "
            words += f"example has {epochs} of {images:,}"
        if len(stored["seeds"]) < FEWEST_SEEDS:
            holds = None
            words += (
                f"; n = {len(stored['seeds'])}, judged from {FEWEST_SEEDS} seeds on"
            )
        return Finding(holds, words)

    return found


def _draw(path: Path, stored: Stored, split: str) -> None:
    curve_figures.draw(path, stored, split)


def _extent(stored: Stored) -> str:
    config, seeds = stored["config"], stored["seeds"]
    epochs = config["epochs_per_rate"] * len(config["learning_rates"]["SGD"])
    return (
        f"n = {len(seeds)} ({'seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(seeds)}), {epochs} epochs of {config['images']:,} images of "
        f"{config['data']} in batches of {config['batch_size']}; test accuracies over "
        f"{config['test_images']:,} images"
    )


def _commands(stored: Stored) -> tuple[str, ...]:
    config = stored["config"]
    images, epochs = WHOLE[config["data"]]
    options = []
    if not is_whole(config["images"], images):
        options.append(f"--images {config['images']}")
    if config["epochs_per_rate"] != epochs:
        options.append(f"--epochs {config['epochs_per_rate']}")
    return tuple(_command(int(seed), *options) for seed in stored["seeds"])


def _command(seed: int, *options: str) -> str:
    return " ".join([*options, f"--seed {seed}"] if seed else options)
