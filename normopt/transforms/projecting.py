"""AdamP's link: tests whether a leaf looks scale-invariant, and projects if it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.blocks import (
    Axes,
    accumulator,
    block_dot,
    block_size,
    check_channel_axes,
    has_numbers,
    radial_quotient,
    reduce_blocks,
    resolve_axes,
    safe_quotient,
    safe_sqrt,
)
from normopt.checks import check_inner, check_not_negative, check_number
from normopt.paths import params_like
from normopt.rules import PerLeaf, check_per_leaf, per_leaf


def project_if_invariant(
    inner: optax.GradientTransformation,
    weight_decay: PerLeaf = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    channel_axes: PerLeaf = (-1,),
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

    Returns:
      A link that needs `params`; its state is that of `inner`. Updates keep structure,
      shapes and dtypes.

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
    check_inner("project_if_invariant", inner)
    check_per_leaf("weight_decay", weight_decay, check_not_negative)
    check_number("delta", delta, 0)
    check_number("wd_ratio", wd_ratio, 0)
    check_channel_axes(channel_axes)
    inner = optax.with_extra_args_support(inner)

    def resolve(tree: Any) -> list[tuple[Any, Axes]]:
        decays = per_leaf("weight_decay", weight_decay, tree, 0.0, check_not_negative)
        axes = _resolve_tested_axes(channel_axes, tree)
        return list(zip(decays, axes, strict=True))

    def init_fn(params: optax.Params) -> optax.OptState:
        resolve(params)
        return inner.init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        weights = params_like(updates, params, "project_if_invariant")
        directions, state = inner.update(updates, state, params, **extra_args)
        leaves, treedef = jax.tree.flatten(directions)
        decided = [
            _decide(p, g, w, decay, own) if has_numbers(p) else p
            for p, g, w, (decay, own) in zip(
                leaves, jax.tree.leaves(updates), weights, resolve(updates), strict=True
            )
        ]
        return treedef.unflatten(decided), state

    def _decide(
        p: jax.Array, g: jax.Array, w: jax.Array, decay: Any, axes: Axes
    ) -> jax.Array:
        pull: Any = decay
        if axes is not None:
            radial, is_invariant = _radial_part(p, g, w, axes, delta)
            pull = decay * jnp.where(is_invariant, wd_ratio, 1) - radial
        return (accumulator(p) + pull * accumulator(w)).astype(p.dtype)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _radial_part(
    p: jax.Array, g: jax.Array, w: jax.Array, axes: tuple[int, ...], delta: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns by block what to take of `w` from `p`, and whether the leaf passed."""
    pairs = ((g, w), (g, g), (w, w), (p, w))
    gw, gg, ww, pw = (block_dot(a, b, axes) for a, b in pairs)
    # The sums of the leaf follow from those of its blocks; without the barrier XLA
    # takes them from the leaf again, of products that it stores.
    all_gw, all_gg, all_ww, all_pw = (
        reduce_blocks(jnp.sum, one, ())
        for one in jax.lax.optimization_barrier((gw, gg, ww, pw))
    )
    blocks_pass = _is_tangent(gw, gg, ww, block_size(g.shape, axes), delta)
    whole_passes = _is_tangent(all_gw, all_gg, all_ww, g.size, delta)
    is_invariant = blocks_pass | whole_passes
    dot = jnp.where(blocks_pass, pw, jnp.where(whole_passes, all_pw, 0))
    radial = radial_quotient(dot, jnp.where(blocks_pass, ww, all_ww))
    return radial, is_invariant


def _is_tangent(
    dot: jax.Array, g_square: jax.Array, w_square: jax.Array, size: int, delta: Any
) -> jax.Array:
    lengths = safe_sqrt(g_square) * safe_sqrt(w_square)
    cosine = safe_quotient(jnp.abs(dot), lengths)
    return jnp.all(cosine < delta / size**0.5)


def _resolve_tested_axes(channel_axes: PerLeaf, tree: Any) -> list[Axes]:
    """Reads the axes, for leaves of two or more dimensions: kernels, not biases.

    A leaf whose blocks have one element, with a cosine of 1, is tested as a whole.
    """
    tested: list[Axes] = []
    for axes, leaf in zip(
        resolve_axes(channel_axes, tree), jax.tree.leaves(tree), strict=True
    ):
        if axes is None or np.ndim(leaf) < 2:
            tested.append(None)
        else:
            tested.append(() if block_size(np.shape(leaf), axes) == 1 else axes)
    return tested
