"""Nadam's moments: Nesterov momentum with a momentum that grows to its final value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.checks import check_moment_dtype, check_number
from normopt.keeping import PerElement, moment_dtype, second_moment_dtype
from normopt.leafwise import leafwise
from normopt.numerics import positive_sqrt, saturated, squared


class ScaleByNadamState(NamedTuple):
    """State of `scale_by_nadam`."""

    count: jax.Array  # int32 scalar: updates done
    mu_product: jax.Array  # float scalar: the product of all mu_t so far
    mu: Any  # params' structure and shapes, in `mu_dtype`
    nu: Any  # params' structure and shapes, real, float32 or wider


def scale_by_nadam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    momentum_decay: float = 0.004,
    *,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales by Adam's moments, with Nesterov momentum on a warm-up schedule.

    .. math::
      \mu_t &= b_1 (1 - \tfrac{1}{2} \, 0.96^{\psi t}), \qquad
        \Pi_t = \mu_1 \cdots \mu_t \\
      m &\leftarrow b_1 m + (1 - b_1) g, \qquad v \leftarrow b_2 v + (1 - b_2) g^2 \\
      g &\leftarrow \frac{1}{\sqrt{v / (1 - b_2^t) + \epsilon}} \left(
        (1 - \mu_t) \frac{g}{1 - \Pi_t} + \mu_t \frac{m}{1 - \Pi_t \mu_{t+1}} \right)

    This is the form of keras-adamw: m is a plain average with decay b1, eps is added
    inside the root, and the momentum term has the factor :math:`\mu_t`. In Dozat's
    paper and in the Nadam of Keras this factor is :math:`\mu_{t+1}`.

    Args:
      b1: decay of the first moment, in [0, 1), and the value that :math:`\mu_t` grows
        to.
      b2: decay of the second moment, in [0, 1).
      eps: added inside the root, in the unit of the squared gradient; at least 0. The
        default of 1e-7 acts like 3e-4 outside the root.
      momentum_decay: :math:`\psi`, how fast :math:`\mu_t` grows, at least 0; at 0 it
        stays :math:`b_1 / 2`.
      mu_dtype: dtype of the first moment of real leaves; None for the dtype of the
        leaf.

    Returns:
      A link. Its state is a `ScaleByNadamState`: Adam's two moments and a number.
      Updates keep their structure and shapes, and get the wider dtype of update and
      parameter.

    Raises:
      TypeError: when built, if an option is not a number.
      ValueError: when built, for a number out of its range. At update, with params of
        another shape.

    Examples:
      In the first step of Adam all elements have size 1. Nesterov momentum makes them a
      little larger:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_nadam(eps=0.0)
      >>> grads = jnp.array([3.0, -1e-3])
      >>> updates, _ = link.update(grads, link.init(grads))
      >>> [round(float(u), 4) for u in updates]
      [1.0564, -1.0564]

    References:
      Dozat, "Incorporating Nesterov Momentum into Adam", 2016, Algorithm 2. Loshchilov
      and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101.
    """
    check_number("b1", b1, 0, below=1)
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    check_number("momentum_decay", momentum_decay, 0)
    check_moment_dtype("mu_dtype", mu_dtype)

    def momentum_at(count: Any) -> Any:
        steps = jnp.asarray(count, float)
        return b1 * (1 - 0.5 * 0.96 ** (momentum_decay * steps))

    def advance(state: Any) -> dict[str, Any]:
        product = state.mu_product * momentum_at(state.count)
        return {"mu_product": product.astype(state.mu_product.dtype)}

    def share(state: Any) -> tuple[Any, ...]:
        momentum, product = momentum_at(state.count), state.mu_product
        ahead = product * momentum_at(optax.safe_increment(state.count))
        of_gradient, of_moment = (1 - momentum) / (1 - product), momentum / (1 - ahead)
        correction = 1 - b2**state.count
        return b1, 1 - b1, b2, 1 - b2, eps, of_gradient, of_moment, correction

    like_leaf = moment_dtype(mu_dtype)
    return leafwise(
        "scale_by_nadam",
        _step,
        state=ScaleByNadamState,
        start=lambda: {
            "count": jnp.zeros([], jnp.int32),
            "mu_product": jnp.ones([], float),
        },
        keeps={"mu": PerElement(like_leaf), "nu": PerElement(second_moment_dtype)},
        advance=advance,
        share=share,
    )


def _step(g, w, axes, option, kept, shared):
    """Takes the direction and the moments of one leaf."""
    b1, b1_rest, b2, b2_rest, eps, of_gradient, of_moment, correction = shared
    mu, nu = kept
    mu = b1 * mu + b1_rest * g
    nu = saturated(b2 * nu + b2_rest * squared(g))
    ahead = of_gradient * g + of_moment * mu
    return ahead / positive_sqrt(nu / correction + eps), (mu, nu)
