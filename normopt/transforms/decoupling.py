"""A wrapper that trains the length of a block and its direction with two optimizers."""

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
)
from normopt.checks import check_inner
from normopt.keeping import OfBlocks
from normopt.leafwise import Work
from normopt.norms import block_norm
from normopt.numerics import narrowed, widened, wider_dtype
from normopt.rules import PerLeaf


class DecoupleLengthState(NamedTuple):
    """State of `decouple_length`."""

    lengths: Any  # {"path@axes": g of each block; it can become negative}
    radii: Any  # {"path@axes": |v| of each block}
    direction: Any  # the state of the optimizer `direction`
    length: Any  # the state of the optimizer `length`


def decouple_length(
    direction: optax.GradientTransformation,
    length: optax.GradientTransformation,
    channel_axes: PerLeaf,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains the length and the direction of each block by two separate optimizers.

    .. math:: w_b = g_b \frac{v_b}{\|v_b\|}

    This is weight normalization, but in the optimizer instead of the network. If G is
    the gradient of the block w, the length g and the direction v have the gradients

    .. math::
      \nabla_g = \langle G_b, v_b / \|v_b\| \rangle, \qquad
      \nabla_v = \frac{g_b}{\|v_b\|} \left( G_b - \nabla_g \frac{v_b}{\|v_b\|} \right)

    A block of length zero has no direction. Such a block is trained by `direction`
    alone, with its plain gradient, and so are leaves without blocks.

    Args:
      direction: an optimizer for v, learning rate included. Its params are a tree like
        those of the network; v starts as the weights.
      length: an optimizer for g, learning rate included. Its params are a dictionary:
        the key is path and axes of a leaf (`kernel@1`), the value has one length per
        block. Patterns must match these keys. Leaves without blocks are not in the
        dictionary. A weight decay of this optimizer shrinks the lengths.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, are
        trained by `direction` alone.

    Returns:
      An optimizer whose `update` needs `params`. Its state is a `DecoupleLengthState`:
      two numbers per block, and the states of the two optimizers. The lengths are taken
      from the state, not from the weights. So if other code rescales the weights, the
      next step undoes this. Updates keep their structure and shapes.

    Raises:
      TypeError: when built, if one of the two is not an optimizer, or the axes have the
        wrong type.
      ValueError: at init, for axes that do not fit (see `normalize_blocks`), or a
        pattern that matches no path. At update, without `params` or with params of
        another shape.

    Examples:
      Here the learning rate of the length is zero:

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
    check_inner("decouple_length", direction, "direction")
    check_inner("decouple_length", length, "length")
    of_direction, of_length = map(optax.with_extra_args_support, (direction, length))
    numbers = OfBlocks()
    # Two optimizers come between the parts of its step: it has none for `go`.
    plan = Work(
        "decouple_length",
        lambda *leaf: leaf,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        reads_weights=lambda leaf: True,
        keeps={"lengths": numbers, "radii": numbers},
        state=DecoupleLengthState,
    )

    def init_fn(params: optax.Params) -> DecoupleLengthState:
        leaves = plan.read_at_init(params)
        state = plan.started(leaves, params, direction=None, length=None)
        lengths = [
            None if leaf.axes is None else _length(w, leaf.axes)
            for w, leaf in zip(jax.tree.leaves(params), leaves, strict=True)
        ]
        # Two arrays, so that the memory of both can be handed over to a step.
        kept = [(one, one if one is None else jnp.copy(one)) for one in lengths]
        state = plan.pack(kept, state, params, leaves)
        return state._replace(
            direction=of_direction.init(params), length=of_length.init(state.lengths)
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DecoupleLengthState]:
        leaves, weights = plan.read_at_update(updates, state, params)
        axes = [leaf.axes for leaf in leaves]
        kept = plan.unpack(state, updates, leaves)
        gradients, treedef = jax.tree.flatten(updates)
        split = list(map(_split, gradients, weights, axes, kept))
        of_v, of_g, v = zip(*split, strict=True) if split else ((), (), ())
        steps_v, state_v = of_direction.update(
            treedef.unflatten(of_v), state.direction, treedef.unflatten(v), **extra_args
        )
        steps_g, state_g = of_length.update(
            numbers.pack(of_g, state.lengths, updates, axes),
            state.length,
            state.lengths,
            **extra_args,
        )
        steps_g = numbers.unpack(steps_g, updates, axes)
        steps_v = treedef.flatten_up_to(steps_v)
        joined = list(map(_join, steps_v, steps_g, v, weights, axes, kept))
        state = plan.pack([one for _, one in joined], state, updates, leaves)
        state = state._replace(direction=state_v, length=state_g)
        return treedef.unflatten([update for update, _ in joined]), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _split(g: Any, w: Any, axes: Axes, kept: Any) -> tuple[Any, Any, Any]:
    """Gives the gradients of both parts of a leaf, and v."""
    if axes is None:
        return g, None, w
    length, radius = (across_block(one, axes, w.ndim) for one in kept)
    grads, has_length = widened(g), length != 0
    unit = widened(w) / jnp.where(has_length, length, 1)
    of_length = block_dot(grads, unit, axes)
    stretch = length / jnp.where(radius > 0, radius, 1)
    of_v = jnp.where(has_length, (grads - unit * of_length) * stretch, grads)
    v = (unit * radius).astype(w.dtype)
    return narrowed(of_v, g.dtype), per_block(of_length, axes), v


def _join(
    step_v: Any, step_g: Any, v: Any, w: Any, axes: Axes, kept: Any
) -> tuple[Any, Any]:
    """Gives the step of a leaf from those of its parts, and what is kept."""
    if axes is None:
        return step_v, kept
    old, _ = kept
    new = widened(v) + widened(step_v)
    radius = _length(new, axes).astype(old.dtype)
    length = jnp.where(old != 0, (old + step_g).astype(old.dtype), radius)
    factor = length / jnp.where(radius > 0, radius, 1)
    update = new * across_block(factor, axes, w.ndim) - widened(w)
    return update.astype(wider_dtype(step_v.dtype, w.dtype)), (length, radius)


def _length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return per_block(block_norm("l2", x, axes), axes)
