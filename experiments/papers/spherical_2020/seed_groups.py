"""The seeds of one cell, which commands that wanted more or fewer have trained.

Those that a command trains together are a group, with a folder of its own. A command
takes what it wants from groups that are finished, goes on with others that are a part
of what it wants, and trains the rest.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.papers.spherical_2020.seeds import train_seeds
from experiments.training.locking import alone_in
from experiments.training.preparation import Prepared
from experiments.training.runs import Run

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
            fresh: whether to train all of them anew, as one group. Groups that have
                some of them are removed, with their other seeds.

        Returns:
            What `train_seeds` does, of all `seeds` in their order, and `provenance`,
            that of each group; of groups of which one diverged, what is said of that.
        """
        if fresh:
            for group in [list(seeds), *self._found()]:
                if set(group) & set(seeds):
                    run = self._run(group)
                    with alone_in(run.folder):
                        run.remove()
        by_seed, devices, provenance, result = {}, set(), [], {}
        for group in self._groups(seeds):
            run = self._run(group)
            with alone_in(run.folder):
                result = train_seeds(prepared, group, run, console)
            provenance += [one for one in run.provenance() if one not in provenance]
            if "diverged" in result:
                return {**result, "provenance": provenance}
            devices.add(result["device"])
            numbers = zip(*(result[key] for key in EACH), strict=True)
            by_seed |= dict(zip(group, numbers, strict=True))
        columns = zip(*(by_seed[seed] for seed in seeds), strict=True)
        return {
            **result,
            **{key: list(column) for key, column in zip(EACH, columns, strict=True)},
            "device": "; ".join(sorted(devices)),
            "provenance": provenance,
        }

    def _run(self, seeds: Sequence[int]) -> Run:
        return Run(self._root, self._label, {**self._config, "seeds": list(seeds)})

    def _found(self) -> list[list[int]]:
        """Return the seeds of each group that has a folder."""
        files = self._root.glob(f"{self._label}-*/config.json")
        groups = {file: json.loads(file.read_text()).get("seeds", []) for file in files}
        return sorted(
            seeds
            for file, seeds in groups.items()
            if self._run(seeds).folder == file.parent
        )

    def _groups(self, seeds: Sequence[int]) -> list[list[int]]:
        """Return groups that together have the seeds, those that are finished first."""
        groups, missing = [], list(seeds)

        def rank(group: list[int]) -> tuple[bool, int]:
            return not self._has_numbers(group), -len(set(group) & set(seeds))

        for group in sorted(self._found(), key=rank):
            own = set(group) & set(missing)
            # Seeds that are not wanted are not trained for those that are.
            if own and (own == set(group) or self._has_numbers(group)):
                groups.append(group)
                missing = [seed for seed in missing if seed not in own]
        return [*groups, missing] if missing else groups

    def _has_numbers(self, group: Sequence[int]) -> bool:
        run = self._run(group)
        return run.is_finished() and "diverged" not in run.result()
