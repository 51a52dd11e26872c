"""Which leaves a loss is scale-invariant in, and in which slices of them."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.invariance.deciding import ENOUGH, Claim, Decider
from normopt.invariance.evidence import Partition, partitions
from normopt.invariance.losses import compiled_loss, numeric_leaves
from normopt.invariance.probing import Point, Probe

# The root mean square of a candidate's measure, at most; 1 for random vectors. The loss
# decides: this saves asking it about most leaves, and where moves of a large leaf
# change the loss far more than to first order, what an epsilon breaks may be seen.
CANDIDATE = 0.3
# More rounding than this in the measure of one gradient, and it says nothing.
HIDDEN_GRADIENT = 0.3


class Found(dict[str, Partition]):
    """A dictionary `{pattern: axes}` that also knows of what it does not have."""

    left_out: dict[str, str]  # path to why the leaf is not reported


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
    value, gradient = compiled_loss(loss_fn, params, args, has_aux)
    probe = Probe(value, gradient, weights, jax.random.key(0) if key is None else key)
    found, reasons = _search(probe, [np.shape(w) for w in weights])
    result = Found({f"^{re.escape(paths[i])}$": a for i, a in sorted(found.items())})
    result.left_out = {paths[i]: reason for i, reason in sorted(reasons.items())}
    return result


def _search(
    probe: Probe, shapes: list[tuple[int, ...]]
) -> tuple[dict[int, Partition], dict[int, str]]:
    """Finds the finest partition that holds for each leaf, or why there is none."""
    points = probe.points()
    candidates, reasons = {}, {}
    for i, shape in enumerate(shapes):
        claims = [_claim(points, i, axes) for axes in partitions(shape)]
        candidates[i] = [claim for claim in claims if isinstance(claim, Claim)]
        if not candidates[i]:
            reasons[i] = str(claims[-1]) if claims else "it is no block: one element"
    decider, found = Decider(probe, points), {}
    while tried := {i: claims.pop(0) for i, claims in candidates.items() if claims}:
        # The doubtful stand together, so that bisection leaves the others whole.
        refuted = decider.refuted(sorted(tried.values(), key=lambda c: c.measure))
        for i, claim in tried.items():
            if i in refuted:
                reasons[i] = refuted[i]
            else:
                found[i] = claim.axes
                candidates[i] = []
    return found, {i: why for i, why in reasons.items() if i not in found}


def _claim(points: list[Point], leaf: int, axes: Partition) -> Claim | str:
    """Makes a claim of what the gradients say of a partition, or says what they say.

    At one point they may say the opposite, see `ENOUGH`.
    """
    seen = {p.number: p.sights[leaf][axes] for p in points if axes in p.sights[leaf]}
    told = {n: s for n, s in seen.items() if s.rounding < HIDDEN_GRADIENT}
    if len(told) < ENOUGH:
        return "its gradient is zero or rounding"
    close = sorted(told.values(), key=lambda s: s.radial.measure)
    close = close[: max(ENOUGH, len(close) - 1)]
    measure, rounding = (
        math.sqrt(np.mean(np.square(column)))
        for column in zip(*((s.radial.measure, s.rounding) for s in close), strict=True)
    )
    if measure > CANDIDATE:
        return (
            f"its gradient is not orthogonal to it: {measure:.2g} where chance gives 1"
        )
    references = {n: s.radial.reference for n, s in seen.items()}
    return Claim(leaf, axes, measure, rounding, references)
