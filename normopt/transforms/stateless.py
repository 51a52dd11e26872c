"""What links without state share: they check at init, and map over leaves."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from normopt.paths import params_like


def stateless(
    link: str,
    resolve: Callable[[Any], Any],
    update: Callable[[optax.Updates, Any], list[jax.Array]],
    *,
    needs_params: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Builds a link without state.

    Args:
      link: its name, for messages.
      resolve: reads the link's options for a tree of params. Called at init for its
        errors: a rule that misses is known before the first step.
      update: from updates and the leaves of params to the new leaves, in leaf order.
        Their dtype becomes that of the updates.
      needs_params: whether `update` reads the params; else they may be missing.
    """

    def init_fn(params: optax.Params) -> optax.EmptyState:
        resolve(params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        weights = params_like(updates, params, link, needed=needs_params)
        old, treedef = jax.tree.flatten(updates)
        new = update(updates, weights)
        same_dtype = [
            n if n is o else n.astype(o.dtype) for n, o in zip(new, old, strict=True)
        ]
        return treedef.unflatten(same_dtype), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
