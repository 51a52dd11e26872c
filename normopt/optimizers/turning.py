"""Optimizers that set how far blocks turn, around any that gives the direction.

Both rescale the steps of a complete optimizer to what the learning rate says, relative
to the weights, and bring the weights back to the length that they had at init.
"""

import optax

from normopt.checks import (
    check_flag,
    check_inner,
    check_learning_rate,
    check_number,
)
from normopt.leafwise import say_once
from normopt.rules import PerLeaf, output_channels, whole_leaves
from normopt.transforms.turning import behind, step_relatively, turn_blocks

# The defaults, as a configuration writes them: `optax.inject_hyperparams` would call
# the callables that they stand for with the step count.
WHOLE_LEAVES: PerLeaf = {"name": "whole_leaves", "min_ndim": 2}
OUTPUT_CHANNELS: PerLeaf = {"name": "output_channels", "axis": -1}


def hyperball(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    channel_axes: PerLeaf = WHOLE_LEAVES,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes steps relative to the norm of the weights, and keeps that norm fixed.

    A weight decay in `inner` changes the direction of the step, but cannot shorten the
    weights.

    .. math::
      w \leftarrow R \, \frac{w + \eta R \, u / \|u\|}{\|w + \eta R \, u / \|u\|\|},
      \qquad R = \|w_\mathrm{init}\|

    for each block, where u is the step of `inner` (its sign included) and :math:`\eta`
    the learning rate. So only the direction of u matters. If u is zero, the block does
    not change.

    Leaves without blocks get the step of `inner` unchanged, with the learning rate of
    `inner`. The same holds for blocks that are zero at init, because otherwise they
    would stay zero.

    For blocks, the steps are the same as those of the chain `inner ->
    normalize_blocks(eps=0) -> scale_by_param_norm -> optax.scale(learning_rate)` inside
    `retract_to_sphere` with `radius="initial"`. The last factor is positive, because
    the steps of `inner` descend already. If you write this chain yourself, **do not
    pass a number as the radius**: `radius=1.0` gives every block the norm 1, which is
    another optimizer.

    Args:
      inner: a complete optimizer, such as `optax.adam(3e-4)`.
      learning_rate: the norm of a step divided by the norm of the weights: a number of
        at least 0, or a schedule.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); by default `whole_leaves()`, which makes one block of each
        leaf of two or more dimensions.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks. Its state is the
      state of `inner`, and a `HyperballState` with a count and one float R per block.

    Warns:
      NoBlocksWarning: at init, if some leaf has two or more dimensions, but no leaf has
        blocks.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a negative learning rate. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      A step of a tenth of the norm turns the weights by atan(0.1), and keeps the norm:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.hyperball(optax.sgd(1.0), 0.1)
      >>> params, grads = jnp.array([[30.0, 40.0]]), jnp.array([[-4e-6, 3e-6]])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> after = optax.apply_updates(params, updates)
      >>> round(float(normopt.block_norms(after)), 4)
      50.0
      >>> round(float(normopt.block_angles(params, after)), 4)
      0.0997

    References:
      AdamH and MuonH of the marin project, and the hyperball hook of
      NVIDIA-NeMo/Emerging-Optimizers.
    """
    check_inner("hyperball", inner)
    check_learning_rate(learning_rate)
    if channel_axes is WHOLE_LEAVES:
        channel_axes = whole_leaves()
    link = step_relatively(learning_rate, channel_axes)
    return say_once(behind("hyperball", inner, link, channel_axes))


def rotational(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    channel_axes: PerLeaf = OUTPUT_CHANNELS,
    *,
    b2: float = 0.9,
    eps: float = 1e-8,
    center: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns each block, on average, by the learning rate in radians per step.

    A weight decay in `inner` has almost no effect, because `rotational` sets the norm
    and the angle per step directly. To find the angle that a run with weight decay
    would reach, use `equilibrium`.

    .. math::
      d &= P(C(u)), \qquad s \leftarrow b_2 s + (1 - b_2) \|d\|^2 \\
      w &\leftarrow R \, \frac{w'}{\|w'\|}, \qquad
      w' = w + \eta R \, \frac{d}{\sqrt{s / (1 - b_2^t)} + \epsilon}, \qquad
      R = \|w_\mathrm{init}\|

    where u is the step of `inner` (its sign included), C subtracts the mean of the
    block, P removes the part along w, and :math:`\eta` is the learning rate. The norm
    of d matters only relative to the average s: if d is longer than usual, the block
    turns by a larger angle.

    Leaves without blocks, and blocks that are zero at init, get the step of `inner`
    unchanged, with the learning rate of `inner`.

    Give `inner` a constant learning rate. If the learning rate of `inner` rises, its
    step u becomes longer, and the average s follows with a delay. So for some steps the
    blocks turn by too large an angle. If the learning rate of `inner` falls, the blocks
    turn by too small an angle.

    For blocks, the steps are the same as those of the chain `inner -> center_blocks ->
    project_tangent -> scale_by_block_adam(b1=0) -> scale_by_param_norm ->
    optax.scale(learning_rate)` inside `retract_to_sphere` with `radius="initial"`. The
    last factor is positive, because the steps of `inner` descend already. With
    `center`, call `centered` on the weights before training. If the norm of d is less
    than about a thousandth of the norm of u, the block does not turn, because the
    direction of d would be rounding error.

    Args:
      inner: a complete optimizer, such as `optax.adam(1e-3)`.
      learning_rate: the angle in radians by which a block turns in a step: a number of
        at least 0, or a schedule.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); by default `output_channels()` of all leaves of two or more
        dimensions.
      b2: decay of s, the average of squared norms, in [0, 1).
      eps: added to the root of s, in the unit of inner's steps; at least 0.
      center: whether to subtract the mean of each block from its step.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks. Its state is the
      state of `inner`, and a `RotationalState` with a count and two floats s and R per
      block.

    Warns:
      NoBlocksWarning: at init, if some leaf has two or more dimensions, but no leaf has
        blocks.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), or a pattern that matches no path. At update,
        without `params`.

    Examples:
      The radial part of this gradient changes neither angle nor norm:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.rotational(optax.sgd(1.0), 0.01, center=False)
      >>> params, grads = jnp.array([[2.0], [0.0]]), jnp.array([[5.0], [5.0]])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> after = optax.apply_updates(params, updates)
      >>> round(float(normopt.block_norms(after)), 4)
      2.0
      >>> round(float(normopt.block_angles(params, after)), 4)
      0.01

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212.
    """
    check_inner("rotational", inner)
    check_learning_rate(learning_rate)
    check_flag("center", center)
    if channel_axes is OUTPUT_CHANNELS:
        channel_axes = output_channels()
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    link = turn_blocks(learning_rate, channel_axes, b2, eps, center)
    return say_once(behind("rotational", inner, link, channel_axes))
