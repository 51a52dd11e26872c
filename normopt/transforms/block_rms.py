"""NovoGrad's second moment: one number for each layer, or each block."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    Axes,
    accumulator,
    across_block,
    check_channel_axes,
    has_numbers,
    larger,
    positive_sqrt,
    resolve_axes,
    saturated,
    squares,
)
from normopt.checks import check_flag, check_number
from normopt.paths import params_like
from normopt.rules import PerLeaf
from normopt.transforms.block_numbers import BlockNumbers, pack, unpack, zeros


class ScaleByBlockRmsState(NamedTuple):
    """State of `scale_by_block_rms`."""

    count: jax.Array  # int32 scalar: updates done
    nu: BlockNumbers  # second moments, float32 at least
    nu_max: BlockNumbers | None  # with amsgrad: the largest nu so far


def scale_by_block_rms(
    b2: float = 0.999,
    eps: float = 1e-7,
    channel_axes: PerLeaf = (),
    *,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each block by the root of the average square of its gradient's norm.

    .. math::
      v &\leftarrow b_2 v + (1 - b_2) \|g\|^2, \qquad v = \|g\|^2 \text{ at first} \\
      g &\leftarrow \frac{g}{\sqrt{v} + \epsilon}

    with sums over the block: an update has the length of about 1 for the block,
    whatever the number of its elements. Since v starts at the first square it needs no
    bias correction, and the first update has exactly that length, but for eps.

    Args:
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of the gradient's norm; at least 0. With 0,
        too, a block that never had a gradient is not moved.
      channel_axes: the axes that index a leaf's blocks, per leaf: (), the default, for
        one number a layer, (-1,) for one a channel, (0,) for one a layer of a stack;
        None for one an element. Blocks of one element are taken as they are.
      amsgrad: whether the root is taken of the largest v so far.

    Returns:
      A link. Its state is a `ScaleByBlockRmsState`: a number for each block, in float32
      at least and real for complex leaves; exact for norms from 1e-15 to 1e15, finite
      beyond. Updates keep structure, shapes and dtypes.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range; at init, for an axis that
        does not exist, a pattern that matches no path, or two leaves of the same path;
        at update, with params of another shape.

    Examples:
      Layers of any size and scale of gradient step by the same length:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_block_rms(eps=0.0)
      >>> grads = {"wide": jnp.full((40, 50), 1e-6), "bias": jnp.array([3.0, 4.0])}
      >>> updates, state = link.update(grads, link.init(grads))
      >>> {name: round(float(n), 5) for name, n in normopt.block_norms(updates).items()}
      {'bias': 1.0, 'wide': 1.0}
      >>> {name: v.shape for name, v in state.nu.blocks.items()}
      {'bias': (), 'wide': ()}

    References:
      Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
      Training of Deep Networks", 2019, arXiv 1905.11286, Algorithm 1. Reddi, Kale,
      Kumar, "On the Convergence of Adam and Beyond", 2018, arXiv 1904.09237 (amsgrad).
    """
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    check_channel_axes(channel_axes)
    check_flag("amsgrad", amsgrad)

    def init_fn(params: optax.Params) -> Any:
        axes = resolve_axes(channel_axes, params)
        return ScaleByBlockRmsState(
            count=jnp.zeros([], jnp.int32),
            nu=zeros(params, axes),
            nu_max=zeros(params, axes) if amsgrad else None,
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        params_like(updates, params, "scale_by_block_rms", needed=False)
        leaves, treedef = jax.tree.flatten(updates)
        axes = resolve_axes(channel_axes, updates)
        # The first average is the square itself.
        share = jnp.where(state.count == 0, 1, 1 - b2)
        directions, nus, maxima = [], [], []
        for g, nu, nu_max, own in zip(
            leaves,
            unpack(state.nu, updates, axes),
            unpack(state.nu_max, updates, axes),
            axes,
            strict=True,
        ):
            if has_numbers(g):
                g, nu, nu_max = _step(g, nu, nu_max, share, eps, axes=own)
            directions.append(g)
            nus.append(nu)
            maxima.append(nu_max)
        count: Any = optax.safe_increment(state.count)
        return treedef.unflatten(directions), ScaleByBlockRmsState(
            count,
            pack(nus, state.nu, updates, axes),
            pack(maxima, state.nu_max, updates, axes),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# Jitted, so that leaves of the same shape and axes are traced once.
@functools.partial(jax.jit, static_argnames="axes")
def _step(
    g: jax.Array, nu: Any, nu_max: Any, share: Any, eps: Any, *, axes: Axes
) -> tuple[jax.Array, Any, Any]:
    """Takes the direction and the second moments of one leaf."""
    nu = second = saturated((1 - share) * nu + share * squares(g, axes))
    if nu_max is not None:
        nu_max = second = larger(nu_max, nu)
    factor = across_block(1 / (positive_sqrt(second) + eps), axes, g.ndim)
    return (accumulator(g) * factor).astype(g.dtype), nu, nu_max
