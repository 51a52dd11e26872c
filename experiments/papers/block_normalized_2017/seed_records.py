"""One file for the runs of all seeds, to which the command of each adds its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report.figures import Records
from experiments.training import provenance
from experiments.training.runs import write_json

# The options that set what the file calls otherwise.
_OPTIONS = {"images": "--images", "epochs_per_rate": "--epochs"}

Settings = Mapping[str, Any]


def curves_of(records: Records) -> dict[str, list[float]]:
    """Return loss and accuracy at the end of each epoch, rounded as figures show them.

    Args:
        records: of a run with one an epoch, whose validation images are its test's.
    """
    return {
        f"{split}_{quantity}": [
            float(f"{record[f'{source}_{quantity}']:.5g}") for record in records
        ]
        for split, source in (("train", "train"), ("test", "validation"))
        for quantity in ("loss", "accuracy")
    }


def kept(path: Path, settings: Settings, *, fresh: bool) -> dict[str, Any]:
    """Return the seeds in a file to which one of these settings can be added.

    Args:
        path: the JSON file, which need not be there.
        settings: what is the same for all seeds.
        fresh: whether a file of other settings is to be replaced.

    Raises:
        ValueError: the file is of other settings.
    """
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if others := _differences(stored["config"], settings):
        if fresh:
            return {}
        raise ValueError(
            f"{path} holds runs with {others}: ask for the same, take another --out, "
            "or --fresh to replace them"
        )
    return stored["seeds"]


def add(
    path: Path,
    settings: Settings,
    published: Mapping[str, Any],
    seed: int,
    record: Mapping[str, Any],
    *,
    fresh: bool,
) -> None:
    """Write the record of one seed beside those of the file, or in its own's place.

    Args:
        path: the JSON file.
        settings: what is the same for all seeds.
        published: what stands beside them.
        seed: whose record it is.
        record: what JSON can hold.
        fresh: whether a file of other settings is replaced.
    """
    seeds = {**kept(path, settings, fresh=fresh), str(seed): record}
    write_json(
        path,
        {
            "config": dict(settings),
            "published": dict(published),
            "seeds": dict(sorted(seeds.items(), key=lambda one: int(one[0]))),
            "provenance": provenance.describe(),
        },
    )


def _differences(stored: Settings, settings: Settings) -> str:
    """Name what differs, as the options that set it where there are some."""
    return ", ".join(
        f"{_OPTIONS.get(key, key)} {stored.get(key)} (here {settings.get(key)})"
        for key in {**stored, **settings}
        if stored.get(key) != settings.get(key)
    )
