"""AdamP and SGDP: momentum without its radial part, on leaves that look invariant."""

from typing import Any

import optax

from normopt.checks import check_learning_rate, check_not_negative, check_number
from normopt.leafwise import say_once
from normopt.rules import PerLeaf, check_per_leaf, scaled
from normopt.transforms.moments import scale_by_block_adam
from normopt.transforms.projecting import EACH_CHANNEL, project_if_invariant
from normopt.transforms.scheduling import scale_by_rate
from normopt.transforms.tangent import trace_on_tangent


def adamp(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: PerLeaf = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    channel_axes: PerLeaf = EACH_CHANNEL,
    layer_axes: PerLeaf = (),
    cautious: bool = False,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose steps have no radial part on leaves that look scale-invariant.

    A leaf looks scale-invariant if its gradient is nearly orthogonal to its weights;
    for the exact test see `project_if_invariant`. The radial part of a step is its part
    along the weights.

    The weight decay is decoupled from the gradient and multiplied by the learning rate.
    For leaves that pass the test it is also multiplied by `wd_ratio`.

    The chain is `project_if_invariant(scale_by_block_adam) -> learning rate`, Algorithm
    2 of the paper. The moments are those of plain, element-wise Adam.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the bias-corrected second moment of an element, in the
        unit of the gradient; at least 0.
      weight_decay: the decay, at least 0, per leaf; the learning rate multiplies it.
      delta: the threshold of the test, at least 0; see `project_if_invariant`.
      wd_ratio: factor of the decay of leaves that pass the test, at least 0.
      nesterov: whether to use Nesterov momentum.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); (0,) for Equinox and torch layouts.
      layer_axes: the channel axes that index the layers of a stack, per leaf. Each
        layer is then tested separately. Example:
        `channel_axes=(0, -1), layer_axes=(0,)`.
      cautious: whether elements of Adam's direction (before learning rate and decay)
        become zero if their sign differs from that of the gradient; see
        `project_if_invariant`.
      mu_dtype: dtype of the first moment; None for the dtype of the leaf.

    Returns:
      An optimizer. Its `update` needs `params` if a leaf is tested or has a weight
      decay. Its state is the same as Adam's.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      The step of a scale-invariant weight stays orthogonal to it:

      >>> import jax.numpy as jnp
      >>> tx = normopt.adamp(0.1)
      >>> params = jnp.array([[3.0], [4.0], [0.0]])
      >>> grads = jnp.array([[-4.0], [3.0], [1e-3]])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(jnp.sum(updates * params)), 5)
      0.0

    References:
      Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for
      Momentum Optimizers on Scale-invariant Weights", 2021, arXiv 2006.08217,
      Algorithm 2.
    """
    check_learning_rate(learning_rate)
    moments = scale_by_block_adam(b1, b2, eps, nesterov=nesterov, mu_dtype=mu_dtype)
    chain = optax.chain(
        project_if_invariant(
            moments, weight_decay, delta, wd_ratio, channel_axes, layer_axes, cautious
        ),
        scale_by_rate(learning_rate),
    )
    return say_once(chain)


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    *,
    dampening: float = 0.0,
    weight_decay: PerLeaf = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    channel_axes: PerLeaf = EACH_CHANNEL,
    layer_axes: PerLeaf = (),
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum SGD whose steps have no radial part on scale-invariant leaves.

    A leaf counts as scale-invariant if it passes the test of `project_if_invariant`.
    The radial part of a step is its part along the weights.

    The weight decay is decoupled from the gradient. It is multiplied by the learning
    rate and divided by 1 - momentum, because momentum makes the steps of SGD
    1 / (1 - momentum) times as long. For leaves that pass the test it is also
    multiplied by `wd_ratio`.

    The chain is `project_if_invariant(trace) -> learning rate`, Algorithm 1 of the
    paper. The projection changes the step, but not the momentum in the state.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: the decay of the momentum, in [0, 1).
      dampening: the fraction of each gradient that does not enter the momentum, in
        [0, 1); also at the first step.
      weight_decay: the decay, at least 0, per leaf. It is multiplied by the learning
        rate and divided by 1 - momentum.
      delta: the threshold of the test, at least 0; see `project_if_invariant`.
      wd_ratio: factor of the decay of leaves that pass the test, at least 0.
      nesterov: whether to use Nesterov momentum.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); (0,) for Equinox and torch layouts.
      layer_axes: the channel axes that index the layers of a stack, per leaf. Each
        layer is then tested separately. Example:
        `channel_axes=(0, -1), layer_axes=(0,)`.
      cautious: whether elements of the momentum's direction (before learning rate and
        decay) become zero if their sign differs from that of the gradient; see
        `project_if_invariant`.

    Returns:
      An optimizer. Its `update` needs `params` if a leaf is tested or has a weight
      decay. Its state is the momentum.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      The step leaves out that part of the old momentum which is now radial:

      >>> import jax.numpy as jnp
      >>> tx = normopt.sgdp(0.1, momentum=0.9)
      >>> params = jnp.array([[1.0], [0.0]])
      >>> _, state = tx.update(jnp.array([[1.0], [1.0]]), tx.init(params), params)
      >>> updates, _ = tx.update(jnp.array([[0.0], [1.0]]), state, params)
      >>> [round(float(u), 4) for u in -updates[:, 0]]
      [0.0, 0.19]

    References:
      Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for
      Momentum Optimizers on Scale-invariant Weights", 2021, arXiv 2006.08217,
      Algorithm 1.
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    check_per_leaf("weight_decay", weight_decay, check_not_negative)
    trace = trace_on_tangent(momentum, dampening, nesterov=nesterov)
    decay = scaled(weight_decay, 1 / (1 - momentum))
    chain = optax.chain(
        project_if_invariant(
            trace, decay, delta, wd_ratio, channel_axes, layer_axes, cautious
        ),
        scale_by_rate(learning_rate),
    )
    return say_once(chain)
