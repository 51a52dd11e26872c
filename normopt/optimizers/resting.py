"""The optimizer `rest`, for the leaves that another optimizer has no step for."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from normopt.blocks import has_numbers
from normopt.checks import check_inner
from normopt.paths import named_leaves, params_like


def beside(
    rest: optax.GradientTransformation | None,
    chain: optax.GradientTransformationExtraArgs,
    is_its: Callable[[Any], list[bool]],
    optimizer: str,
) -> optax.GradientTransformationExtraArgs:
    """Hands the leaves that are not an optimizer's own to `rest`.

    Leaves without numbers, empty or of integers, stay with the optimizer: nothing is
    done to them.

    Args:
      rest: an optimizer, or None, with which there must be no such leaves.
      chain: the optimizer.
      is_its: from params to whether each leaf is its own.
      optimizer: its name, for messages.

    Raises:
      TypeError: when built, if `rest` is not an optimizer.
      ValueError: at init, with the paths of the leaves that nobody takes.
    """
    if rest is not None:
        check_inner(optimizer, rest, "rest")

        def labels(params: Any) -> Any:
            return jax.tree.structure(params).unflatten(
                optimizer if own or not has_numbers(leaf) else "rest"
                for own, leaf in zip(
                    is_its(params), jax.tree.leaves(params), strict=True
                )
            )

        parts = optax.partition({optimizer: chain, "rest": rest}, labels)

        def update_fn(
            updates: optax.Updates,
            state: Any,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, Any]:
            # Where the trees are not alike, optax's own error names no path.
            params_like(updates, params, optimizer, needed=False)
            return parts.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(parts.init, update_fn)

    def init_fn(params: optax.Params) -> Any:
        found = zip(named_leaves(params), is_its(params), strict=True)
        lone = [p.path for p, own in found if not own and has_numbers(p.leaf)]
        if lone:
            raise ValueError(
                f"`{optimizer}` has no step for {', '.join(map(repr, lone))}. Give the "
                "optimizer that takes the rest, such as rest=optax.adamw(3e-4)"
            )
        return chain.init(params)

    return optax.GradientTransformationExtraArgs(init_fn, chain.update)
