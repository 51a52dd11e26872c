"""Steps without an update because something about them is not finite.

`optax.apply_if_finite` counts them in its state, which a checkpoint holds. It decides
by the gradients alone, so a loss or a statistic that is not finite is told to it as a
gradient that is not.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# The weights stay as they are from one skipped step to the next, so that only the
# images differ: where so many batches give nothing finite it is the weights, and no
# further batch will help. Optax itself would let the next update through.
MOST_IN_A_ROW = 10


def skip_nonfinite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return an optimizer that leaves weights and state as they are at a bad step."""
    return optax.apply_if_finite(optimizer, MOST_IN_A_ROW)


def skips(opt_state: Any) -> bool:
    """Say whether a state is that of an optimizer from `skip_nonfinite`."""
    return isinstance(opt_state, optax.ApplyIfFiniteState)


def skipped_steps(opt_state: Any) -> jax.Array | None:
    """Return how many steps were skipped so far, None if none ever is."""
    return opt_state.total_notfinite if skips(opt_state) else None


def gives_up(opt_state: Any) -> jax.Array:
    """Say whether the last step was one bad step in a row too many."""
    return opt_state.notfinite_count > MOST_IN_A_ROW


def all_finite(tree: Any) -> jax.Array:
    """Say whether all numbers of a tree are finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def spoiled_unless(finite: jax.Array, gradients: Any) -> Any:
    """Return the gradients, or NaN in their place."""
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), gradients)
