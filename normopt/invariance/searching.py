"""Which leaves a loss is scale-invariant in, and in which slices of them."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.invariance.deciding import ENOUGH, Claim, Decider
from normopt.invariance.evidence import Partition, partitions, rms
from normopt.invariance.losses import compiled_loss, numeric_leaves
from normopt.invariance.probing import Point, Probe, limit


class Found(dict[str, Partition]):
    """A dictionary `{pattern: axes}` that also knows of what it does not have."""

    def __init__(self, *found: Any) -> None:
        """Takes what a dictionary takes."""
        super().__init__(*found)
        self.left_out: dict[str, str] = {}  # path to why the leaf is not reported


def find_scale_invariance(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
    key: jax.Array | None = None,
) -> dict[str, Partition]:
    r"""Finds the weights whose norm does not change the loss, block by block.

    A normalization layer makes the weights before it scale-invariant:
    :math:`L(s w_b) = L(w_b)` for the blocks b of a leaf. The search uses only the loss
    function, and assumes nothing about layers or their names.

    The search does two tests at each of four points around `params`. First test: if a
    block is scale-invariant, its gradient is orthogonal to its weights (Euler's
    theorem). One gradient per point tests all leaves, and gives the candidates:

    .. math:: \sum_b \langle g_b, w_b \rangle^2
       \ll \sum_b |g_b|^2 |w_b|^2 / d_b

    where a block has d elements. For random vectors both sides would be equal.

    Second test: all blocks of all candidates are rescaled at the same time, each block
    by a random factor of its own, around 1/2 or 2. Then this is repeated with the
    inverse factors. The loss must not change either time. If it changes, bisection
    finds the leaf that is responsible. For comparison, the same blocks are also moved
    equally far in random directions, which changes the loss by some amount. A leaf is
    reported if rescaling changes the loss by at most 1.5 % of this amount.

    So the result holds for the given weights, and for the epsilons of the normalization
    layers. A leaf can be invariant if the epsilon is 1e-6, but not if it is 1e-2, or if
    the weights are a hundred times smaller.

    **What to expect.** Weights right before a normalization layer are reported. Weights
    further back are reported, too, if only linear layers and ReLUs are in between.
    Weights before a GELU, a SiLU or a softmax are not reported, even if a normalization
    follows, because the output of these functions does not scale with the input. A
    dense kernel before a BatchNorm is reported, with or without a bias. Before a
    LayerNorm it is reported only if the dense layer has no bias. In a transformer that
    normalizes queries and keys, the kernels of queries and keys are reported, and no
    others. They have one block per head if each head is normalized separately. If the
    loss is invariant only when several leaves are scaled together, none of them is
    reported.

    **What is not reported.** The attribute `left_out` of the result has the reason for
    each leaf that is not reported. Three reasons may surprise you: the gradient of the
    leaf is zero or only rounding error, such as that of a bias before a BatchNorm; the
    effect of the leaf on the loss is smaller than the rounding error of the loss; or
    the gradient is not orthogonal although the loss does not change, for example
    because of a `stop_gradient`. The search moves leaves of zeros away from zero first,
    because biases of zero could hide that another leaf is not invariant.

    **What it costs.** The search computes seven or eight gradients and at least four
    losses, and compiles the gradient and the loss once. Each candidate that fails the
    second test costs about `2 log2(candidates)` more losses. At most four copies of the
    parameters, including the given ones, are in memory at the same time.

    Args:
      loss_fn: `loss_fn(params, *args)` returns one real number, or `(loss, aux)`. It
        must be differentiable, deterministic (pass a dropout key in `args`), and work
        under `jax.jit`. BatchNorm must be in training mode, with batch statistics.
      params: a pytree of arrays, an NNX state, or a whole Equinox or NNX module. Its
        real and complex arrays are tested. Everything else stays fixed, also Python
        numbers, such as a module's `eps` or dropout rate.
      *args: the other arguments of the loss, such as a batch. A batch of a few dozen
        examples is enough.
      has_aux: whether `loss_fn` returns a pair.
      key: a key of `jax.random` for the random moves; None for a fixed key.

    Returns:
      A mapping `{pattern: axes}` to pass as `channel_axes`; it can be stored as JSON.
      It has one pattern for each invariant leaf, which matches only the path of this
      leaf. The axes index the smallest invariant blocks of the leaf. They are sorted
      and not negative, and axes of size one are omitted; `()` means the whole leaf.
      Blocks of one element do not count. If two choices of axes give equally many
      blocks, the later axes are reported. The attribute `left_out` is `{path: reason}`
      for all other leaves.

    Raises:
      TypeError: if `loss_fn` is not callable, cannot be traced or does not return one
        real number, or `params` holds shapes instead of arrays.
      ValueError: if the loss or a gradient is not finite at `params`, or if two leaves
        have the same path.

    Examples:
      The kernel before a batch normalization is found, with one block per column:

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
      path    shape   axes  blocks
      bias    (3,)    None  -
      head    (3, 1)  None  -
      kernel  (5, 3)  (1,)  3 of 5
      every leaf: dtype float32, multiplier 1, decay 0
      3 leaves, 21 parameters, 3 blocks
      >>> found.left_out["bias"]
      'its gradient is zero or rounding'

      This transformer normalizes queries and keys in each head. So only their kernels
      are found, with one block per head:

      >>> def norm(x):
      ...     return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
      >>> def transformer(p, x):
      ...     q, k, v = (jnp.einsum("td,dhk->htk", norm(x), p[n]) for n in "qkv")
      ...     weights = jax.nn.softmax(norm(q) @ jnp.swapaxes(norm(k), 1, 2))
      ...     x = x + jnp.einsum("htk,hkd->td", weights @ v, p["out"])
      ...     x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
      ...     return jnp.mean((norm(x) @ p["head"] - 1) ** 2)
      >>> shapes = {n: (6, 2, 4) for n in "qkv"} | {"out": (2, 4, 6), "up": (6, 9)}
      >>> shapes |= {"down": (9, 6), "head": (6, 3)}
      >>> params = {n: normal(jax.random.key(i), shapes[n]) / 2
      ...           for i, n in enumerate(shapes)}
      >>> x = normal(keys[2], (16, 6))
      >>> normopt.find_scale_invariance(transformer, params, x)
      {'^k$': (1,), '^q$': (1,)}

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
        return Found()
    weights = [jnp.asarray(place.leaf) for _, place in leaves]
    value, gradient = compiled_loss(loss_fn, params, args, has_aux)
    key = jax.random.key(0) if key is None else key
    with np.errstate(all="ignore"):  # what is not finite is seen and said
        probe = Probe(value, gradient, weights, key)
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
        claims = [_claim(points, i, shape, axes) for axes in partitions(shape)]
        candidates[i] = [claim for claim in claims if isinstance(claim, Claim)]
        if not candidates[i]:
            reasons[i] = str(claims[-1]) if claims else "it is no block: one element"
    decider, found = Decider(probe, points), {}
    while tried := {i: claims.pop(0) for i, claims in candidates.items() if claims}:
        refuted = decider.refuted(list(tried.values()))
        for i, claim in tried.items():
            if i in refuted:
                reasons[i] = refuted[i]
            else:
                found[i] = claim.axes
                candidates[i] = []
    return found, {i: why for i, why in reasons.items() if i not in found}


def _claim(
    points: list[Point], leaf: int, shape: tuple[int, ...], axes: Partition
) -> Claim | str:
    """Makes a claim of what the gradients say of a partition, or says what they say.

    At one point they may say the opposite, see `ENOUGH`.
    """
    seen = {p.move.number: p.sights[leaf].get(axes) for p in points}
    told = {n: sight for n, sight in seen.items() if sight and sight.tells}
    if not told:
        return "its gradient is zero or rounding"
    close = sorted(told.values(), key=lambda s: s.radial.measure)
    close = close[: max(ENOUGH, len(points) - 1)]
    measure = rms(s.radial.measure for s in close)
    rounding = rms(s.rounding for s in close)
    if measure > limit(shape):
        return (
            f"its gradient is not orthogonal to it: {measure:.2g} where chance gives 1"
        )
    if len(told) < ENOUGH:
        return "its gradient is zero or rounding at most points"
    references = {n: sight.radial.reference for n, sight in told.items()}
    return Claim(leaf, axes, measure, rounding, references)
