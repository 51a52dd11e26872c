"""Scion: steepest descent in a norm that is chosen for each leaf."""

from typing import Any

import optax

from normopt.checks import check_flag, check_learning_rate, check_number
from normopt.optimizers.resting import beside
from normopt.rules import PerLeaf, check_per_leaf
from normopt.transforms.decaying import add_decay
from normopt.transforms.descending import check_dual, resolve_descents, steepest
from normopt.transforms.multiplying import multiply_by_path
from normopt.transforms.scheduling import scale_by_rate
from normopt.transforms.tangent import trace_on_tangent


def scion(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    *,
    norms: PerLeaf,
    radii: PerLeaf = 1.0,
    eps: float = 1e-8,
    constrained: bool = False,
    spread: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps of a fixed size in a chosen norm, along an average of the gradients.

    With `constrained` the weight decay is 1, multiplied by the learning rate. It keeps
    the weights inside a ball with a radius from `radii`. Otherwise there is no weight
    decay.

    The chain is `trace_on_tangent -> steepest -> radii -> add_decay(1) if constrained
    -> learning rate`. Without blocks, as here, `trace_on_tangent` is momentum:

    .. math::
      m &\leftarrow \beta m + (1 - \beta) g \\
      w &\leftarrow w - \eta \, r \, \mathrm{dual}(m) \quad\text{or}\quad
        w \leftarrow (1 - \eta) w - \eta \, r \, \mathrm{dual}(m)

    where dual(m) is the output of `steepest` for m, and r is from `radii`. The second
    form is for `constrained`. It is a Frank-Wolfe step: weights that start in the ball
    of radius r stay there if :math:`\eta \le 1`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: :math:`\beta`, in [0, 1). In the authors' code, `momentum` means
        :math:`1 - \beta` instead.
      norms: per leaf, the norm of the leaf, in a form that `steepest` accepts. The
        authors take "spectral" for hidden layers, "avg_l2" for biases, and "max" for
        the first and last layer of a language model.
      radii: r, any factor of at least 0, per leaf. The authors take
        :math:`\sqrt{\mathrm{out} / \mathrm{in}}` for the spectral norm, and 1 / in for
        "max", where a kernel has `in` inputs and `out` outputs.
      eps: added to the divisor, at least 0; see `steepest`.
      constrained: whether to keep the norm of the weights within the radius.
      spread: the mesh axes whose devices share the matrices of the spectral norm; see
        `orthogonalize`.
      rest: the optimizer for all leaves without a norm, such as `optax.adamw(3e-4)`.

    Returns:
      An optimizer whose `update` needs `params` if `constrained`. Its state is the
      average, and the state of `rest`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range or a norm without a dual. At
        init, for axes that do not fit (see `normalize_blocks`), for a pattern that
        matches no path, or for leaves without a norm if there is no `rest`.

    Examples:
      With `constrained`, the weights never leave the ball of radius 2:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.scion(0.1, norms="max", radii=2.0, constrained=True)
      >>> params = jnp.array([0.5, -1.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(jnp.array([1.0, -3.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params.round(3).tolist()
      [-2.0, 2.0]

    References:
      Pethick, Xie, Antonakopoulos, Zhu, Silveti-Falls, Cevher, "Training Deep Learning
      Models with Norm-Constrained LMOs", 2025, arXiv 2502.07529, Algorithms 1 and 2.
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    check_flag("constrained", constrained)
    check_per_leaf("norms", norms, check_dual)
    chain = optax.chain(
        trace_on_tangent(momentum, dampening=momentum),
        steepest(norms, eps=eps, spread=spread),
        multiply_by_path("scion", "radii", radii),
        add_decay(1.0 if constrained else 0.0),
        scale_by_rate(learning_rate),
    )

    def has_norm(params: Any) -> list[bool]:
        descents = resolve_descents(norms, (), params, "norms")
        return [one is not None for one in descents]

    return beside(rest, chain, has_norm, "scion")
