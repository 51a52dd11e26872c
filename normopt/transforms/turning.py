"""Links that set how far a block turns, from the step of an optimizer.

They follow a complete optimizer, and keep the length that blocks have at init. The
input is the step of that optimizer, and the output a step of another length or angle.
Leaves without blocks, and blocks of length zero at init, keep the step unchanged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    across_block,
    block_dot,
    block_size,
    block_sum,
    per_block,
    radial_quotient,
    resolve_proper_axes,
)
from normopt.keeping import OfBlocks
from normopt.leafwise import around, leafwise
from normopt.norms import block_norm
from normopt.numerics import (
    length_of,
    positive_sqrt,
    safe_quotient,
    safe_sqrt,
    saturated,
    select,
    squared,
)
from normopt.rules import PerLeaf
from normopt.transforms.sphere import InitialLengths


class HyperballState(NamedTuple):
    """State of `hyperball`; the inner optimizer has its own."""

    count: jax.Array  # int32 scalar: updates done
    radius: Any  # {"path@axes": |w| of each block at init}


def step_relatively(
    learning_rate: optax.ScalarOrSchedule, channel_axes: PerLeaf
) -> optax.GradientTransformationExtraArgs:
    """Makes steps a part of the radius long; see `hyperball`."""
    return leafwise(
        "hyperball",
        _step_relatively,
        channel_axes=channel_axes,
        **_held(HyperballState, lambda state: (_now(learning_rate, state),)),
    )


def _step_relatively(u, w, axes, option, kept, shared):
    """Takes w' - w as a sum of w and u, each times a number of the block.

    So a leaf is read once for the sums and once for the step, and w' is never stored.
    """
    radius = across_block(kept[0], axes, u.ndim)
    length = block_norm("l2", u, axes)
    gain = radius * shared[0] * safe_quotient(1, length)
    ww, uw = block_dot(w, w, axes), block_dot(u, w, axes)
    after = _root(ww + gain * (2 * uw + gain * length * length))
    back = radius * safe_quotient(1, after)
    step = (back - 1) * w + (back * gain) * u
    return jnp.where(radius > 0, step, u), kept


class RotationalState(NamedTuple):
    """State of `rotational`; the inner optimizer has its own."""

    count: jax.Array  # int32 scalar: updates done
    radius: Any  # {"path@axes": |w| of each block at init}
    nu: Any  # {"path@axes": average of |d|^2 of each block}


def turn_blocks(
    learning_rate: optax.ScalarOrSchedule,
    channel_axes: PerLeaf,
    b2: float,
    eps: float,
    center: bool,
) -> optax.GradientTransformationExtraArgs:
    """Makes steps turn blocks by an angle on average; see `rotational`."""

    def share(state: Any) -> _Numbers:
        root = jnp.sqrt(1 - b2**state.count)
        return _Numbers(_now(learning_rate, state), b2, 1 - b2, root, eps)

    return leafwise(
        "rotational",
        _turn,
        channel_axes=channel_axes,
        static={"center": center},
        **_held(RotationalState, share, nu=OfBlocks()),
    )


class _Numbers(NamedTuple):
    """What the leaves share at a step."""

    rate: Any
    b2: Any
    b2_rest: Any
    root: Any  # of the correction
    eps: Any


def _turn(u, w, axes, option, kept, shared, *, center):
    """Takes w' - w, a sum of w, u and 1, each times a number of the block.

    So a leaf is read once for the sums and once for the step, and d is never stored.
    The sums are multiplied by 1 / |u| before they are squared, so that no square leaves
    the range of its dtype.
    """
    radius, nu = (across_block(one, axes, u.ndim) for one in kept)
    length, size = block_norm("l2", u, axes), block_size(u.shape, axes)
    unit = safe_quotient(1, length)
    uw, ww, mean, square = block_dot(u, w, axes) * unit, block_dot(w, w, axes), 0, 1
    if center:
        mean = block_sum(u, axes) / size * unit
        uw = uw - jnp.real(mean * jnp.conj(block_sum(w, axes)))
        square = 1 - size * squared(mean)
    radial = radial_quotient(uw, ww)
    square = square - radial * uw
    # What rounding leaves of a step along the weights is no direction.
    is_turned = (square > 32 * jnp.finfo(square.dtype).eps) & (length > 0)
    d = length * safe_sqrt(select(is_turned, square, 0))
    nu = saturated(shared.b2 * nu + shared.b2_rest * d * d)
    gain = radius * shared.rate * shared.root
    gain = gain / (positive_sqrt(nu) + shared.eps * shared.root)
    gain = select(is_turned, gain, 0)
    after = _root(ww + (gain * d) ** 2)
    back = radius * safe_quotient(1, after)
    of_w = back * (1 - gain * length * radial) - 1
    step = of_w * w + (back * gain) * u - back * gain * length * mean
    kept = tuple(per_block(one, axes) for one in (radius, nu))
    return jnp.where(radius > 0, step, u), kept


def _root(square: jax.Array) -> jax.Array:
    return length_of(jnp.maximum(square, 0))


def _held(state: Any, share: Callable[[Any], Any], **keeps: OfBlocks) -> dict[str, Any]:
    """Gives what `leafwise` is told of both links."""
    return {
        "resolve": resolve_proper_axes,
        "acts": lambda leaf: leaf.has_blocks,
        "reads_weights": lambda leaf: True,
        "state": state,
        "start": lambda: {"count": jnp.zeros([], jnp.int32)},
        "keeps": {"radius": InitialLengths(), **keeps},
        "share": share,
        "stores": True,
    }


def _now(learning_rate: optax.ScalarOrSchedule, state: Any) -> Any:
    # The count is already that of this step; a schedule begins at 0.
    return learning_rate(state.count - 1) if callable(learning_rate) else learning_rate


def behind(
    optimizer: str,
    inner: optax.GradientTransformation,
    link: optax.GradientTransformation,
    channel_axes: PerLeaf,
) -> optax.GradientTransformationExtraArgs:
    """Chains a complete optimizer and what remakes its steps of blocks.

    It refuses params and updates that are not like each other before `inner` sees them.

    Args:
      optimizer: the name of the whole, for messages.
      inner: the optimizer.
      link: one of the links here.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
    """
    return around(
        optimizer,
        optax.chain(inner, link),
        lambda g, u, w, axes, option, kept, shared: (u, kept),
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
    )
