"""Which leaf: one path string for each, whatever holds the parameters.

Linen dicts, NNX states, Equinox modules, tuples, lists and dataclasses spell their keys
differently, and `nnx.Optimizer` spells them in two ways. Here they become one.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

KeyPath = tuple[Hashable, ...]


def path_of(key_path: KeyPath) -> str:
    """Makes a path string from a JAX key path: its keys, joined by `/`.

    NNX variables (`nnx.Param`) and the boxes of Linen (`nn.Partitioned`,
    `nn.LogicallyPartitioned`) keep their array in an attribute `value`. The path leaves
    this attribute out, so it is the same with and without a box. A dictionary key
    `value` stays in the path.

    A key path does not tell whether an object is such a box. So this function guesses:
    it drops an attribute `value` that directly follows a dictionary key, unless another
    attribute comes after `value`. The guess is right for all trees of NNX and Linen
    that consist of dictionaries. `leaf_paths` and all options by path see the objects
    themselves, and do not have to guess. The guess is wrong in two cases:

    - An object in a dictionary has an attribute `value`, but is not a box. For
      `{"a": object}` this function returns `a`, but `leaf_paths` returns `a/value`.
    - A box is not in a dictionary. For `[box]` this function returns `0/value`, but
      `leaf_paths` returns `0`.

    Args:
      key_path: a key path from `jax.tree_util.tree_map_with_path`.

    Returns:
      The path, e.g. `encoder/layers/0/kernel`; empty for a tree that is one leaf.

    Examples:
      >>> import jax
      >>> tree = {"encoder": [{"kernel": 1.0}]}
      >>> jax.tree_util.tree_map_with_path(lambda k, _: normopt.path_of(k), tree)
      {'encoder': [{'kernel': 'encoder/0/kernel'}]}
    """
    kept: list[Any] = []
    behind_name = False
    for position, key in enumerate(key_path):
        if _is_value_attribute(key) and behind_name:
            if all(map(_may_be_boxed, key_path[position:])):
                continue
        kept.append(key)
        behind_name = isinstance(key, jax.tree_util.DictKey)
    return _join(tuple(kept))


def leaf_paths(params: Any, pattern: str = "") -> list[str]:
    """Lists the paths of all leaves that a pattern matches.

    Args:
      params: a pytree of arrays, in any container.
      pattern: a regular expression for `re.search`; it may match anywhere in a path.
        The empty pattern matches every path.

    Returns:
      Paths in the order of `jax.tree.leaves(params)`.

    Raises:
      TypeError: if `pattern` is not a string.
      ValueError: if it is not a regular expression.

    Examples:
      A pattern that is not anchored may match more than you expect:

      >>> params = {"conv_1": {"kernel": 1.0}, "conv_10": {"kernel": 1.0}}
      >>> normopt.leaf_paths(params, "conv_1")
      ['conv_1/kernel', 'conv_10/kernel']
      >>> normopt.leaf_paths(params, "^conv_1/")
      ['conv_1/kernel']
    """
    search = compiled("pattern", pattern).search
    return [place.path for place in named_leaves(params) if search(place.path)]


class NamedLeaf(NamedTuple):
    """A leaf by the name that it has in a tree."""

    path: str
    leaf: Any
    masked: bool  # an `optax.MaskedNode`: another part of the chain has this leaf


def named_leaves(tree: Any) -> list[NamedLeaf]:
    """Lists the leaves of `tree` in order, without those that a mask took out."""
    return [place for place in named_positions(tree) if not place.masked]


def named_positions(tree: Any) -> list[NamedLeaf]:
    """Lists the leaves of `tree` and the positions that `optax.masked` took out."""
    return _named_below(tree, ())


def _named_below(tree: Any, above: KeyPath) -> list[NamedLeaf]:
    def stops(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode) or _is_box(node)

    found = []
    for below, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops):
        keys = (*above, *below)
        if _is_box(node):
            for key, child in _held(node):
                found += _named_below(child, (*keys, *key))
        else:
            found.append(
                NamedLeaf(_join(keys), node, isinstance(node, optax.MaskedNode))
            )
    return found


def unboxed(tree: Any) -> Any:
    """Replaces each box by what it holds, so that trees of values can be compared."""
    return jax.tree.map(
        lambda node: node if _opened(node) is node else unboxed(_opened(node)),
        tree,
        is_leaf=_is_box,
    )


def compiled(option: str, pattern: Any) -> re.Pattern[str]:
    """Compiles a path pattern, or says which option holds one that cannot be."""
    if not isinstance(pattern, str):
        raise TypeError(
            f"`{option}` needs path patterns, which are strings, got {pattern!r}"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{option}`: {pattern!r} is not a regular expression: {error}"
        ) from error


def params_like(
    updates: Any,
    params: Any,
    link: str,
    called: tuple[str, str] = ("updates", "params"),
    *,
    needed: bool = True,
) -> list[Any]:
    """Returns the leaves of `params`, one for each leaf of `updates`.

    Without params it returns None for each, unless they are `needed`.

    Raises:
      ValueError: if params are missing, or their paths or shapes are not those of the
        updates; the message names `link`, what the two trees are `called`, and the
        first path that differs.
    """
    leaves = jax.tree.leaves(updates)
    if params is None and not needed:
        return [None] * len(leaves)
    if params is None:
        first = f", {named_leaves(updates)[0].path!r} first" if leaves else ""
        raise ValueError(
            f"`{link}` needs the parameters{first}: call update(updates, state, params)"
        )
    weights = jax.tree.leaves(params)
    if jax.tree.structure(updates) != jax.tree.structure(params):
        difference = structural_difference(updates, params)
        if difference:
            raise ValueError(
                f"`{link}` got {called[0]} and {called[1]} of different structure: "
                f"{difference}"
            )
    for position, (g, w) in enumerate(zip(leaves, weights, strict=True)):
        if np.shape(g) != np.shape(w):
            path = named_leaves(updates)[position].path
            raise ValueError(
                f"`{link}` got {called[0]} of shape {np.shape(g)} for the "
                f"{called[1]} {path!r} of shape {np.shape(w)}"
            )
    return weights


def structural_difference(one: Any, other: Any) -> str:
    """Tells where two trees of different structure differ; empty if in NNX alone.

    The structures of NNX states can differ in metadata: there the paths decide.
    """
    difference = path_difference(named_leaves(one), named_leaves(other))
    return difference or _other_container(one, other, ())


def path_difference(ours: Sequence[NamedLeaf], theirs: Sequence[NamedLeaf]) -> str:
    """Tells which path stands in one of two trees alone; empty if none does."""
    one, other = ([place.path for place in tree] for tree in (ours, theirs))
    if one == other:
        return ""
    lone = sorted(set(one) ^ set(other))
    if lone:
        return f"only one of the two has {lone[0]!r}"
    # Where the shorter is the beginning of the longer, that has a path twice.
    last = max(one, other, key=len)[-1]
    first = next((a for a, b in zip(one, other, strict=False) if a != b), last)
    return f"{first!r} does not stand in the same place of both"


def _other_container(one: Any, other: Any, keys: KeyPath) -> str:
    """Tells which node of two trees with the same paths is not the same container."""
    one, other = _opened(one), _opened(other)
    if _is_nnx(one) or _is_nnx(other):
        return ""
    (ours, kind), (theirs, other_kind) = _children(one), _children(other)
    if kind != other_kind:
        where = repr(_join(keys)) if keys else "the root"
        kinds = f"{type(one).__name__} and {type(other).__name__}"
        if type(one) is type(other):
            kinds = f"{kind} and {other_kind}"
        return f"the containers at {where} are not the same: {kinds}"
    for (key, child), (_, other_child) in zip(ours, theirs, strict=True):
        # A leaf is its own only child, without a key.
        difference = _other_container(child, other_child, (*keys, *key)) if key else ""
        if difference:
            return difference
    return ""


def _children(node: Any) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """Takes one node apart: its children by their keys, and what it is."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda n: n is not node)


def check_distinct(paths: Sequence[str]) -> None:
    """Raises if two of the paths are one: they name what a state keeps."""
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(
                f"two parameters have the path {path!r}, by which what is kept for "
                "their blocks is named; rename one"
            )
        seen.add(path)


def _join(key_path: KeyPath) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _is_value_attribute(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _may_be_boxed(key: Any) -> bool:
    """Tells whether a key may stand in a box of NNX or Linen, or is the box's own."""
    return not isinstance(key, jax.tree_util.GetAttrKey) or key.name == "value"


def _is_box(node: Any) -> bool:
    """Tells whether a node holds a parameter, to say something of it.

    Such are an `nnx.Param` and its kin, by name because flax is no run-time dependency,
    and what Linen unboxes: `nn.Partitioned` and all else with a method `unbox`.
    """
    kind = type(node)
    has_name = callable(getattr(kind, "unbox", None)) or any(
        base.__name__ == "Variable" and base.__module__.startswith("flax.nnx")
        for base in kind.__mro__
    )
    # A class that is not known to JAX is a leaf, whatever it may hold.
    return has_name and not jax.tree_util.all_leaves([node])


def _held(box: Any) -> list[tuple[KeyPath, Any]]:
    """Lists what a box holds. The box's own name for its parameter is no key of a path.

    That is `value`, or the name of the only thing in it.
    """
    children, _ = _children(box)
    return [
        (() if len(children) == 1 or _is_value_attribute(key[0]) else key, child)
        for key, child in children
    ]


def _opened(node: Any) -> Any:
    """Gives what a box holds, if that is one thing, and any other node as it is."""
    while _is_box(node) and len(held := _held(node)) == 1:
        node = held[0][1]
    return node


def _is_nnx(node: Any) -> bool:
    return any(kind.__module__.startswith("flax.nnx") for kind in type(node).__mro__)
