"""A wrapper that trains the length of a block and its direction by two optimizers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    Axes,
    across_block,
    block_dot,
    per_block,
    resolve_proper_axes,
    squared_length,
)
from normopt.checks import check_inner
from normopt.keeping import OfBlocks
from normopt.leafwise import Kept, Work
from normopt.numerics import safe_sqrt, widened, wider_dtype
from normopt.rules import PerLeaf


class DecoupleLengthState(NamedTuple):
    """State of `decouple_length`."""

    lengths: Any  # {"path@axes": g of each block, which can turn negative}
    radii: Any  # {"path@axes": |v| of each block}
    direction: Any  # direction's state, for v
    length: Any  # length's state, for g: of leaves with blocks, a number a block


def decouple_length(
    direction: optax.GradientTransformation,
    length: optax.GradientTransformation,
    channel_axes: PerLeaf,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains each block as a length times a direction, by two optimizers.

    .. math:: w_b = g_b \frac{v_b}{\|v_b\|}

    as weight normalization does in the network, here in the optimizer. Both parts get
    the gradients that they would have there, of the gradient G of the block

    .. math::
      \nabla_g = \langle G_b, v_b / \|v_b\| \rangle, \qquad
      \nabla_v = \frac{g_b}{\|v_b\|} \left( G_b - \nabla_g \frac{v_b}{\|v_b\|} \right)

    A block of length zero has no direction: it takes direction's step for its plain
    gradient, and so does a leaf without blocks.

    Args:
      direction: an optimizer of v, learning rate included. It sees leaves of the shape
        of the params; v starts as the weights.
      length: an optimizer of g, learning rate included. It sees the lengths of the
        blocks, with the shape of the channel axes and the path of their leaf, and
        nothing of leaves without blocks. A decay here pulls the lengths to zero.
      channel_axes: the axes that index a leaf's blocks, per leaf. Leaves without
        blocks, and with blocks of one element, are direction's alone.

    Returns:
      An optimizer that needs `params`. Its state is a `DecoupleLengthState`: two
      numbers for each block, and what the two optimizers keep. Lengths follow it:
      weights that are made longer from outside go back. Updates keep structure and
      shapes.

    Raises:
      TypeError: when built, if one of the two is no optimizer or the axes have the
        wrong type.
      ValueError: at init, for an axis that does not exist or a pattern that matches no
        path; at update, without `params` or with params of another shape.

    Examples:
      The length has a learning rate of its own, here zero:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.decouple_length(optax.sgd(1.0), optax.sgd(0.0), ())
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 7.0]), tx.init(params), params)
      >>> round(float(normopt.block_norms(optax.apply_updates(params, updates))), 5)
      5.0

    References:
      Salimans and Kingma, "Weight Normalization", 2016, arXiv 1602.07868, equation 3.
      Muown, 2026, arXiv 2605.10797: `orthogonalize` for v, Adam for g.
    """
    check_inner("decouple_length", direction)
    check_inner("decouple_length(length=...)", length)
    of_direction, of_length = map(optax.with_extra_args_support, (direction, length))
    plan = Work(
        "decouple_length",
        _split,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        reads_weights=lambda leaf: True,
        keeps={"lengths": OfBlocks(), "radii": OfBlocks()},
        state=DecoupleLengthState,
    )

    def init_fn(params: optax.Params) -> DecoupleLengthState:
        leaves = plan.read_at_init(params)
        weights, treedef = jax.tree.flatten(params)
        lengths = [
            None if leaf.axes is None else safe_sqrt(squared_length(w, leaf.axes))
            for w, leaf in zip(weights, leaves, strict=True)
        ]
        state = plan.started(
            leaves,
            params,
            direction=of_direction.init(params),
            length=of_length.init(treedef.unflatten(map(_or_masked, lengths))),
        )
        kept = [(one, one) for one in lengths]
        return plan.pack(kept, state, params, leaves)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DecoupleLengthState]:
        leaves, weights = plan.read_at_update(updates, state, params)
        kept = plan.unpack(state, updates, leaves)
        gradients, treedef = jax.tree.flatten(updates)
        axes = [leaf.axes for leaf in leaves]
        parts = list(map(_split, gradients, weights, axes, kept))
        grads_v, grads_g, v, g = map(treedef.unflatten, zip(*parts, strict=True))
        steps_v, state_v = of_direction.update(
            grads_v, state.direction, v, **extra_args
        )
        steps_g, state_g = of_length.update(grads_g, state.length, g, **extra_args)
        steps_v, steps_g = map(treedef.flatten_up_to, (steps_v, steps_g))
        joined = list(map(_join, steps_v, steps_g, parts, weights, axes, kept))
        state = plan.pack([one for _, one in joined], state, updates, leaves)
        state = state._replace(direction=state_v, length=state_g)
        return treedef.unflatten(update for update, _ in joined), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _split(g: Any, w: Any, axes: Axes, kept: Kept) -> tuple[Any, Any, Any, Any]:
    """Gives the gradients of both parts of a leaf, and the parts."""
    if axes is None:
        return g, optax.MaskedNode(), w, optax.MaskedNode()
    length, radius = (across_block(one, axes, w.ndim) for one in kept)
    grads, has_length = widened(g), length != 0
    unit = widened(w) / jnp.where(has_length, length, 1)
    of_length = block_dot(grads, unit, axes)
    of_direction = (grads - unit * of_length) * (
        length / jnp.where(radius > 0, radius, 1)
    )
    of_direction = jnp.where(has_length, of_direction, grads)
    v = (unit * radius).astype(w.dtype)
    return of_direction.astype(g.dtype), per_block(of_length, axes), v, kept[0]


def _join(
    step_v: Any, step_g: Any, parts: tuple[Any, ...], w: Any, axes: Axes, kept: Kept
) -> tuple[Any, Kept]:
    """Gives the step of a leaf from those of its parts, and what is kept."""
    if axes is None:
        return step_v, kept
    v = widened(parts[2]) + step_v
    radius = safe_sqrt(squared_length(v, axes))
    length = jnp.where(kept[0] != 0, kept[0] + step_g, radius)
    factor = length / jnp.where(radius > 0, radius, 1)
    update = v * across_block(factor, axes, w.ndim) - w
    return update.astype(wider_dtype(step_v.dtype, w.dtype)), (length, radius)


def _or_masked(length: jax.Array | None) -> Any:
    return optax.MaskedNode() if length is None else length
