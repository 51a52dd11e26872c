"""What `--observe` adds to a run: what the blocks of each layer do, and should come to.

`metrics.jsonl` gets numbers of the last step taken before each record, by names such as
`stages/0/0/conv1/kernel/angle`; see `normopt.summary`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

import normopt
from experiments.training.optimizers import Config, levels, unrestarted
from experiments.training.records import OBSERVED_STEP, Record


def observed(
    optimizer: optax.GradientTransformation, config: Config
) -> optax.GradientTransformation:
    """Return an optimizer that notes what the blocks do.

    They are those that its configuration names; of leaves for which it names none, the
    output channels of kernels.

    Args:
        optimizer: that a run trains with.
        config: of it, complete.
    """
    named = [level.get("channel_axes") for level in levels(config)]
    axes = next((own for own in named if own not in (None, {})), _OUTPUT_CHANNELS)
    return normopt.observe(optimizer, _filled(axes))


def _filled(axes: Any) -> Any:
    """Return channel axes in which rules leave no kernel without any."""
    if not isinstance(axes, Mapping):
        return axes
    own = normopt.make(**axes) if _is_named(axes) else normopt.by_path(axes)
    channels: Any = normopt.output_channels()

    def of(params: Any) -> Any:
        tree = jax.tree.structure(params)
        leaves = (tree.flatten_up_to(rule(params)) for rule in (own, channels))
        pairs = zip(*leaves, strict=True)
        return tree.unflatten(a if a is not None else other for a, other in pairs)

    return of


def sizes_of(params: Any, opt_state: Any) -> dict[str, int]:
    """Return the number of elements of a block, of each leaf that is observed."""
    leaves = zip(normopt.leaf_paths(params), jax.tree.leaves(params), strict=True)
    sizes = {path: leaf.size for path, leaf in leaves}
    seen = jax.eval_shape(normopt.observations, opt_state)
    return {path: sizes[path] // own.weight.size for path, own in seen.items()}


def predicted(
    config: Config, params: Any, sizes: Mapping[str, int], records: Sequence[Record]
) -> dict[str, list[normopt.Equilibrium | None]]:
    """Return what scale-invariant blocks would come to at each record.

    The schedules are read there, and so is the size of the gradients.

    Args:
        config: of the optimizer, complete.
        params: that it trains.
        sizes: of the blocks of each leaf.
        records: of the run.

    Returns:
        One equilibrium for each record, of each leaf for which it is ever known: not
        for optimizers that `normopt.equilibrium` does not know, nor without a decay.
        It is None at a record where the rate, the weights or their gradient are 0.
    """
    config, found = _by_paths(config, params), {}
    for path, size in sizes.items():
        own = _of_leaf(config, path)
        balances = [_balance(own, path, size, record) for record in records]
        if any(balances):
            found[path] = balances
    return found


def _balance(
    config: Config, path: str, size: int, record: Record
) -> normopt.Equilibrium | None:
    gradient, weight = (record[f"{path}/{name}"] for name in ("gradient", "weight"))
    try:
        return normopt.equilibrium(
            config,
            size=size,
            gradient=gradient * weight / math.sqrt(size),
            step=record[OBSERVED_STEP] - 1,
        )
    except (TypeError, ValueError):
        return None


# What a leaf gets that no pattern of a rule matches; None for axes.
_NEUTRAL = {"weight_decay": 0.0, "l1": 0.0, "lr_multipliers": 1.0}
_NO_RULE = object()
_OUTPUT_CHANNELS = {"name": "output_channels"}
_RULES = ("output_channels", "output_matrices", "whole_leaves")


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _by_paths(value: Any, params: Any) -> Any:
    """Return a configuration whose rules with a name are rules by path.

    Its schedules are functions of the count, too.
    """
    if isinstance(value, list):
        return [_by_paths(one, params) for one in value]
    if not isinstance(value, Mapping):
        return value
    if not _is_named(value) or value["name"] not in _RULES:
        value = unrestarted(value) if _is_named(value) else value
        return {option: _by_paths(one, params) for option, one in value.items()}
    values = jax.tree.structure(params).flatten_up_to(normopt.make(**value)(params))
    paths = normopt.leaf_paths(params)
    return {f"^{re.escape(p)}$": one for p, one in zip(paths, values, strict=True)}


def _of_leaf(value: Any, path: str) -> Any:
    """Return a configuration in which each rule by path is its value for a leaf."""
    if isinstance(value, list):
        return [_of_leaf(one, path) for one in value]
    if not isinstance(value, Mapping):
        return value
    if _is_named(value):
        found = {option: _of_leaf(one, path) for option, one in value.items()}
        return {
            option: _NEUTRAL.get(option) if one is _NO_RULE else one
            for option, one in found.items()
        }
    rules = (one for rule, one in value.items() if re.search(rule, path))
    return next(rules, _NO_RULE)
