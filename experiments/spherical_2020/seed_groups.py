"""The seeds of one cell, which commands that asked for more and more have trained.

Those of one command are a group, with a folder of its own. A command that wants more
seeds than there are goes on with the groups that it finds, and trains the others.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.preparation import Prepared
from experiments.runs import Run
from experiments.spherical_2020.seeds import train_seeds

# What `train_seeds` returns a number of for each seed.
EACH = ("test_accuracy", "tested_step")


class SeedGroups:
    """The folders `root/<label>-<hash>` of the groups of runs that seeds tell apart."""

    def __init__(self, root: Path, label: str, config: dict[str, Any]):
        """Name them; nothing is created.

        Args:
            root: the folder for the folders.
            label: their names' beginning.
            config: what all the runs share.
        """
        self._root, self._label, self._config = root, label, config

    def train(
        self,
        prepared: Prepared,
        seeds: Sequence[int],
        console: Console,
        *,
        fresh: bool,
    ) -> dict[str, Any]:
        """Train the seeds that no group has, and finish the groups that have the rest.

        Args:
            prepared: the run of any seed, whose own folder stays unused.
            seeds: those wanted.
            console: where progress goes.
            fresh: whether to train all of them anew, as one group.

        Returns:
            What `train_seeds` does, of all `seeds` in their order, and `provenance`,
            that of each group; of groups of which one diverged, what is said of that.
        """
        groups = self._groups(seeds)
        if fresh:
            for group in groups:
                self._run(group).remove()
            groups = [list(seeds)]
        results, provenance = [], []
        for group in groups:
            run = self._run(group)
            results.append(train_seeds(prepared, group, run, console))
            provenance += [one for one in run.provenance() if one not in provenance]
            if "diverged" in results[-1]:
                return {**results[-1], "provenance": provenance}
        return {**_joined(groups, results, seeds), "provenance": provenance}

    def _run(self, seeds: Sequence[int]) -> Run:
        return Run(self._root, self._label, {**self._config, "seeds": list(seeds)})

    def _groups(self, seeds: Sequence[int]) -> list[list[int]]:
        """Return the seeds apart: the largest groups that have a folder, and the rest.

        Groups with a seed that is not wanted are passed over.
        """
        found = []
        for file in self._root.glob(f"{self._label}-*/config.json"):
            group = json.loads(file.read_text()).get("seeds", [])
            if self._run(group).folder == file.parent:
                found.append(group)
        groups, missing = [], list(seeds)
        for group in sorted(found, key=lambda group: (-len(group), group)):
            if set(group) <= set(missing):
                groups.append(group)
                missing = [seed for seed in missing if seed not in group]
        return [*groups, missing] if missing else groups


def _joined(
    groups: Sequence[Sequence[int]],
    results: Sequence[dict[str, Any]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return the results of groups as one, with numbers in the order of `seeds`."""
    trained = [seed for group in groups for seed in group]
    joined = {
        key: [value for result in results for value in result[key]] for key in EACH
    }
    return {
        **results[0],
        **{
            key: [values[trained.index(seed)] for seed in seeds]
            for key, values in joined.items()
        },
        "device": "; ".join(sorted({result["device"] for result in results})),
    }
