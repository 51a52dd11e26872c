"""Optimizers for scale-invariant weights: AdamS, AdamSRT, SGD-MRT, AdamG."""

from typing import Any

import jax
import optax

from normopt.blocks import resolve_proper_axes
from normopt.checks import (
    check_learning_rate,
    check_not_negative,
    check_number,
)
from normopt.leafwise import say_once
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.transforms.decaying import add_decay
from normopt.transforms.moments import has_first_moment, scale_by_block_adam
from normopt.transforms.multiplying import scale_by_block_size
from normopt.transforms.scheduling import scale_by_rate
from normopt.transforms.sphere import retract_to_sphere
from normopt.transforms.tangent import trace_on_tangent


def adams(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: PerLeaf = 0.0,
    channel_axes: PerLeaf = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment per block, so steps keep the momentum's direction.

    The weight decay is added to the gradient (L2), as in the paper. So the moments
    include the decay, and the learning rate multiplies it.

    The chain is `add_decay -> scale_by_block_adam -> scale_by_block_size -> learning
    rate`, the paper's Adam-S. A block of d elements takes the step

    .. math::
      w \leftarrow w - \eta \sqrt{d} \,
        \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}.

    Here v is a sum over the block. The factor :math:`\sqrt{d}` makes up for that, so a
    step is about as long as Adam's and the same learning rate fits. With
    `channel_axes=None` the steps are those of `optax.adam`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of a block's gradient norm; at least 0.
      weight_decay: L2 decay, per leaf, at least 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `find_scale_invariance` finds them. Leaves without blocks
        get plain Adam.
      mu_dtype: dtype of the first moment; None for the dtype of the leaf.

    Returns:
      An optimizer. Its `update` needs `params` if a leaf has a weight decay.
      For leaves with blocks the state is half as large as Adam's.

    Warns:
      NoBlocksWarning: at init, if `channel_axes` is given and some leaf has two or more
        dimensions, but no leaf has blocks.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      The first step of a block is along the gradient. Its norm is sqrt(d) times the
      learning rate, as with Adam:

      >>> import jax.numpy as jnp
      >>> tx = normopt.adams(0.1, eps=0.0, channel_axes=())
      >>> params, grads = jnp.ones(4), jnp.array([3.0, 4.0, 0.0, 0.0])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(u), 4) for u in -updates[:2]]
      [0.12, 0.16]

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, Adam-S.
    """
    check_learning_rate(learning_rate)
    chain = optax.chain(
        add_decay(weight_decay),
        scale_by_block_adam(b1, b2, eps, channel_axes, mu_dtype=mu_dtype),
        scale_by_block_size(channel_axes),
        scale_by_rate(learning_rate),
    )
    return say_once(chain)


def adamsrt(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: PerLeaf = 0.0,
    channel_axes: PerLeaf = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamS whose moments are corrected when the weights turn or change their norm.

    The weight decay is added to the gradient (L2), as in the paper. So the moments
    include the decay, and the learning rate multiplies it.

    The chain is that of `adams`, but with `scale_by_block_adam(tangent=True)`. It is
    the paper's Adam-SRT. Before each step the part of the first moment along the
    weights is removed, and the second moment is rescaled to the present norm of the
    weights. (The paper does both after the previous step, with the same result.) So for
    scale-invariant weights w the norm changes nothing but the effective learning rate
    :math:`\eta / \|w\|`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of a block's gradient norm; at least 0.
      weight_decay: L2 decay, per leaf, at least 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `find_scale_invariance` finds them. Leaves without blocks
        get plain Adam.
      mu_dtype: dtype of the first moment; None for the dtype of the leaf.

    Returns:
      An optimizer. Its `update` needs `params` if a leaf has blocks or a weight decay.
      For leaves with blocks the state is half as large as Adam's.

    Warns:
      NoBlocksWarning: at init, if `channel_axes` is given and some leaf has two or more
        dimensions, but no leaf has blocks.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      This loss depends on the direction of w alone. If w is twice as large, its
      gradient is half as large. If the learning rate is twice as large, too, then w
      stays exactly twice as large in training:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> loss = lambda w: w[0] / jnp.sqrt(jnp.sum(w**2))
      >>> def train(w, rate):
      ...     tx = normopt.adamsrt(rate, eps=0.0, channel_axes=())
      ...     state = tx.init(w)
      ...     for _ in range(5):
      ...         updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...         w = optax.apply_updates(w, updates)
      ...     return w
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> bool(jnp.allclose(train(2 * w, 0.2), 2 * train(w, 0.1)))
      True

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, Adam-SRT.
    """
    check_learning_rate(learning_rate)
    chain = optax.chain(
        add_decay(weight_decay),
        scale_by_block_adam(b1, b2, eps, channel_axes, tangent=True, mu_dtype=mu_dtype),
        scale_by_block_size(channel_axes),
        scale_by_rate(learning_rate),
    )
    return say_once(chain)


def sgdmrt(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    *,
    dampening: float = 0.0,
    weight_decay: PerLeaf = 0.0,
    channel_axes: PerLeaf = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum that stays orthogonal to scale-invariant weights.

    The weight decay is added to the gradient (L2), as in the paper. So the momentum
    includes the decay, and the learning rate multiplies it.

    The chain is `add_decay -> trace_on_tangent -> learning rate`, the paper's SGD-MRT.
    With `channel_axes=None` and no dampening the steps are those of `optax.sgd` with
    momentum.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: the decay of the momentum, in [0, 1).
      dampening: the fraction of each gradient that does not enter the momentum, in
        [0, 1); also at the first step.
      weight_decay: L2 decay, per leaf, at least 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `find_scale_invariance` finds them.

    Returns:
      An optimizer. Its `update` needs `params` if a leaf has blocks or a weight decay.
      Its state is the momentum.

    Warns:
      NoBlocksWarning: at init, if `channel_axes` is given and some leaf has two or more
        dimensions, but no leaf has blocks.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      If the gradient becomes zero, the momentum continues, but only its part orthogonal
      to the weights:

      >>> import jax.numpy as jnp
      >>> tx = normopt.sgdmrt(0.1, momentum=0.9, channel_axes=())
      >>> east, north = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> _, state = tx.update(east + north, tx.init(east), east)
      >>> updates, _ = tx.update(jnp.zeros(2), state, east)
      >>> [round(float(u), 4) for u in -updates]
      [0.0, 0.09]

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382, SGD-MRT.
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    chain = optax.chain(
        add_decay(weight_decay),
        trace_on_tangent(momentum, dampening, channel_axes),
        scale_by_rate(learning_rate),
    )
    return say_once(chain)


def adamg(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: PerLeaf = 0.0,
    channel_axes: PerLeaf = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment for each block, on weights of unit length.

    The weight decay is added to the gradient (L2) of leaves without blocks. Blocks get
    no decay, because their norm is fixed at 1.

    The chain is `retract_to_sphere(add_decay -> scale_by_block_adam -> learning
    rate)`. Unlike `adams` it has no factor :math:`\sqrt{d}`, so the learning rate is
    the angle of a step. Leaves without blocks get plain Adam.

    Args:
      learning_rate: a number of at least 0, or a schedule: about the angle, in radians,
        by which a block turns in a step.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, in the unit of a block's gradient norm; at least 0.
      weight_decay: L2 decay of leaves without blocks, per leaf, at least 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `find_scale_invariance` finds them. The norm of these
        blocks is set to 1, so the loss must not depend on it.
      mu_dtype: dtype of the first moment; None for the dtype of the leaf.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks or a weight decay.
      Blocks have norm 1 from the first step on, up to rounding. The rounding error is
      larger for blocks that start with a large norm; see `retract_to_sphere`.

    Warns:
      NoBlocksWarning: at init, if `channel_axes` is given and some leaf has two or more
        dimensions, but no leaf has blocks.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.adamg(0.01, channel_axes=(-1,))
      >>> params = grads = jnp.array([[3.0, 0.5], [4.0, 0.0]])
      >>> updates, _ = tx.update(grads[::-1], tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> [round(float(n), 5) for n in normopt.block_norms(params, (-1,))]
      [1.0, 1.0]

    References:
      Cho and Lee, "Riemannian approach to batch normalization", 2017, arXiv 1709.09603,
      Adam-G, as implemented by the authors of Roburin, de Mont-Marin, Bursuc, Marlet,
      Pérez, Aubry, "Spherical Perspective on Learning with Normalization Layers", 2020,
      arXiv 2006.13382.
    """
    check_learning_rate(learning_rate)
    check_per_leaf("weight_decay", weight_decay, check_not_negative)
    inner = optax.chain(
        add_decay(_off_the_sphere(weight_decay, channel_axes)),
        scale_by_block_adam(b1, b2, eps, channel_axes, mu_dtype=mu_dtype),
        scale_by_rate(learning_rate),
    )
    moment = "mu" if has_first_moment(b1) else None
    return say_once(retract_to_sphere(inner, channel_axes, moment=moment))


def _off_the_sphere(weight_decay: PerLeaf, channel_axes: PerLeaf) -> PerLeaf:
    """Gives the decay of leaves without blocks, and none to those on the sphere."""

    def decays_of(params: Any) -> Any:
        axes = resolve_proper_axes(channel_axes, params)
        decays = per_leaf("weight_decay", weight_decay, params, 0.0, check_not_negative)
        return jax.tree.structure(params).unflatten(
            decay if leaf_axes is None else 0.0
            for decay, leaf_axes in zip(decays, axes, strict=True)
        )

    return decays_of
