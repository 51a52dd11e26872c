"""NovoGrad: a second moment for each layer, and momentum of normalized gradients."""

from typing import Any

import optax

from normopt.checks import (
    check_flag,
    check_learning_rate,
    check_moment_dtype,
    check_number,
)
from normopt.leafwise import say_once
from normopt.rules import PerLeaf
from normopt.transforms.block_rms import scale_by_block_rms
from normopt.transforms.decaying import add_decay
from normopt.transforms.multiplying import average_gradients
from normopt.transforms.scheduling import scale_by_rate
from normopt.transforms.tangent import trace_on_tangent


def novograd(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    *,
    weight_decay: PerLeaf = 0.0,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    channel_axes: PerLeaf = (),
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum; each layer's gradient is divided by its running norm.

    The running norm is the root of an exponential average of the squared norms so far.

    The weight decay is added to the normalized gradient, before the momentum. So it is
    multiplied by the learning rate, and not divided by the second moment. Without
    `grad_averaging` the momentum is a sum of the past steps, so gradient and decay both
    act about 1 / (1 - b1) times as strongly.

    The chain is `scale_by_block_rms -> add_decay -> average_gradients -> learning rate
    -> momentum`, the loop of Algorithm 1 in the paper. As in TensorFlow Addons, the
    learning rate multiplies each gradient before the momentum. So if the learning rate
    changes, the past gradients in the momentum keep the old one. (`optax.novograd`
    multiplies after the momentum, and has the defaults b2 = 0.25 and eps = 1e-6.)

    .. math::
      v &\leftarrow b_2 v + (1 - b_2) \|g\|^2, \qquad
        v \leftarrow \|g\|^2 \text{ where } v = 0 \\
      m &\leftarrow b_1 m - \eta c \left( \frac{g}{\sqrt{v} + \epsilon}
        + \lambda w \right) \\
      w &\leftarrow w + m

    where c is 1. With `grad_averaging`, c is 1 - b1 from the second step on. The paper
    has four modes: with or without decay, and with or without averaging.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of the norm of a layer's gradient; at least 0.
      weight_decay: the decay :math:`\lambda`, per leaf, at least 0; 0 for leaves that
        no pattern matches.
      grad_averaging: whether the momentum is an average of gradients, as in Adam.
        Otherwise the momentum is a sum, and steps are about 1 / (1 - b1) times as long.
      amsgrad: whether to divide by the root of the largest v so far.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`): () for one second moment per leaf, (0,) for one per layer
        of a stack of layers.
      mu_dtype: dtype of the momentum of real leaves; None for the dtype of the leaf.
        The gradient and the decay are summed in the wider dtype of gradient and weight.
        If both are bfloat16, a decay below 1/512 of the normalized gradient is lost,
        unless `compensate_rounding` is around the optimizer.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has a weight decay. Its state
      is the momentum and one float per layer (two with `amsgrad`), about half as much
      as Adam's. The state also has a count if the learning rate is a schedule, and
      another one with `grad_averaging`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      The first step of a layer has a norm equal to the learning rate. The state is a
      momentum as large as the layer, and one second moment:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = normopt.novograd(0.1, eps=0.0)
      >>> params, grads = jnp.ones((3, 4)), jnp.full((3, 4), 1e-5)
      >>> state = tx.init(params)
      >>> updates, _ = tx.update(grads, state, params)
      >>> round(float(normopt.block_norms(updates)), 5)
      0.1
      >>> sorted(leaf.size for leaf in jax.tree.leaves(state))
      [1, 12]

    References:
      Ginsburg, Castonguay, Hrinchuk, Kuchaiev, Lavrukhin, Leary, Li, Nguyen, Zhang,
      Cohen, "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training
      of Deep Networks", 2019, arXiv 1905.11286, Algorithm 1.
    """
    check_learning_rate(learning_rate)
    check_number("b1", b1, 0, below=1)
    check_moment_dtype("mu_dtype", mu_dtype)
    check_flag("grad_averaging", grad_averaging)
    averaging = [average_gradients(b1)] if grad_averaging else []
    chain = optax.chain(
        scale_by_block_rms(b2, eps, channel_axes, amsgrad=amsgrad),
        add_decay(weight_decay),
        *averaging,
        scale_by_rate(learning_rate),
        trace_on_tangent(b1, accumulator_dtype=mu_dtype),
    )
    return say_once(chain)
