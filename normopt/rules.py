"""Rules over paths, and options that differ per leaf.

An option of normopt is a plain value, a mapping from path patterns to values, or a
callable from params to a tree of values. `per_leaf` reads all three, for every link, in
one pass over the tree.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.checks import check_integer, is_scalar
from normopt.paths import NamedLeaf, compiled, named_leaves, named_positions, unboxed

PerLeaf = Any  # a plain value, {pattern: value}, or params -> tree of values

_NO_SCHEDULE = (
    "It takes a plain value, a mapping {pattern: value} or a callable from params to a "
    "tree of values, and no schedule of the step count: pass one as `schedule=` where "
    "that is an option, or build with optax.inject_hyperparams, which hands a number "
    "over at each step"
)


def by_path(
    rules: Mapping[str, Any], default: Any = None, *, strict: bool = True
) -> Callable[[Any], Any]:
    """Gives each leaf the value of the first pattern that matches its path.

    Use the result as the mask of `optax.masked` (with `default=False`), or as the
    labels of `optax.partition` (with `default="label"`). It can also be the value of
    any option that is described as "per leaf". These options also take the mapping
    itself, or one value for all leaves. Under `optax.inject_hyperparams` pass the
    mapping, because `inject_hyperparams` calls any callable argument with the step
    count.

    Args:
      rules: `{pattern: value}`, tried in order with `re.search(pattern, path)`.
      default: the value of a leaf that no pattern matches.
      strict: whether a pattern that matches no path at all is an error. Pass False for
        rules that are shared between models.

    Returns:
      A callable from params (or updates) to a tree of values of the same structure. The
      callable raises TypeError if its argument is not a tree of parameters. With
      `strict`, it raises ValueError for a pattern that matches no path.

    Raises:
      TypeError: if `rules` is not a mapping with string keys.
      ValueError: if a key is not a regular expression.

    Examples:
      >>> rule = normopt.by_path({"bias$": "plain"}, default="sphere")
      >>> rule({"dense": {"kernel": 1.0, "bias": 0.0}})
      {'dense': {'bias': 'plain', 'kernel': 'sphere'}}
    """
    searches = _compiled_rules("rules", rules)

    def values_of(params: Any) -> Any:
        check_is_params("by_path(...)", params)
        values = _first_matches(
            named_positions(params), searches, rules, default, "rules", strict
        )
        return jax.tree.structure(params).unflatten(values)

    return values_of


def output_channels(axis: int = -1) -> Callable[[Any], Any]:
    """Makes one block per output channel in every leaf of two or more dimensions.

    Args:
      axis: the output axis: -1 in Flax kernels, 0 in Equinox and torch weights.

    Returns:
      A callable for `channel_axes`. From params it makes a tree with `(axis,)` for
      leaves of two or more dimensions, and `None` for the others (biases, scales).

    Raises:
      TypeError: if `axis` is not an integer.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)}
      >>> normopt.output_channels()(params)
      {'bias': None, 'kernel': (-1,)}
    """
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"`axis` must be an integer, got axis={axis!r}")

    def axes_of(params: Any) -> Any:
        check_is_params("output_channels(...)", params)
        return jax.tree.map(lambda w: (axis,) if np.ndim(w) >= 2 else None, params)

    return axes_of


def whole_leaves(min_ndim: int = 2) -> Callable[[Any], Any]:
    """Makes one block of every leaf that has at least `min_ndim` dimensions.

    Args:
      min_ndim: the smallest number of dimensions; with 2, biases and scales have no
        blocks.

    Returns:
      A callable for `channel_axes`. From params it makes a tree with `()` for such
      leaves, and `None` for the others.

    Raises:
      TypeError: if `min_ndim` is not an integer.
      ValueError: if it is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)}
      >>> normopt.whole_leaves()(params)
      {'bias': None, 'kernel': ()}
    """
    check_integer("min_ndim", min_ndim, 0)

    def axes_of(params: Any) -> Any:
        check_is_params("whole_leaves(...)", params)
        return jax.tree.map(lambda w: () if np.ndim(w) >= min_ndim else None, params)

    return axes_of


def check_per_leaf(
    option: str, value: PerLeaf, check: Callable[[str, Any, str], None]
) -> None:
    """Checks at build time all values of an option that are known by then.

    Args:
      option: the option's name.
      value: the option, in any of its three forms; a callable is known only at init.
      check: called as `check(option, one value, its pattern or "")`; raises if bad.
    """
    if isinstance(value, Mapping):
        _compiled_rules(option, value)
        for pattern, one in value.items():
            _refuse_schedule(option, one, pattern)
            check(option, one, pattern)
    elif callable(value):
        _refuse_schedule(option, value, "")
    else:
        check(option, value, "")


def per_leaf(
    option: str,
    value: PerLeaf,
    tree: Any,
    neutral: Any,
    check: Callable[[str, Any, str], None],
) -> list[Any]:
    """Reads a per-leaf option: one value for each leaf of `tree`, in leaf order.

    Args:
      option: the option's name, for messages.
      value: a plain value, `{pattern: value}` or a callable from `tree` to values.
      tree: params at init; params or updates later (the same paths).
      neutral: the value of leaves that no pattern of a mapping matches.
      check: called as `check(option, one value, leaf path)` on what a callable gives.

    Raises:
      TypeError: if a callable raises one, or a value is a schedule.
      ValueError: for a pattern that matches no path, or a callable that raises one or
        whose result does not have the structure of `tree`.
    """
    if isinstance(value, Mapping):
        rules = _compiled_rules(option, value)
        return _first_matches(named_positions(tree), rules, value, neutral, option)
    if not callable(value):
        return [value] * len(jax.tree.leaves(tree))
    try:
        chosen = value(tree)
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"the callable `{option}` is called with the params, and raised "
            f"{type(error).__name__}: {error}. {_NO_SCHEDULE}"
        ) from error
    try:
        # A rule may name the leaves without the boxes that Flax puts around them.
        values = jax.tree.structure(unboxed(tree)).flatten_up_to(unboxed(chosen))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the callable `{option}` must return a tree of values with the structure "
            f"of the params, got {jax.tree.structure(chosen)}: {error}. {_NO_SCHEDULE}"
        ) from error
    for place, one in zip(named_leaves(tree), values, strict=True):
        _refuse_schedule(option, one, place.path)
        check(option, one, place.path)
    return values


def scaled(value: PerLeaf, factor: Any) -> PerLeaf:
    """Multiplies a per-leaf option of numbers, in any of its three forms."""
    if isinstance(value, Mapping):
        return {pattern: one * factor for pattern, one in value.items()}
    if callable(value):
        return lambda tree: jax.tree.map(lambda one: one * factor, value(tree))
    return value * factor


def _refuse_schedule(option: str, value: Any, where: str) -> None:
    """Raises if an option per leaf, or a value of one, is a schedule of the count.

    Schedules are known by the modules that define them: a function of one's own may
    take the params.
    """
    function = value
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or ""
    is_known = module.startswith(("optax.schedules", "normopt.schedules"))
    is_stateful = isinstance(value, optax.schedules.StatefulSchedule)
    if callable(value) and (is_known or is_stateful):
        place = f" at {where!r}" if where else ""
        raise TypeError(
            f"`{option}` is an option per leaf, got the schedule {option}={value!r}"
            f"{place}. {_NO_SCHEDULE}"
        )


def _first_matches(
    everywhere: list[NamedLeaf],
    rules: dict[str, re.Pattern[str]],
    values: Mapping[str, Any],
    default: Any,
    option: str,
    strict: bool = True,
) -> list[Any]:
    """Gives each unmasked leaf the value of the first rule that finds its path."""
    unmatched, chosen = set(rules), []
    for place in everywhere:
        hits = [pattern for pattern, rule in rules.items() if rule.search(place.path)]
        # A rule that an earlier one overrides, or whose leaf is masked, is no typo.
        unmatched.difference_update(hits)
        if not place.masked:
            chosen.append(values[hits[0]] if hits else default)
    # A tree without leaves is that of `optax.tree.map_params`: nothing misses in it.
    if strict and unmatched and everywhere:
        listing = "\n  ".join(place.path for place in everywhere)
        names = ", ".join(repr(pattern) for pattern in rules if pattern in unmatched)
        raise ValueError(
            f"`{option}`: no parameter path matches {names}. A pattern is searched for "
            "in the path (re.search); rules shared between models want "
            f"by_path(..., strict=False). The paths are:\n  {listing}"
        )
    return chosen


def _compiled_rules(option: str, rules: Any) -> dict[str, re.Pattern[str]]:
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"`{option}` must be a mapping {{pattern: value}}, got {rules!r}"
        )
    return {pattern: compiled(option, pattern) for pattern in rules}


def check_is_params(name: str, params: Any) -> None:
    """Raises if a rule, called `name` in the message, is called with no params."""
    # Fires when optax.inject_hyperparams takes a rule for a schedule of the count.
    is_count = is_scalar(params) and jnp.issubdtype(jnp.result_type(params), np.integer)
    if params is None or is_count or isinstance(params, str):
        raise TypeError(
            f"`{name}` must be called with a tree of parameters, got {params!r}. "
            "optax.inject_hyperparams calls every callable argument with the step "
            "count: name the option in its `static_args`, or pass a mapping "
            "{pattern: value}."
        )
