"""Which leaves a loss is scale-invariant in, and in which slices of them."""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.invariance.evidence import Evidence, Partition, evidence, partitions
from normopt.invariance.judging import (
    CANDIDATE,
    FEWEST,
    Pair,
    holds,
    may_hold,
    typical,
)
from normopt.invariance.probing import Prober, gradient_of, numeric_leaves

# Strengths of the moves, relative to each leaf's size.
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.0)
# Candidates are looked at again when they are this many times as large: first with
# care, for candidates that are no invariances can ruin the network.
FIRST_SCALE = 8.0
LAST_SCALE = 1024.0

Looks = list[list[dict[Partition, Evidence]] | None]  # by point, by leaf


def find_scale_invariance(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
    key: jax.Array | None = None,
) -> dict[str, Partition]:
    r"""Finds the leaves, and the slices of them, whose length the loss does not see.

    A normalization layer makes the weights before it scale-invariant. By Euler's
    theorem the gradient of such a block b is orthogonal to it, wherever it stands:

    .. math:: L(s w_b) = L(w_b)\ \text{for all}\ s > 0
       \iff \langle \nabla_b L(w), w_b \rangle = 0\ \text{for all}\ w

    So gradients are taken at a few points around `params`, and the measure
    :math:`\sqrt{d_b}\,|\langle g_b, w_b\rangle| / (|g_b| |w_b|)`, which is about 1 for
    random vectors of any size d, has to vanish in every block, at every point but two
    at most, where rounding may hide whether it does or an epsilon outweigh the rest.
    The points move leaves of zeros too, because biases of zero hide what they break.
    What the epsilon of a norm leaves over must fall with the square of the weights'
    scale: candidates are looked at again when scaled up. What rounding explains counts
    as zero, and a block whose gradient is rounding abstains. Nothing is assumed about
    the layers.

    Invariance to a common factor on several leaves is none of a single leaf (the layers
    of a ReLU network); a dense layer with a bias before a LayerNorm is not invariant,
    its kernel before a BatchNorm is. A constant beside a norm, a learned one too, is
    taken for an epsilon unless it outweighs the norm itself: so the weights before a
    squash :math:`\|h\|^2 / (1 + \|h\|^2)`, or before a norm that mixes in running
    statistics, may be reported although the loss does see their length. Weights so
    small that the epsilon outweighs their variance may be left out.

    Args:
      loss_fn: `loss_fn(params, *args)` returns one real number, or `(loss, aux)`;
        deterministic and differentiable, norms in training mode (batch statistics).
      params: a pytree; its real and complex leaves are probed, the others kept.
      *args: a batch and whatever else the loss takes. A few dozen examples do.
      has_aux: whether `loss_fn` returns a pair.
      key: a key of `jax.random` for the moves; None for a fixed one.

    Returns:
      `{pattern: axes}`, JSON-able, for `channel_axes=`: one anchored pattern for each
      invariant leaf, with the axes that index its smallest invariant blocks, sorted and
      not negative, axes of size one left out; `()` for a whole leaf. Blocks of one
      element are none; of two partitions into equally many blocks it is the one with
      the later axes. Leaves that are not invariant, or whose gradient is zero, are left
      out.

    Raises:
      TypeError: if `loss_fn` is not callable or does not return one real number, or
        `params` holds shapes instead of arrays.
      ValueError: if the loss or a gradient is not finite at `params`, or if two leaves
        have the same path.

    Examples:
      A dense layer before a batch normalization does not see the length of a column,
      and says so without being asked for its type:

      >>> import jax, jax.numpy as jnp
      >>> def loss_fn(params, x):
      ...     h = x @ params["kernel"] + params["bias"]
      ...     h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
      ...     return jnp.mean((jnp.tanh(h) @ params["head"] - x[:, :1]) ** 2)
      >>> normal = jax.random.normal
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"kernel": normal(keys[0], (5, 3)), "bias": jnp.zeros(3)}
      >>> params["head"] = normal(keys[1], (3, 1))
      >>> batch = normal(keys[2], (16, 5))
      >>> found = normopt.find_scale_invariance(loss_fn, params, batch)
      >>> print(normopt.describe(params, channel_axes=found))
      path    shape   dtype    axes  blocks  multiplier  decay  half-life
      bias    (3,)    float32  None  -       1           0      -
      head    (3, 1)  float32  None  -       1           0      -
      kernel  (5, 3)  float32  (1,)  3 of 5  1           0      -
      3 leaves, 21 parameters, 3 blocks

    References:
      van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017,
      arXiv 1706.05350, section 2: scale invariance and its gradient.
      Roburin, de Mont-Marin, Bursuc, Marlet, Perez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2022, arXiv 2006.13382, section 2.
    """
    if not callable(loss_fn):
        raise TypeError(f"`loss_fn` must be callable, got {loss_fn!r}")
    leaves = numeric_leaves(params)
    paths = [place.path for _, place in leaves]
    shared = [path for path, count in Counter(paths).items() if count > 1]
    if shared:
        raise ValueError(
            f"two leaves of `params` have the path {shared[0]!r}, so that no pattern "
            "can tell them apart: rename a key"
        )
    if not leaves:
        return {}
    weights = [jnp.asarray(place.leaf) for _, place in leaves]
    gradient = gradient_of(loss_fn, params, args, has_aux)
    prober = Prober(gradient, weights, jax.random.key(0) if key is None else key)
    found = _search(prober, [np.shape(w) for w in weights])
    return {f"^{re.escape(paths[i])}$": axes for i, axes in sorted(found.items())}


def _search(prober: Prober, shapes: list[tuple[int, ...]]) -> dict[int, Partition]:
    """Finds the finest partition that holds, for each leaf that has one."""
    unscaled = _look(prober, [[1.0] * len(shapes)] * len(STRENGTHS))
    candidates = {}
    for i, shape in enumerate(shapes):
        known = [
            axes for axes in partitions(shape) if _life(unscaled, i, axes) >= FEWEST
        ]
        # A large epsilon may leave little of a fine partition at the leaf's own size.
        # When scaled up it shows as well as the one that made the leaf a candidate.
        if any(typical(_of(unscaled, i, axes)) < CANDIDATE for axes in known):
            candidates[i] = known
    for scale, judge in ((FIRST_SCALE, may_hold), (LAST_SCALE, holds)):
        candidates = _survivors(prober, unscaled, candidates, scale, judge)
    return {i: held[0] for i, held in candidates.items()}


def _survivors(
    prober: Prober,
    unscaled: Looks,
    candidates: dict[int, list[Partition]],
    scale: float,
    judge: Callable[[list[Pair]], bool],
) -> dict[int, list[Partition]]:
    """Scales the candidates up, and drops them until all that are left hold.

    A true invariance does not change the network when it is scaled; a candidate that is
    none can ruin it, and then nothing true is to be seen in the others. So candidates
    that looked least invariant at their own size have to go first.
    """
    while candidates := {i: some for i, some in candidates.items() if some}:
        halves = _halves(list(candidates))
        first, second = (
            _look(
                prober,
                [
                    [
                        scale if i in halves and (n in halves[i]) == is_first else 1.0
                        for i in range(prober.leaves)
                    ]
                    for n in range(len(STRENGTHS))
                ],
            )
            for is_first in (True, False)
        )
        held, doubt = {}, {}
        for i, some in candidates.items():
            scaled = [
                (first if n in halves[i] else second)[n] for n in range(len(STRENGTHS))
            ]
            doubt[i] = min(typical(_of(unscaled, i, axes)) for axes in some)
            held[i] = [
                axes for axes in some if judge(_pairs(unscaled, scaled, i, axes))
            ]
        if all(held.values()):
            return held
        doubtful = {i for i in doubt if 3 * doubt[i] >= max(doubt.values())}
        fallen = {i for i in doubtful if not held[i]} or doubtful
        candidates = {i: some for i, some in candidates.items() if i not in fallen}
    return {}


def _halves(candidates: list[int]) -> dict[int, tuple[int, ...]]:
    """Splits the points in two for each candidate: it is scaled up at one half first.

    Not at the same one as another candidate: scaled together, the factors of a product
    beside a constant (a low-rank update) look as if what they break fell with the
    square of the scale. Two different halves differ in a point, and so do the others.
    """
    halves = list(itertools.combinations(range(len(STRENGTHS)), len(STRENGTHS) // 2))
    # Steps of 7 through the 20 halves: neighbours get halves that differ more.
    return {i: halves[7 * n % len(halves)] for n, i in enumerate(candidates)}


def _look(prober: Prober, factors: list[list[float]]) -> Looks:
    """Gathers the evidence at every point, with the leaves multiplied by factors."""
    looks: Looks = []
    for number, (strength, by_leaf) in enumerate(zip(STRENGTHS, factors, strict=True)):
        point = prober.point(number, strength, by_leaf)
        looks.append(None if point is None else evidence(point))
    return looks


def _of(looks: Looks, leaf: int, axes: Partition) -> list[Evidence]:
    """Picks what the points say about one partition, where they say anything."""
    return [look[leaf][axes] for look in looks if look and look[leaf][axes].live]


def _life(looks: Looks, leaf: int, axes: Partition) -> int:
    return sum(one.live for one in _of(looks, leaf, axes))


def _pairs(unscaled: Looks, scaled: Looks, leaf: int, axes: Partition) -> list[Pair]:
    """Pairs what the same points say before and after scaling."""
    return [
        (before[leaf][axes], after[leaf][axes])
        for before, after in zip(unscaled, scaled, strict=True)
        if before and after
    ]
