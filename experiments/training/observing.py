"""What `--observe` adds to a run: what the blocks of each layer do, and should come to.

`metrics.jsonl` gets numbers of the last step before each record, by names such as
`stages/0/0/conv1/kernel/angle`; see `normopt.summary`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

import normopt
from experiments.training.optimizers import Config, levels
from experiments.training.records import Record


def observed(
    optimizer: optax.GradientTransformation, config: Config
) -> optax.GradientTransformation:
    """Return an optimizer that notes what the blocks do.

    They are those that its configuration names; where it names none, the output
    channels of kernels.

    Args:
        optimizer: that a run trains with.
        config: of it, complete.
    """
    named = [level.get("channel_axes") for level in levels(config)]
    axes = [own for own in named if own is not None]
    return normopt.observe(optimizer, axes[0] if axes else normopt.output_channels())


def sizes_of(params: Any, opt_state: Any) -> dict[str, int]:
    """Return the number of elements of a block, of each leaf that is observed."""
    leaves = zip(normopt.leaf_paths(params), jax.tree.leaves(params), strict=True)
    sizes = {path: leaf.size for path, leaf in leaves}
    seen = normopt.observations(opt_state)
    return {path: sizes[path] // own.weight.size for path, own in seen.items()}


def predicted(
    config: Config, sizes: Mapping[str, int], records: Sequence[Record]
) -> dict[str, list[normopt.Equilibrium]]:
    """Return what scale-invariant blocks would come to at each record.

    The schedules are read there, and so is the size of the gradients.

    Args:
        config: of the optimizer, complete.
        sizes: of the blocks of each leaf.
        records: of the run.

    Returns:
        One equilibrium for each record, of each leaf for which it is known: not for
        optimizers that `normopt.equilibrium` does not know, nor without a decay.
    """
    found = {}
    for path, size in sizes.items():
        own = _of_leaf(config, path)
        try:
            found[path] = [
                normopt.equilibrium(
                    own,
                    size=size,
                    gradient=_gradient_at_length_1(record, path, size),
                    step=record["step"] - 1,
                )
                for record in records
            ]
        except (TypeError, ValueError):
            continue
    return found


def _gradient_at_length_1(record: Record, path: str, size: int) -> float:
    gradient, weight = (record[f"{path}/{name}"] for name in ("gradient", "weight"))
    return gradient * weight / math.sqrt(size)


# What a leaf gets that no pattern of a rule matches; None for axes.
_NEUTRAL = {"weight_decay": 0.0, "l1": 0.0, "lr_multipliers": 1.0}
_NO_RULE = object()


def _of_leaf(value: Any, path: str) -> Any:
    """Return a configuration in which each rule by path is its value for a leaf."""
    if isinstance(value, list):
        return [_of_leaf(one, path) for one in value]
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("name"), str):
        found = {option: _of_leaf(one, path) for option, one in value.items()}
        return {
            option: _NEUTRAL.get(option) if one is _NO_RULE else one
            for option, one in found.items()
        }
    rules = (one for rule, one in value.items() if re.search(rule, path))
    return next(rules, _NO_RULE)
