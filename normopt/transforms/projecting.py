"""AdamP's link: tests whether a leaf looks scale-invariant, and projects if it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.blocks import (
    block_dot,
    block_size,
    check_channel_axes,
    radial_quotient,
    reduce_blocks,
    resolve_axes,
)
from normopt.checks import check_not_negative, check_number, is_zero
from normopt.leafwise import Option, around
from normopt.numerics import safe_quotient, safe_sqrt
from normopt.paths import places
from normopt.rules import PerLeaf, output_channels

# The default. Asked for by a user, (-1,) must be found on one leaf at least; nobody
# asked for the default, which also takes params that are all scalars.
EACH_CHANNEL: PerLeaf = (-1,)


def project_if_invariant(
    inner: optax.GradientTransformation,
    weight_decay: PerLeaf = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    channel_axes: PerLeaf = EACH_CHANNEL,
    layer_axes: PerLeaf = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Projects inner's direction, and decays less, where the gradient is tangent.

    With the raw gradient g, a leaf passes if the largest of its blocks' cosines does:

    .. math::
      \max_b \frac{|\langle g_b, w_b \rangle|}{\|g_b\| \|w_b\|}
        < \frac{\delta}{\sqrt{d}}

    Then its direction p, which `inner` makes of g, loses the radial part of each block.
    Else the same is tried with the whole leaf as one block. If neither passes, p stays
    and `wd_ratio` counts as 1:

    .. math::
      u_b = p_b - \frac{\langle p_b, w_b \rangle}{\|w_b\|^2} w_b
        + \mathrm{wd\_ratio} \, \lambda w_b
      \qquad\text{or}\qquad u_b = p_b + \lambda w_b

    The decay is times the learning rate, which stands after this link. The gradient is
    gone after inner's moments; that is why the link wraps them. It has no eps: the
    cosine of a block of zeros is 0, and so it is where the square of the gradient or
    of the weights is below or above the number range.

    Args:
      inner: a link from gradients to directions, without the learning rate.
      weight_decay: :math:`\lambda`, per leaf, at least 0; 0 for leaves that no pattern
        matches.
      delta: the threshold, at least 0, as a multiple of what random vectors have.
      wd_ratio: what is left of the decay of a leaf that passes, at least 0.
      channel_axes: the axes that index a leaf's blocks, per leaf. Leaves without
        blocks, and of fewer than two dimensions, are not tested.
      layer_axes: those of them that index layers, per leaf: each layer of a stack is
        tested by itself. `channel_axes=(0, -1), layer_axes=(0,)` does to a stack what
        (-1,) does to each layer of it.

    Returns:
      A link that needs `params` where a leaf is tested or decays; its state is that of
      `inner`. Updates keep structure and shapes, in the wider dtype of update and
      param.

    Raises:
      TypeError: when built, if `inner` is no transformation or an option has the wrong
        type.
      ValueError: when built, for a negative number; at init, for an axis that does not
        exist or a pattern that matches no path; at update, without `params` or with
        params of another shape.

    Examples:
      A tangent gradient passes, and its step keeps tangent whatever momentum was:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> link = normopt.project_if_invariant(optax.trace(0.9), channel_axes=())
      >>> params = jnp.array([[1.0, 0.0]])
      >>> state = link.init(params)
      >>> for grads in (jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])):
      ...     updates, state = link.update(grads, state, params)
      ...     print(updates[0].round(4).tolist())
      [1.0, 1.0]
      [0.0, 1.899999976158142]

    References:
      Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for
      Momentum Optimizers on Scale-invariant Weights", 2021, arXiv 2006.08217,
      Algorithms 1 and 2.
    """
    check_number("delta", delta, 0)
    check_number("wd_ratio", wd_ratio, 0)
    check_channel_axes(layer_axes, "layer_axes")
    return around(
        "project_if_invariant",
        inner,
        _project,
        channel_axes=channel_axes,
        resolve=lambda channels, tree: _resolve_tested(channels, layer_axes, tree),
        options={"weight_decay": Option(weight_decay, 0.0, check_not_negative)},
        acts=lambda leaf: leaf.has_blocks or not is_zero(leaf.option[0]),
        reads_weights=lambda leaf: True,
        share=lambda state: (delta, wd_ratio),
    )


def _project(g, p, w, axes, option, kept, shared):
    (decay,), (delta, wd_ratio) = option, shared
    if axes is None:
        return p + decay * w, kept
    radial, is_invariant = _radial_part(p, g, w, axes, delta)
    pull = decay * jnp.where(is_invariant, wd_ratio, 1) - radial
    return p + pull * w, kept


def _radial_part(
    p: jax.Array,
    g: jax.Array,
    w: jax.Array,
    both: tuple[tuple[int, ...], tuple[int, ...]],
    delta: Any,
) -> tuple[jax.Array, jax.Array]:
    """Returns by block what to take of `w` from `p`, and by layer whether it passed."""
    axes, layers = both
    pairs = ((g, w), (g, g), (w, w), (p, w))
    gw, gg, ww, pw = (block_dot(a, b, axes) for a, b in pairs)
    # The sums of a layer follow from those of its blocks; without the barrier XLA
    # takes them from the leaf again, of products that it stores: AdamP's step accesses
    # 116 bytes a parameter instead of 68 (`cost_analysis` of a kernel of 3x3x512x512).
    all_gw, all_gg, all_ww, all_pw = (
        reduce_blocks(jnp.sum, one, layers)
        for one in jax.lax.optimization_barrier((gw, gg, ww, pw))
    )
    size, layer_size = block_size(g.shape, axes), block_size(g.shape, layers)
    tangent = _is_tangent(gw, gg, ww, size, delta)
    blocks_pass = reduce_blocks(jnp.all, tangent, layers)
    layer_passes = _is_tangent(all_gw, all_gg, all_ww, layer_size, delta)
    is_invariant = blocks_pass | layer_passes
    dot = jnp.where(blocks_pass, pw, jnp.where(layer_passes, all_pw, 0))
    radial = radial_quotient(dot, jnp.where(blocks_pass, ww, all_ww))
    return radial, is_invariant


def _is_tangent(
    dot: jax.Array, g_square: jax.Array, w_square: jax.Array, size: int, delta: Any
) -> jax.Array:
    lengths = safe_sqrt(g_square) * safe_sqrt(w_square)
    cosine = safe_quotient(jnp.abs(dot), lengths)
    return cosine < delta / size**0.5


def _resolve_tested(channel_axes: PerLeaf, layer_axes: PerLeaf, tree: Any) -> list[Any]:
    """Reads both axes of layers of two or more dimensions: kernels, not biases.

    A leaf whose blocks have one element, with a cosine of 1, is tested by layer.
    """
    if channel_axes is EACH_CHANNEL:
        channel_axes = output_channels()
    tested: list[Any] = []
    for axes, layers, place in zip(
        resolve_axes(channel_axes, tree),
        resolve_axes(layer_axes, tree, "layer_axes"),
        places(tree),
        strict=True,
    ):
        layers = layers or ()
        if axes is None or np.ndim(place.leaf) - len(layers) < 2:
            tested.append(None)
            continue
        if not set(layers) <= set(axes):
            raise ValueError(
                f"`layer_axes` = {layers} of {place.path!r} must be among its "
                f"`channel_axes` = {axes}, which index the blocks of every layer"
            )
        is_single = block_size(np.shape(place.leaf), axes) == 1
        tested.append((layers if is_single else axes, layers))
    return tested
