"""A wrapper for weights of low precision, which swallow small updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import accumulator, has_numbers
from normopt.checks import check_inner
from normopt.paths import all_places, params_like, path_difference
from normopt.transforms.block_numbers import pack_like_params


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

    in float32, where u are inner's updates. So the weights are at each step the rounded
    weights of the same training in float32 whose gradients are taken at the rounded
    weights; there is no eps. A weight beyond the range of its dtype becomes infinite
    and stays so, whatever u is: it does not come back, as one in float32 could.

    Args:
      inner: an optimizer. For leaves of less than 32 bits it sees gradients, and
        params if it wants them, in float32, and its state is that of float32 params,
        unless it has a `mu_dtype` or the like. Other leaves are as without the wrapper.

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
    check_inner("compensate_rounding", inner)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> CompensateRoundingState:
        residue = jax.tree.map(
            lambda w: (
                jnp.zeros_like(w, jnp.float32) if _is_low(w) else optax.MaskedNode()
            ),
            params,
        )
        return CompensateRoundingState(residue, inner.init(_widened(params)))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CompensateRoundingState]:
        weights = params_like(updates, params, "compensate_rounding")
        treedef = jax.tree.structure(params)
        exact = [
            w if kept is None else accumulator(w) + kept
            for w, kept in zip(weights, _unpack(state.residue, params), strict=True)
        ]
        updates, inner_state = inner.update(
            _widened(updates), state.inner, treedef.unflatten(exact), **extra_args
        )
        steps, updates_treedef = jax.tree.flatten(updates)
        residue = []
        for index, w in enumerate(weights):
            if _is_low(w):
                x = exact[index] + steps[index]
                wide, rounded = accumulator(w), _rounded(x, w.dtype)
                # Of infinite numbers both differences would be NaN, now or next time.
                steps[index] = jnp.where(jnp.isinf(wide), 0, rounded - wide)
                residue.append(jnp.where(jnp.isfinite(rounded), x - rounded, 0))
        return updates_treedef.unflatten(steps), CompensateRoundingState(
            pack_like_params(residue, state.residue), inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_low(leaf: Any) -> bool:
    return has_numbers(leaf) and jnp.finfo(leaf.dtype).bits < 32


def _unpack(residue: Any, params: Any) -> list[Any]:
    """Lists the residue of each leaf of `params`, None where it needs none.

    Raises:
      ValueError: if the state was made for params of other paths or shapes, or a leaf
        was of low precision then and is not now, or the reverse.
    """
    made_for_other = "`compensate_rounding` got a state that was made for other params:"
    init_again = "call init again with these params"
    before, now = all_places(residue), all_places(params)
    difference = path_difference(before, now)
    if difference:
        raise ValueError(
            f"{made_for_other} of it and the params, {difference}; {init_again}"
        )
    residues = []
    for (path, kept, has_none), (_, w, masked) in zip(before, now, strict=True):
        needs_none = masked or not _is_low(w)
        if needs_none != has_none or not (has_none or kept.shape == w.shape):
            was = (
                "no residue, as for a dtype of 32 bits or more"
                if has_none
                else f"a residue of shape {kept.shape}, as for a dtype of less than "
                "32 bits"
            )
            found = "masked" if masked else f"of {w.dtype} and shape {w.shape}"
            raise ValueError(
                f"{made_for_other} it has {was}, for {path!r}, which is now {found}; "
                f"{init_again}"
            )
        if not masked:
            residues.append(None if has_none else kept)
    return residues


def _widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: accumulator(x) if _is_low(x) else x, tree)


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
