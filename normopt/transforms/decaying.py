"""Links that pull weights towards zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normopt.checks import check_flag, check_not_negative, is_zero
from normopt.leafwise import Option, leafwise
from normopt.rules import PerLeaf
from normopt.transforms.scheduling import scheduled


def add_decay(
    weight_decay: PerLeaf = 0.0, l1: PerLeaf = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Adds L1 and L2 decay to the updates, before the learning rate.

    All later links of the chain act on the decay, too: the learning rate, and the
    moments if they come after this link. If the moments come after it, the decay is L2
    regularization: it is the gradient of a penalty in the loss, wd/2 times the squared
    norm of the weights.

    .. math:: g \leftarrow g + l_1 \, \mathrm{sign}(w) + \lambda w

    Args:
      weight_decay: the L2 decay :math:`\lambda`, per leaf, at least 0; 0 for leaves
        that no pattern matches.
      l1: the L1 decay :math:`l_1`, per leaf, at least 0; the sign of a complex weight
        is w/|w|.

    Returns:
      A link without state. Its `update` needs `params` if a leaf has a weight decay.
      Updates keep their structure and shapes, and get the wider dtype of update and
      parameter. The sum is taken in float32 or wider.

    Raises:
      TypeError: when built, if a decay is not a number.
      ValueError: when built, for a negative decay. At init, for a pattern that matches
        no path. At update, without `params` or with params of another shape.

    Examples:
      With zero gradients, the updates are the decay alone:

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
    return leafwise("add_decay", _add, **_pulling(weight_decay, l1))


def _add(g, w, axes, option, kept, shared):
    return g + _pull(w, *option), kept


def decay_weights(
    weight_decay: PerLeaf = 0.0,
    l1: PerLeaf = 0.0,
    *,
    schedule: Any = None,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Applies L1 and L2 decay to the weights, after the learning rate.

    The decay depends on `schedule` alone, and not on the gradient or the learning rate.

    .. math:: w \leftarrow w + u - \eta_t (l_1 \, \mathrm{sign}(w) + \lambda w)

    **The place of a decay in the chain** decides what the decay depends on. The table
    has four forms, by their names in `decay_from`, which converts one form to another.
    The last column is the length (the L2 norm) that a scale-invariant block of weights
    reaches in the end, if gradients are mostly noise. The column before it is the
    fraction of the weights that a step removes. In the table, wd is `weight_decay`, eta
    is the value of `schedule`, lr is the factor of the learning-rate link in the
    present step, and lr_max is the largest such factor. The number c is the product n C
    of `equilibrium`. For Adam and a block of d elements, c is √d.

    ===================  ===============================  ========  ==================
    form                 chain, after the moments         fraction  length at the end
    ===================  ===============================  ========  ==================
    independent          lr, ``decay_weights(wd)``        wd        lr c / √(2 wd)
    times_learning_rate  ``add_decay(wd)``, lr            lr wd     c √(lr / (2 wd))
    following            lr, ``scale_by_schedule(eta)``,  eta wd    lr c √(eta/(2 wd))
                         ``decay_weights(wd,
                         schedule=eta)``
    corrected            lr, ``decay_weights(wd,          lr² wd    c √(lr_max/(2 wd))
                         schedule=lambda t:               / lr_max
                         lr(t)**2 / lr_max)``
    ===================  ===============================  ========  ==================

    Without a `schedule`, `adamw` has the form `independent`. With a `schedule`, `adamw`
    has the form `following`, as in the AdamW paper. The AdamW of optax and torch has
    the form `times_learning_rate`. Only `corrected` keeps the length when the learning
    rate changes.

    Args:
      weight_decay: the L2 decay :math:`\lambda` per step, per leaf, at least 0; 0 for
        leaves that no pattern matches. The decay halves a weight in about 0.69 / wd
        steps.
      l1: the L1 decay :math:`l_1` per step, in the unit of the weights, per leaf, at
        least 0. The sign of a complex weight is w/|w|, and the sign of 0 is 0.
      schedule: :math:`\eta_t`: a number of at least 0, a schedule of the count, or a
        `WarmRestarts`; None for 1.
      cautious: whether to decay only the elements that the step u moves towards zero or
        does not change: those with :math:`\mathrm{Re}(\bar u w) \le 0`.

    Returns:
      A link whose `update` needs `params` if a leaf has a weight decay. It has a state
      if `schedule` is a schedule. Updates keep their structure and shapes, and get the
      wider dtype of update and parameter. The sum is computed in float32 or wider. With
      weights of low precision a small decay is still lost in rounding: see
      `compensate_rounding`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a negative decay. At init, for a pattern that matches
        no path. At update, without `params` or with params of another shape.

    Examples:
      A weight without gradient decays by the same factor, for every learning rate:

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
    check_flag("cautious", cautious)
    pulling = _pulling(weight_decay, l1)

    def build(eta: Any) -> optax.GradientTransformationExtraArgs:
        return leafwise(
            "decay_weights",
            _take_off,
            share=lambda state: (eta,),
            static={"cautious": cautious},
            **pulling,
        )

    return scheduled(schedule, build)


def _take_off(u, w, axes, option, kept, shared, *, cautious):
    change = -shared[0] * _pull(w, *option)
    if cautious:
        # Of the signs, u/|u| for complex ones: the product of the two could underflow.
        shrinks = jnp.real(jnp.conj(jnp.sign(u)) * jnp.sign(w)) <= 0
        change = jnp.where(shrinks, change, 0)
    return u + change, kept


def _pulling(weight_decay: PerLeaf, l1: PerLeaf) -> dict[str, Any]:
    """Gives what both decays tell `leafwise`: for a plain 0 nothing is read."""
    return {
        "options": {
            "weight_decay": Option(weight_decay, 0.0, check_not_negative, True),
            "l1": Option(l1, 0.0, check_not_negative, True),
        },
        "acts": lambda leaf: not all(is_zero(decay) for decay in leaf.option),
        "reads_weights": lambda leaf: True,
    }


def _pull(w: jax.Array, weight_decay: Any, l1: Any) -> Any:
    """Gives the gradient of the penalty, of which one part may be missing."""
    pull = 0 if weight_decay is None else weight_decay * w
    return pull if l1 is None else pull + l1 * jnp.sign(w)
