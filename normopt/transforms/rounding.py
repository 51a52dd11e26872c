"""A wrapper for weights of low precision, which swallow small updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import has_numbers
from normopt.keeping import PerElement
from normopt.leafwise import around
from normopt.numerics import widened


class CompensateRoundingState(NamedTuple):
    """State of `compensate_rounding`."""

    residue: Any  # params' structure and shapes, float32; MaskedNode where not needed
    inner: Any  # inner's state, for weights in float32


def compensate_rounding(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps what the rounding of low-precision weights would swallow.

    A bfloat16 has 8 significant bits: a weight does not change by less than 1/512 of
    itself, and `optax.apply_updates` rounds a decay of 1e-3 away at every step, however
    it was computed. Here the weights are :math:`w + r` with a residue r:

    .. math::
      x &= w + r + u(g, w + r) \\
      w &\leftarrow \mathrm{round}(x), \qquad r \leftarrow x - \mathrm{round}(x)

    in float32, where u are inner's updates. So the weights are those of a training in
    float32, rounded at each step; only the gradients are taken at the rounded weights.
    There is no eps. A weight beyond the range of its dtype becomes infinite and stays
    so, whatever u is: it does not come back, as one in float32 could.

    Args:
      inner: an optimizer. For leaves of less than 32 bits it sees gradients, and
        params if it wants them, in float32, and its state is that of float32 params,
        unless it has a `mu_dtype` or the like; a callable option of inner sees float32,
        too. Other leaves are as without the wrapper.

    Returns:
      An optimizer that needs `params` and must be the outermost one: what follows it
      would round or change its updates, and `optax.apply_if_finite` around it refuses
      their dtype (inside it does not). Updates keep structure and shapes; for
      low-precision leaves they are float32, the difference to the next weight.
      Its state is a `CompensateRoundingState`: inner's, and 4 bytes for each element
      of a low-precision leaf.

    Raises:
      TypeError: when built, if `inner` is no optimizer.
      ValueError: at update, without `params` or with params of another shape, and with
        params that were cast after init between less than 32 bits and more.

    Examples:
      A hundred steps of one percent of the distance from one number to the next:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> def after_100_steps(tx):
      ...     params = jnp.ones(1, jnp.bfloat16)
      ...     state = tx.init(params)
      ...     for _ in range(100):
      ...         updates, state = tx.update(jnp.ones_like(params), state, params)
      ...         params = optax.apply_updates(params, updates)
      ...     return float(params[0])
      >>> after_100_steps(optax.sgd(-0.01 / 128))
      1.0
      >>> after_100_steps(normopt.compensate_rounding(optax.sgd(-0.01 / 128)))
      1.0078125

    References:
      Kahan, "Further Remarks on Reducing Truncation Errors", 1965. Zamirai, Zhang,
      Aberger, De Sa, "Revisiting BFloat16 Training", 2021, arXiv 2010.06192, Kahan
      summation of the updates.
    """
    return around(
        "compensate_rounding",
        inner,
        _compensate,
        resolve=_low_dtypes,
        reads_weights=lambda leaf: True,
        state=CompensateRoundingState,
        keeps={
            "residue": PerElement(
                lambda leaf, low: low and jnp.float32,
                "weights of less than 32 bits have a residue, others nothing; call "
                "init again with these params",
            )
        },
        enter=_enter,
    )


def _low_dtypes(channel_axes: None, tree: Any) -> list[Any]:
    """Lists the dtypes of less than 32 bits, None for leaves of others."""
    del channel_axes
    return [
        leaf.dtype if has_numbers(leaf) and jnp.finfo(leaf.dtype).bits < 32 else None
        for leaf in jax.tree.leaves(tree)
    ]


def _enter(x, leaf, kept):
    """Gives what inner sees: leaves of low precision in float32, weights exactly."""
    if leaf.axes is None:
        return x
    return widened(x) if kept is None else widened(x) + kept[0]


def _compensate(g, u, w, dtype, option, kept, shared):
    if dtype is None:
        return u, kept
    x = w + kept[0] + u
    rounded = _rounded(x, dtype)
    # Of infinite numbers both differences would be NaN, now or next time.
    residue = jnp.where(jnp.isfinite(rounded), x - rounded, 0)
    return jnp.where(jnp.isinf(w), 0, rounded - w), (residue,)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds to the numbers of `dtype`, in float32.

    A cast there and back would not do: on GPU and TPU XLA takes the two for nothing.
    """
    info = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    if info.nexp == jnp.finfo(x.dtype).nexp:
        return rounded
    # `reduce_precision` takes float16's subnormal numbers for zero.
    spacing = float(info.smallest_subnormal)
    is_subnormal = jnp.abs(x) < float(info.smallest_normal)
    return jnp.where(is_subnormal, jnp.round(x / spacing) * spacing, rounded)
