"""Random trees of parameters, their channel axes, and numbers to fill them with."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import normopt

# Each new shape has to be compiled for, so there are few: no, one and several elements,
# blocks of one element, and every number of dimensions up to four. What is drawn first
# is drawn most.
SHAPES = [(4, 3), (2, 1, 2, 3), (3,), (2, 1, 3), (), (2, 0)]
DTYPES = ["float32", "bfloat16", "float16", "complex64"]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter to be: its shape, and the axes that index its blocks."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] | None  # sorted, not negative

    @property
    def within(self):
        """The axes of a block of it."""
        return tuple(a for a in range(len(self.shape)) if a not in self.axes)

    @property
    def block_size(self):
        return math.prod(self.shape[axis] for axis in self.within)

    @property
    def has_blocks(self):
        return self.axes is not None and 0 not in self.shape

    @property
    def has_proper_blocks(self):
        """Whether they have a direction: a block of one element has none."""
        return self.has_blocks and self.block_size > 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A tree of `Leaf`s, and the option that gives each of them its axes."""

    tree: Any
    channel_axes: Any

    @property
    def leaves(self):
        return jax.tree.leaves(self.tree)

    @property
    def by_path(self):
        return dict(zip(normopt.leaf_paths(self.tree), self.leaves, strict=True))

    def numbers(self, seed, size=0.0, spread=0.0, dtype="float32", zeros=0.0):
        """Numbers of random sign, or phase, in every leaf: a tree of arrays.

        Args:
          seed: of the generator.
          size: their power of ten; they are 1 to 3 times that.
          spread: how far each number's power of ten can be from that, either way.
          dtype: of the leaves.
          zeros: the share of elements that are zero.
        """
        random = np.random.default_rng(seed)

        def filled(leaf):
            x = random.uniform(-3, 3, leaf.shape)
            x = x + np.copysign(1 - np.abs(x) / 3, x)
            if dtype == "complex64":
                x = x * np.exp(1j * random.uniform(0, 7, leaf.shape))
            powers = size + random.uniform(-spread, spread, leaf.shape)
            x = x * 10.0**powers * (random.random(leaf.shape) >= zeros)
            return jnp.asarray(x, dtype)

        return jax.tree.map(filled, self.tree)


@st.composite
def leaves(draw):
    shape = draw(st.sampled_from(SHAPES))
    subsets = st.lists(st.sampled_from(range(len(shape))), unique=True)
    # First, for the example that is always drawn: one block a column.
    last = st.just((len(shape) - 1,))
    axes = last | subsets.map(sorted).map(tuple) if shape else st.just(())
    return Leaf(shape, draw(axes | st.none()))


def containers(of):
    """Up to four leaves in nested lists, tuples and dictionaries."""
    return st.recursive(
        of,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
        ),
        max_leaves=4,
    )


@st.composite
def plans(draw):
    """A tree with its channel axes as one of the three kinds of options.

    A plain value takes the place of the axes of all leaves that have them.
    """
    tree = draw(containers(leaves()))
    kind = draw(st.sampled_from(["mapping", "callable", "plain"]))
    if kind == "plain":
        value = draw(st.sampled_from([None, (), (-1,), (0,), (0, 2), (-2, 1)]))
        planned = _with_plain_axes(tree, value)
        if planned is not None:
            return Plan(planned, value)
        kind = "mapping"
    if kind == "callable":
        return Plan(tree, lambda params: jax.tree.map(lambda leaf: leaf.axes, tree))
    rules = {
        f"^{re.escape(path)}$": draw(_some_negative(leaf))
        for path, leaf in Plan(tree, None).by_path.items()
    }
    return Plan(tree, rules)


def _with_plain_axes(tree, value):
    """The tree with these axes where a leaf has them; None where they are refused."""
    if value is None:
        return jax.tree.map(lambda leaf: Leaf(leaf.shape, None), tree)

    def has_all(shape):
        return all(-len(shape) <= axis < len(shape) for axis in value)

    def resolved(shape):
        return tuple(sorted(axis % len(shape) for axis in value))

    shapes = [leaf.shape for leaf in jax.tree.leaves(tree) if has_all(leaf.shape)]
    if not shapes or any(len({*resolved(s)}) < len(value) for s in shapes):
        return None
    return jax.tree.map(
        lambda leaf: Leaf(
            leaf.shape, resolved(leaf.shape) if has_all(leaf.shape) else None
        ),
        tree,
    )


def _some_negative(leaf):
    if not leaf.axes:
        return st.just(leaf.axes)
    signs = [st.sampled_from([axis, axis - len(leaf.shape)]) for axis in leaf.axes]
    return st.tuples(*signs)
