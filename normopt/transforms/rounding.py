"""A wrapper for weights of low precision, in which small updates are lost."""

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

    residue: Any  # params' structure and shapes, float32; MaskedNode if not needed
    inner: Any  # the state of `inner`, for weights in float32


def compensate_rounding(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the part of each step that low-precision weights lose in rounding.

    A bfloat16 number has 8 significant bits. So a step of less than 1/512 of a weight
    is lost: the sum is rounded back to the weight. For example, a weight decay of 1e-3
    per step is lost when `optax.apply_updates` rounds. This wrapper keeps a residue r
    for each weight, so that the true weight is :math:`w + r`:

    .. math::
      x &= w + r + u(g, w + r) \\
      w &\leftarrow \mathrm{round}(x), \qquad r \leftarrow x - \mathrm{round}(x)

    Here u(g, w) is the update of `inner`, and all is computed in float32. So the
    training is that of float32 weights, but the gradients are computed at the rounded
    weights. A weight that exceeds the range of its dtype becomes infinite and stays
    infinite.

    Args:
      inner: an optimizer. For leaves of less than 32 bits, `inner` and the callables
        among its options get gradients and params in float32. Its state is that of
        float32 params, unless an option such as `mu_dtype` says otherwise. Other leaves
        are treated as without the wrapper.

    Returns:
      An optimizer whose `update` needs `params`. Every link that changes updates must
      be inside this wrapper. A link outside would cast the updates back to low
      precision, and so lose what the wrapper keeps. Some wrappers, such as
      `optax.apply_if_finite`, raise an error about dtypes if they are outside. Only
      `observe` can be outside, because it does not change updates. Updates keep their
      structure and shapes. For low-precision leaves they are float32: the exact
      differences between new and old weights. The state is a `CompensateRoundingState`:
      the state of `inner`, and 4 bytes for each element of a low-precision leaf.

    Raises:
      TypeError: when built, if `inner` is not an optimizer.
      ValueError: at update, without `params` or with params of another shape. Also at
        update, if params had less than 32 bits at init and now have 32 or more, or the
        other way round.

    Examples:
      Each of a hundred steps is a hundredth of the distance to the next bfloat16
      number:

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
