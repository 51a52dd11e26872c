"""Links that pull weights towards zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import accumulator, has_numbers
from normopt.checks import check_not_negative, is_zero
from normopt.paths import params_like
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.transforms.stateless import stateless


def add_decay(
    weight_decay: PerLeaf = 0.0, l1: PerLeaf = 0.0
) -> optax.GradientTransformation:
    r"""Adds L1 and L2 decay to the updates, before the learning rate.

    The decay is tied to all that follows: to the learning rate, and to the moments if
    these stand after it (then it is the L2 penalty of the loss, without its 1/2).

    .. math:: g \leftarrow g + l_1 \, \mathrm{sign}(w) + \lambda w

    Args:
      weight_decay: the L2 decay :math:`\lambda`, per leaf, at least 0; 0 for leaves
        that no pattern matches.
      l1: the L1 decay :math:`l_1`, likewise; the sign of a complex weight is w/|w|.

    Returns:
      A link without state that needs `params`. Updates keep structure, shapes and
      dtypes; the sum is taken in float32 at least.

    Raises:
      TypeError: when built, if a decay is not a number.
      ValueError: when built, for a negative decay; at init, for a pattern that matches
        no path; at update, without `params` or with params of another shape.

    Examples:
      With zero gradients what is left is the pull towards zero:

      >>> import jax.numpy as jnp
      >>> link = normopt.add_decay(weight_decay={"kernel$": 0.5}, l1=0.1)
      >>> params = {"kernel": jnp.array([2.0, -2.0]), "bias": jnp.array([3.0])}
      >>> grads = {"kernel": jnp.zeros(2), "bias": jnp.zeros(1)}
      >>> updates, _ = link.update(grads, link.init(params), params)
      >>> updates["kernel"].tolist(), round(float(updates["bias"][0]), 5)
      ([1.100000023841858, -1.100000023841858], 0.1)

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, on why this differs from decay after the learning rate.
    """
    check_per_leaf("weight_decay", weight_decay, check_not_negative)
    check_per_leaf("l1", l1, check_not_negative)

    def resolve(tree: Any) -> list[tuple[Any, Any]]:
        l2s = per_leaf("weight_decay", weight_decay, tree, 0.0, check_not_negative)
        l1s = per_leaf("l1", l1, tree, 0.0, check_not_negative)
        return list(zip(l2s, l1s, strict=True))

    def update(updates: optax.Updates, params: Any) -> list[jax.Array]:
        weights = params_like(updates, params, "add_decay")
        return [
            _add_decay(g, w, *decays) if has_numbers(g) else g
            for g, w, decays in zip(
                jax.tree.leaves(updates), weights, resolve(updates), strict=True
            )
        ]

    return stateless(resolve, update)


def _add_decay(g: jax.Array, w: jax.Array, weight_decay: Any, l1: Any) -> jax.Array:
    # A decay known to be zero does not read the weights.
    total = accumulator(g)
    if not is_zero(weight_decay):
        total = total + weight_decay * accumulator(w)
    if not is_zero(l1):
        total = total + l1 * jnp.sign(accumulator(w))
    return total
