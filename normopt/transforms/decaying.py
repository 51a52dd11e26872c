"""Links that pull weights towards zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import accumulator, has_numbers
from normopt.checks import check_flag, check_not_negative, is_zero
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.transforms.scheduling import scheduled
from normopt.transforms.stateless import stateless


def add_decay(
    weight_decay: PerLeaf = 0.0, l1: PerLeaf = 0.0
) -> optax.GradientTransformationExtraArgs:
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
        return _decays(weight_decay, l1, tree)

    def update(updates: optax.Updates, weights: Any) -> list[jax.Array]:
        return [
            accumulator(g) + _pull(w, *decays) if _pulls(g, decays) else g
            for g, w, decays in zip(
                jax.tree.leaves(updates), weights, resolve(updates), strict=True
            )
        ]

    return stateless("add_decay", resolve, update, needs_params=True)


def decay_weights(
    weight_decay: PerLeaf = 0.0,
    l1: PerLeaf = 0.0,
    *,
    schedule: Any = None,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes L1 and L2 decay off the weights, after the learning rate.

    The decay is tied to nothing but `schedule`: not to the gradient, and not to the
    learning rate.

    .. math:: w \leftarrow w + u - \eta_t (l_1 \, \mathrm{sign}(w) + \lambda w)

    **What a decay is tied to** is a matter of where it stands in a chain. With `lr` the
    learning rate in force and `lr_max` the largest one, a weight whose length the loss
    does not see comes to the length in the last column, where c is the length of one
    step of the moments alone (about the root of the number of elements for Adam):

    ============  ========================================  ========  ==================
    decay is      chain, after the moments                  lambda    length at the end
    ============  ========================================  ========  ==================
    independent   lr, ``decay_weights(wd)``                 wd        lr c / √(2 wd)
    times lr      ``add_decay(wd)``, lr                     lr wd     c √(lr / (2 wd))
    following     lr, ``scale_by_schedule(eta)``,           eta wd    lr c √(eta/(2 wd))
    the schedule  ``decay_weights(wd, schedule=eta)``
    corrected     lr, ``decay_weights(wd,                   lr² wd    c √(lr_max/(2 wd))
                  schedule=lambda t: lr(t)**2 / lr_max)``   / lr_max
    ============  ========================================  ========  ==================

    The first is that of the AdamW paper, the second that of `optax.adamw` and torch,
    the third that of `adamw(..., schedule=eta)`; only under the fourth does the length
    not change when the learning rate does.

    Args:
      weight_decay: the L2 decay :math:`\lambda` per step, per leaf, at least 0; 0 for
        leaves that no pattern matches. It halves a weight in 0.69 / wd steps.
      l1: the L1 decay :math:`l_1` per step, likewise, in the unit of the weights; the
        sign of a complex weight is w/|w|, and that of 0 is 0.
      schedule: :math:`\eta_t`: a number of at least 0, a schedule of the count, or a
        `WarmRestarts`; None for 1.
      cautious: whether only those elements decay that the step itself shrinks or
        leaves, :math:`\mathrm{Re}(\bar u w) \le 0`.

    Returns:
      A link that needs `params`. It has a state if `schedule` is one. Updates keep
      structure, shapes and dtypes; the sum is taken in float32 at least, but a decay
      that is small beside the weights is lost where these have low precision: see
      `compensate_rounding`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a negative decay; at init, for a pattern that matches
        no path; at update, without `params` or with params of another shape.

    Examples:
      Whatever the learning rate, a weight without gradient loses the same share:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = jnp.array([2.0, -4.0])
      >>> for rate in (0.1, 0.001):
      ...     tx = optax.chain(optax.scale_by_adam(),
      ...                      optax.scale_by_learning_rate(rate),
      ...                      normopt.decay_weights(0.25))
      ...     updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
      ...     print(optax.apply_updates(params, updates).tolist())
      [1.5, -3.0]
      [1.5, -3.0]

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, Algorithm 2, line 12. Defazio, "Why Gradients Rapidly Increase Near
      the End of Training", 2025, arXiv 2506.02285 (corrected). Chen et al., "Cautious
      Weight Decay", 2025, arXiv 2510.12402.
    """
    check_per_leaf("weight_decay", weight_decay, check_not_negative)
    check_per_leaf("l1", l1, check_not_negative)
    check_flag("cautious", cautious)

    def resolve(tree: Any) -> list[tuple[Any, Any]]:
        return _decays(weight_decay, l1, tree)

    def build(eta: Any) -> optax.GradientTransformationExtraArgs:
        def update(updates: optax.Updates, weights: Any) -> list[jax.Array]:
            return [
                _decayed(u, w, -eta, decays, cautious) if _pulls(w, decays) else u
                for u, w, decays in zip(
                    jax.tree.leaves(updates), weights, resolve(updates), strict=True
                )
            ]

        return stateless("decay_weights", resolve, update, needs_params=True)

    return scheduled(schedule, build)


def _decays(weight_decay: PerLeaf, l1: PerLeaf, tree: Any) -> list[tuple[Any, Any]]:
    l2s = per_leaf("weight_decay", weight_decay, tree, 0.0, check_not_negative)
    l1s = per_leaf("l1", l1, tree, 0.0, check_not_negative)
    return list(zip(l2s, l1s, strict=True))


def _pulls(leaf: Any, decays: tuple[Any, Any]) -> bool:
    """Tells whether a leaf can have a decay, and one that is no plain zero."""
    return has_numbers(leaf) and not all(is_zero(decay) for decay in decays)


def _pull(w: jax.Array, weight_decay: Any, l1: Any) -> Any:
    """Gives the gradient of the penalty, without reading the weights for a plain 0."""
    pull: Any = 0
    if not is_zero(weight_decay):
        pull = pull + weight_decay * accumulator(w)
    if not is_zero(l1):
        pull = pull + l1 * jnp.sign(accumulator(w))
    return pull


def _decayed(
    u: jax.Array, w: jax.Array, factor: Any, decays: tuple[Any, Any], cautious: bool
) -> jax.Array:
    change = factor * _pull(w, *decays)
    if cautious:
        # Of the signs, u/|u| for complex ones: the product of the two could underflow.
        step, weight = jnp.sign(accumulator(u)), jnp.sign(accumulator(w))
        change = jnp.where(jnp.real(jnp.conj(step) * weight) <= 0, change, 0)
    return accumulator(u) + change
