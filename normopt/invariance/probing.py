"""Gradients at perturbed parameters, and how much of each is rounding.

What holds at one point may be chance or a special start: zero biases hide what they
would break. So parameters are moved, every leaf by its own size, and leaves without a
size of their own by as much as changes the loss like the others do.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normopt.blocks import has_numbers
from normopt.numerics import widened
from normopt.paths import Place, places

Gradient = Callable[
    [list[jax.Array], float], tuple[jax.Array, jax.Array, list[jax.Array]]
]

# A gradient with more rounding than this share of its length says nothing. Measured:
# 1e-6 in float32, 0.01 to 0.04 with bfloat16, about 1 where the true gradient is zero.
NOISE_LIMIT = 0.05
# A leaf that moves the loss by less than this share of the median leaf is too small to
# show what it would break (biases that start at 1e-6), as a leaf of zeros is.
NEGLIGIBLE = 0.01
# The size of a leaf of zeros as long as no gradient tells a better one.
FALLBACK_SIZE = 0.1
# No leaf is moved by more than this many times the largest leaf's size.
LARGEST_MOVE = 1e4

# How often a move that goes too far is halved.
HALVINGS = 4
# Numbers of the moves that sizes are found with.
CALIBRATIONS = (1001, 1002)


class Point(NamedTuple):
    """One point of parameter space, and the gradient there from two evaluations."""

    weights: list[jax.Array]
    grads: list[jax.Array]
    again: list[jax.Array]  # equal to grads but for rounding


def numeric_leaves(params: Any) -> list[tuple[int, Place]]:
    """Lists the leaves that a loss can be differentiated by, with their positions.

    Raises:
      TypeError: if a leaf is the shape of an array and not an array.
    """
    for place in places(params):
        if isinstance(place.leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                "`find_scale_invariance` takes gradients at `params` and needs arrays, "
                f"got {place.leaf} at {place.path!r}"
            )
    return [
        (position, place)
        for position, place in enumerate(places(params))
        if _is_number_array(place.leaf)
    ]


def gradient_of(
    loss_fn: Callable[..., Any], params: Any, args: tuple[Any, ...], has_aux: bool
) -> Gradient:
    """Compiles the loss and its gradient by the numeric leaves of `params`.

    Arrays among `args` are passed as arguments of the compiled function; everything
    else there may be anything, and is closed over.

    Returns:
      `(weights, factor) -> loss, whether it and the gradient are finite, gradient`. The
      gradient is that of factor times the loss, divided by factor: the same up to
      rounding.
    """
    leaves, structure = jax.tree.flatten(params)
    positions = [position for position, _ in numeric_leaves(params)]
    arg_leaves, arg_structure = jax.tree.flatten(args)
    is_array = [
        isinstance(leaf, jax.Array)
        # Arrays of strings and objects are no arguments of a compiled function.
        or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMmT")
        for leaf in arg_leaves
    ]
    arrays = [a for a, yes in zip(arg_leaves, is_array, strict=True) if yes]

    def loss_of(
        weights: list[jax.Array], factor: jax.Array, arrays: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        moved = list(leaves)
        for position, weight in zip(positions, weights, strict=True):
            moved[position] = weight
        given = iter(arrays)
        all_args = [
            next(given) if yes else leaf
            for leaf, yes in zip(arg_leaves, is_array, strict=True)
        ]
        result = loss_fn(structure.unflatten(moved), *arg_structure.unflatten(all_args))
        loss = widened(_checked_loss(result, has_aux))
        return loss * factor.astype(loss.dtype), loss

    @jax.jit
    def compiled(
        weights: list[jax.Array], factor: jax.Array, arrays: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        grads, loss = jax.grad(loss_of, has_aux=True)(weights, factor, arrays)
        finite = [jnp.all(jnp.isfinite(x)) for x in (loss, *grads)]
        grads = [widened(g) / factor for g in grads]
        return loss, jnp.all(jnp.stack(finite)), grads

    return lambda weights, factor: compiled(weights, jnp.float32(factor), arrays)


class Prober:
    """Evaluates one loss around one set of parameters."""

    def __init__(self, gradient: Gradient, weights: list[jax.Array], key: jax.Array):
        """Measure the gradient at `weights`, and find the size of every leaf.

        Raises:
          ValueError: if the loss or its gradient is not finite there.
        """
        self.leaves = len(weights)
        self._gradient, self._base, self._key = gradient, weights, key
        self._sizes, self._alive = [0.0] * len(weights), 0
        start = self.point(0, 0.0, [1.0] * len(weights), halvings=0)
        if start is None:
            raise ValueError(
                "`find_scale_invariance` needs a finite loss with finite gradients at "
                f"`params`; the loss is {float(gradient(weights, 1.0)[0]):g}"
            )
        wide = [widened(w) for w in weights]
        self._sizes = [
            float(length) / math.sqrt(w.size)
            for w, (length, _) in zip(weights, _lengths(wide, wide), strict=True)
        ]
        self._alive = len(_live(start))
        self._calibrate(start)

    def point(
        self,
        number: int,
        strength: float,
        factors: list[float],
        halvings: int = HALVINGS,
    ) -> Point | None:
        """Evaluates at parameters moved at random by `strength` times their sizes.

        The gradient is taken twice, so that what differs is rounding: that of three
        times the loss, at weights that differ in their last bits, is the same in exact
        arithmetic to a few units of precision.

        Args:
          number: of the move; moves of the same number have the same direction.
          strength: of the move.
          factors: what each moved leaf is multiplied by.
          halvings: how often the move is halved at most where the loss is not finite,
            or most leaves lose their gradient (a saturated network).

        Returns:
          The point, or None if there is none with finite gradients.
        """
        key, found = jax.random.fold_in(self._key, number), None
        for halving in range(halvings + 1):
            moves = [strength / 2**halving * size for size in self._sizes]
            weights, jittered = _moved(self._base, key, moves, factors)
            _, finite, grads = self._gradient(weights, 1.0)
            _, again_finite, again = self._gradient(jittered, 3.0)
            if bool(finite) and bool(again_finite):
                found = Point(weights, grads, again)
                if 2 * len(_live(found)) >= self._alive:
                    break
        return found

    def _calibrate(self, start: Point) -> None:
        """Gives leaves that are zero or negligible a size in the unit of the leaf.

        Moved by its size, such a leaf shall change the loss as much as the median leaf
        does, to first order: |gradient| times size. Again after a move, because the
        gradient of one leaf of zeros may be zero until another one has moved.
        """
        sizes = self._sizes
        known = [size for size in sizes if size > 0]
        cap = LARGEST_MOVE * max(known, default=FALLBACK_SIZE)
        zeros = {i for i, size in enumerate(sizes) if size == 0}
        for i in zeros:
            sizes[i] = float(np.median(known or [FALLBACK_SIZE]))
        point: Point | None = start
        small = zeros
        for number in (None, *CALIBRATIONS):
            if number is not None:
                point = self.point(number, 0.5, [1.0] * len(sizes))
            norms = {} if point is None else _live(point)
            effects = {i: norm * sizes[i] for i, norm in norms.items()}
            rest = [effect for i, effect in effects.items() if i not in small]
            typical = float(np.median(rest or list(effects.values()) or [0.0]))
            if number is not None:
                # Not at the start, where zeros elsewhere can hide what a leaf does.
                small = small | {
                    i for i, e in effects.items() if e < NEGLIGIBLE * typical
                }
                if not small:
                    return
            for i in small & norms.keys():
                sizes[i] = min(typical / norms[i], cap) or sizes[i]


def _live(point: Point) -> dict[int, float]:
    """Gives the gradient's length for each leaf where it is more than rounding."""
    lengths = jax.device_get(_lengths(point.grads, point.again))
    return {
        i: float(length)
        for i, (length, noise) in enumerate(lengths)
        if length > 0 and noise < NOISE_LIMIT * length
    }


def _is_number_array(leaf: Any) -> bool:
    if isinstance(leaf, float | complex):
        return True
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and has_numbers(leaf)


def _checked_loss(result: Any, has_aux: bool) -> jax.Array:
    """Takes the loss out of what `loss_fn` returned, or says what that was instead."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"with has_aux=True `loss_fn` must return a pair, got {result}")
    loss = result[0] if has_aux else result
    is_number = isinstance(loss, float) or (
        isinstance(loss, jax.Array | np.ndarray | np.generic)
        and loss.ndim == 0
        and jnp.issubdtype(loss.dtype, jnp.floating)
    )
    if not is_number:
        hint = "; one that returns (loss, aux) needs has_aux=True"
        shown = getattr(loss, "aval", loss)
        raise TypeError(
            f"`loss_fn` must return one real number, got {shown}"
            + (hint if isinstance(loss, tuple) else "")
        )
    return jnp.asarray(loss)


@jax.jit
def _moved(
    weights: list[jax.Array], key: jax.Array, moves: list[float], factors: list[float]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Moves and scales leaves; returns them, and with their last bits changed."""
    wide = [widened(w) for w in weights]
    counts = [2 * w.size if jnp.iscomplexobj(w) else w.size for w in weights]
    # Drawn at once and flat: by leaf, and with four axes, compiles far longer.
    stops = list(itertools.accumulate(counts))
    noise, bits = jax.random.normal(key, (2, stops[-1]))
    moved, jittered = [], []
    for w, x, stop, count, move, factor in zip(
        weights, wide, stops, counts, moves, factors, strict=True
    ):
        direction, last = (
            noise[stop - count : stop],
            bits[stop - count : stop][: w.size],
        )
        if jnp.iscomplexobj(w):
            direction = jax.lax.complex(direction[: w.size], direction[w.size :])
        scaled = (
            (x + move * direction.astype(x.dtype).reshape(w.shape)) * factor
        ).astype(w.dtype)
        change = jnp.finfo(w.dtype).eps * jnp.clip(last, -1, 1).astype(
            jnp.finfo(x.dtype).dtype
        )
        moved.append(scaled)
        jittered.append(
            (widened(scaled) * (1 + change.reshape(w.shape))).astype(w.dtype)
        )
    return moved, jittered


@jax.jit
def _lengths(
    grads: list[jax.Array], others: list[jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """Takes, by leaf, the length of the first and of the difference to the second."""
    lengths = []
    for g, other in zip(grads, others, strict=True):
        # In units of the largest element, so that no square over- or underflows.
        top = jnp.max(jnp.abs(g))
        unit = jnp.where(top > 0, top, 1)
        sums = [jnp.sum(jnp.abs(x / unit) ** 2) for x in (g, g - other)]
        lengths.append((unit * jnp.sqrt(sums[0]), unit * jnp.sqrt(sums[1])))
    return lengths
