"""AdamW, SGDW and NadamW: weight decay that depends on a schedule alone."""

from typing import Any

import optax

from normopt.checks import check_learning_rate, check_number, warn_of_half_life
from normopt.rules import PerLeaf
from normopt.transforms.decaying import decay_weights
from normopt.transforms.moments import scale_by_block_adam
from normopt.transforms.multiplying import scale_by_path
from normopt.transforms.nadam import scale_by_nadam
from normopt.transforms.scheduling import scale_by_eta, scale_by_rate, scheduled
from normopt.transforms.tangent import trace_on_tangent


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: PerLeaf = 0.0,
    l1: PerLeaf = 0.0,
    lr_multipliers: PerLeaf = 1.0,
    schedule: Any = None,
    amsgrad: bool = False,
    eps_hat: bool = False,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with a weight decay that depends on neither gradient nor learning rate.

    The decay follows `schedule` alone, as in the paper. So
    `adamw(1e-3, weight_decay=1e-2)` decays a thousand times more than `optax.adamw` and
    torch's AdamW with the same numbers, because these multiply the decay by the
    learning rate. To get their weight decay, use the chain

        optax.chain(normopt.scale_by_block_adam(), normopt.add_decay(1e-2),
                    optax.scale_by_learning_rate(1e-3))

    The chain of `adamw` is `scale_by_block_adam -> scale_by_path -> learning rate ->
    eta_t -> decay_weights(schedule=eta_t)`. It computes lines 7 to 12 of Algorithm 2 in
    the paper:

    .. math::
      w \leftarrow w - \eta_t \left( \alpha c \,
        \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}
        + l_1 \, \mathrm{sign}(w) + \lambda w \right)

    where :math:`\alpha` is the learning rate, and c is from `lr_multipliers`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of the gradient; at least 0.
      weight_decay: the L2 decay per step, per leaf, at least 0; see `decay_weights`.
        `normalized_decay` computes a decay from the number of steps.
      l1: the L1 decay per step, per leaf, at least 0.
      lr_multipliers: factors c of the learning rate, per leaf, at least 0; 1 for leaves
        that no pattern matches. They do not scale the decay, so a factor of 0 does not
        freeze a leaf; use `optax.partition` for that.
      schedule: eta_t, the common factor of update and decay: a number of at least 0, a
        schedule such as `cosine_restarts`, or a `WarmRestarts`; None for 1.
      amsgrad: whether to divide by the largest second moment so far.
      eps_hat: whether to add eps to the root of the uncorrected moment, as Keras does;
        see `scale_by_block_adam`.
      mu_dtype: dtype of the first moment of real leaves; None for the dtype of the
        leaf.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has a weight decay. Its state
      is the same as Adam's. If `schedule` is a schedule, this state is inside a
      `ScheduledState`.

    Warns:
      LargeDecayWarning: when built, if `weight_decay` is one number of 0.02 or more. At
        0.02 a weight is halved in 34 steps.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for a pattern that
        matches no path. At update, without `params`.

    Examples:
      The schedule scales the whole step. The learning rate scales only the part from
      the gradient:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.adamw(0.1, weight_decay=0.01, lr_multipliers={"head": 0.5},
      ...                    schedule=normopt.cosine_restarts(2, eta_min=0.5))
      >>> params = {"body": jnp.array(4.0), "head": jnp.array(4.0)}
      >>> grads, state = {"body": jnp.array(1.0), "head": jnp.array(1.0)}, None
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(grads, state, params)
      ...     print({name: round(float(u), 4) for name, u in updates.items()})
      {'body': -0.14, 'head': -0.09}
      {'body': -0.07, 'head': -0.045}

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, Algorithm 2.
    """
    moments = scale_by_block_adam(
        b1, b2, eps, amsgrad=amsgrad, eps_hat=eps_hat, mu_dtype=mu_dtype
    )
    warn_of_half_life("adamw", weight_decay)
    return _decoupled(
        moments, learning_rate, weight_decay, l1, lr_multipliers, schedule
    )


def sgdw(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    *,
    weight_decay: PerLeaf = 0.0,
    nesterov: bool = False,
    l1: PerLeaf = 0.0,
    lr_multipliers: PerLeaf = 1.0,
    schedule: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum SGD with a decay that depends on neither gradient nor learning rate.

    The decay follows `schedule` alone, as in the paper, and does not enter the
    momentum. If your decay comes from a library that multiplies it by the learning
    rate, multiply it by the learning rate before you pass it here.

    The chain is `scale_by_path -> learning rate -> eta_t -> momentum ->
    decay_weights(schedule=eta_t)`. It computes lines 6 to 9 of Algorithm 1 in the
    paper, with eta_t and the learning rate inside the momentum u:

    .. math::
      u &\leftarrow \beta u - \eta_t \alpha c \, g \\
      w &\leftarrow w + u - \eta_t (l_1 \, \mathrm{sign}(w) + \lambda w)

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: the decay of the momentum, :math:`\beta`, in [0, 1).
      weight_decay: the L2 decay per step, per leaf, at least 0; see `decay_weights`.
      nesterov: whether to use Nesterov momentum: the step is then
        :math:`\beta u - \eta_t \alpha c g` with the new u.
      l1: the L1 decay per step, per leaf, at least 0.
      lr_multipliers: factors c of the learning rate, per leaf, at least 0; 1 for leaves
        that no pattern matches. They do not scale the decay, so a factor of 0 does not
        freeze a leaf.
      schedule: eta_t: a number of at least 0, a schedule of the count such as
        `cosine_restarts`, or a `WarmRestarts`; None for 1.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has a weight decay. Its state
      is the momentum. If `schedule` is a schedule, this state is inside a
      `ScheduledState`.

    Warns:
      LargeDecayWarning: when built, if `weight_decay` is one number of 0.02 or more. At
        0.02 a weight is halved in 34 steps.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for a pattern that
        matches no path. At update, without `params`.

    Examples:
      Without gradients, each step removes the same fraction of the weights:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.sgdw(0.1, momentum=0.9, weight_decay=0.01)
      >>> params = jnp.array([8.0])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.zeros(1), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> round(float(params[0]), 4)  # 8 * 0.99**3
      7.7624

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, Algorithm 1.
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    warn_of_half_life("sgdw", weight_decay)

    def build(eta: Any) -> optax.GradientTransformation:
        return optax.chain(
            scale_by_path(lr_multipliers),
            scale_by_rate(learning_rate),
            scale_by_eta(eta),
            trace_on_tangent(momentum, nesterov=nesterov),
            decay_weights(weight_decay, l1, schedule=eta),
        )

    return scheduled(schedule, build)


def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    *,
    weight_decay: PerLeaf = 0.0,
    momentum_decay: float = 0.004,
    l1: PerLeaf = 0.0,
    lr_multipliers: PerLeaf = 1.0,
    schedule: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with Nesterov momentum that grows to its final value.

    As in `adamw`, the decay follows `schedule` alone, and depends on neither the
    gradient nor the learning rate.

    The chain is that of `adamw`, but with the moments of `scale_by_nadam`, which adds
    eps inside the root.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added inside the root, in the unit of the squared gradient; at least 0.
      weight_decay: the L2 decay per step, per leaf, at least 0; see `decay_weights`.
      momentum_decay: how fast the momentum grows from b1/2 to b1, at least 0.
      l1: the L1 decay per step, per leaf, at least 0.
      lr_multipliers: factors of the learning rate, per leaf, at least 0; 1 for leaves
        that no pattern matches. They do not scale the decay, so a factor of 0 does not
        freeze a leaf.
      schedule: eta_t, the common factor of update and decay: a number of at least 0, a
        schedule such as `cosine_restarts`, or a `WarmRestarts`; None for 1.
      mu_dtype: dtype of the first moment of real leaves; None for the dtype of the
        leaf.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has a weight decay. Its state
      is Adam's and one more number. If `schedule` is a schedule, this state is inside a
      `ScheduledState`.

    Warns:
      LargeDecayWarning: when built, if `weight_decay` is one number of 0.02 or more. At
        0.02 a weight is halved in 34 steps.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for a pattern that
        matches no path. At update, without `params`.

    Examples:
      If eta_t is zero, neither update nor decay changes the weights:

      >>> import jax.numpy as jnp
      >>> tx = normopt.nadamw(0.1, weight_decay=0.01, schedule=0.0)
      >>> updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> bool((updates == 0).all())
      True

    References:
      Dozat, "Incorporating Nesterov Momentum into Adam", 2016. Loshchilov and Hutter,
      "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101.
    """
    moments = scale_by_nadam(b1, b2, eps, momentum_decay, mu_dtype=mu_dtype)
    warn_of_half_life("nadamw", weight_decay)
    return _decoupled(
        moments, learning_rate, weight_decay, l1, lr_multipliers, schedule
    )


def _decoupled(
    moments: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: PerLeaf,
    l1: PerLeaf,
    lr_multipliers: PerLeaf,
    schedule: Any,
) -> optax.GradientTransformationExtraArgs:
    """Puts moments into the chain that AdamW and NadamW share."""
    check_learning_rate(learning_rate)

    def build(eta: Any) -> optax.GradientTransformation:
        return optax.chain(
            moments,
            scale_by_path(lr_multipliers),
            scale_by_rate(learning_rate),
            scale_by_eta(eta),
            decay_weights(weight_decay, l1, schedule=eta),
        )

    return scheduled(schedule, build)
