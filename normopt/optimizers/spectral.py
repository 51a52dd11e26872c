"""Muon and NorMuon: matrix steps whose singular values are all equal, or nearly so."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from normopt.checks import check_learning_rate, check_number
from normopt.matrices import (
    OUTPUT_MATRICES,
    Matrices,
    check_matrices,
    resolve_matrices,
    shape_factors,
)
from normopt.optimizers.resting import beside
from normopt.rules import PerLeaf
from normopt.transforms.decaying import add_decay
from normopt.transforms.moments import scale_by_block_adam
from normopt.transforms.multiplying import multiply_by_path
from normopt.transforms.orthogonalizing import orthogonalize
from normopt.transforms.scheduling import scale_by_rate
from normopt.transforms.step_lengths import keep_norm
from normopt.transforms.tangent import trace_on_tangent


def muon(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.95,
    *,
    nesterov: bool = True,
    weight_decay: PerLeaf = 0.0,
    matrices: PerLeaf = OUTPUT_MATRICES,
    steps: int = 5,
    coefficients: Any = "quintic",
    eps: float = 1e-7,
    scale: PerLeaf = "shape",
    spread: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum whose steps are orthogonal matrices.

    The weight decay is multiplied by the learning rate, as in every Muon, and does not
    enter the momentum.

    The chain is
    `trace_on_tangent -> orthogonalize -> scale -> add_decay -> learning rate`. Without
    blocks, as here, `trace_on_tangent` is `optax.trace`. For a matrix with n inputs and
    k outputs it computes

    .. math::
      m &\leftarrow \beta m + g \\
      w &\leftarrow w - \eta \left( c \, \mathrm{orthogonalize}(g + \beta m)
        + \lambda w \right)

    Without `nesterov`, m replaces :math:`g + \beta m`. For the place of eps see the
    formula of `orthogonalize`. Most singular values of a step are near :math:`\eta c`;
    see `orthogonalize` for the exceptions.

    Args:
      learning_rate: a number of at least 0, or a schedule. With `scale="rms"` Adam's
        learning rate fits.
      momentum: the decay of the momentum, :math:`\beta`, in [0, 1).
      nesterov: whether to use Nesterov momentum.
      weight_decay: :math:`\lambda`, per leaf, at least 0.
      matrices: `(input axes, output axes)` or None, per leaf; see `orthogonalize`. By
        default every leaf of two or more dimensions is a matrix, also embeddings, heads
        and stacked biases. To train these with `rest`, pass a mapping by path.
      steps: the number of iterations of `orthogonalize`, at least 1.
      coefficients: the coefficients of the iteration; see `orthogonalize`.
      eps: added to the norm of the momentum, at least 0. The momentum here is a sum. If
        your eps was tuned for a momentum that is an average, divide it by
        :math:`1 - \beta`.
      scale: c, per leaf: a number, None for 1, or a name: "shape" for
        :math:`\sqrt{\max(1, k / n)}`, "spectral" for :math:`\sqrt{k / n}`, "rms" for
        :math:`0.2 \sqrt{\max(n, k)}`. With "rms", elements change about as much as with
        Adam.
      spread: the name of a mesh axis, such as "data", or several names. The devices of
        these axes share the work on matrices of equal shape; see `orthogonalize`.
      rest: the optimizer for all leaves without matrices, such as `optax.adamw(3e-4)`.

    Returns:
      An optimizer. Its `update` needs `params` if a matrix has a weight decay. Its
      state is the momentum and the state of `rest`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), for a pattern that matches no path, or for
        leaves without matrices if there is no `rest`.

    Examples:
      The gradient is 90 times larger along one axis; the step is the same along both:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.muon(0.1, coefficients="polar_express", steps=8,
      ...                   rest=optax.adam(1e-3))
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> grads = {"kernel": jnp.diag(jnp.array([9.0, 0.1])), "bias": jnp.ones(2)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> bool(jnp.allclose(updates["kernel"], -0.1 * jnp.eye(2), atol=1e-3))
      True

    References:
      Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for
      hidden layers in neural networks", 2024. Liu et al., "Muon is Scalable for LLM
      Training", 2025, arXiv 2502.16982 ("rms").
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    chain = optax.chain(
        trace_on_tangent(momentum, nesterov=nesterov),
        orthogonalize(
            matrices, steps=steps, coefficients=coefficients, eps=eps, spread=spread
        ),
        multiply_by_path("muon", "scale", shape_factors(scale, matrices)),
        add_decay(weight_decay),
        scale_by_rate(learning_rate),
    )
    return beside(rest, chain, _has_matrices(matrices), "muon")


def normuon(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.95,
    b2: float = 0.95,
    *,
    nesterov: bool = True,
    weight_decay: PerLeaf = 0.0,
    matrices: PerLeaf = OUTPUT_MATRICES,
    steps: int = 5,
    coefficients: Any = "quintic",
    eps: float = 1e-7,
    scale: PerLeaf = "shape",
    spread: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon with a second moment for each output of a matrix.

    The weight decay is multiplied by the learning rate, as in every Muon, and does not
    enter the momentum.

    The chain is that of `muon`, with `keep_norm(scale_by_block_adam)` after
    `orthogonalize`. Let O be the matrix from `orthogonalize`. The norm of O is taken
    for each output, over its inputs:

    .. math::
      v &\leftarrow b_2 v + (1 - b_2) \|O\|^2 \\
      O &\leftarrow \frac{O}{\sqrt{v}}, \text{ rescaled to its old Frobenius norm.}

    So all outputs move equally far, on average over the steps. No eps is added to the
    root.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: the decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      nesterov: whether to use Nesterov momentum.
      weight_decay: per leaf, at least 0.
      matrices: `(input axes, output axes)` or None, per leaf; see `orthogonalize`.
      steps: the number of iterations of `orthogonalize`, at least 1.
      coefficients: the coefficients of the iteration; see `orthogonalize`.
      eps: added to the norm of the momentum, which is a sum; at least 0; see `muon`.
      scale: per leaf; see `muon`.
      spread: the mesh axes whose devices share the matrices; see `orthogonalize`.
      rest: the optimizer for all leaves without matrices.

    Returns:
      An optimizer. Its `update` needs `params` if a matrix has a weight decay. Its
      state is the momentum, one number for each output, and the state of `rest`.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range. At init, for axes that do
        not fit (see `normalize_blocks`), for a pattern that matches no path, or for
        leaves without matrices if there is no `rest`.

    Examples:
      In the first step, the changes of all outputs have the same norm:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = normopt.normuon(0.1)
      >>> params = jnp.ones((2, 3))
      >>> grads = jax.random.normal(jax.random.key(0), (2, 3))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> lengths = normopt.block_norms(updates, (-1,))
      >>> bool(jnp.allclose(lengths, lengths[0]))
      True

    References:
      Li et al., "NorMuon: Making Muon more efficient and scalable", 2025, arXiv
      2510.05491, Algorithm 1, without its eps.
    """
    check_learning_rate(learning_rate)
    check_number("momentum", momentum, 0, below=1)
    check_number("b2", b2, 0, below=1)
    each_output = scale_by_block_adam(0, b2, 0.0, _blocks(matrices, Matrices.rows))
    chain = optax.chain(
        trace_on_tangent(momentum, nesterov=nesterov),
        orthogonalize(
            matrices, steps=steps, coefficients=coefficients, eps=eps, spread=spread
        ),
        keep_norm(each_output, _blocks(matrices, Matrices.stack)),
        multiply_by_path("normuon", "scale", shape_factors(scale, matrices)),
        add_decay(weight_decay),
        scale_by_rate(learning_rate),
    )
    return beside(rest, chain, _has_matrices(matrices), "normuon")


def _blocks(matrices: PerLeaf, axes_of: Any) -> PerLeaf:
    """Gives the channel axes that matrices have: of each of them, or of their rows."""

    def read(params: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        found = resolve_matrices(matrices, params)
        return treedef.unflatten(
            None if one is None else axes_of(one, np.ndim(leaf))
            for one, leaf in zip(found, leaves, strict=True)
        )

    return read


def _has_matrices(matrices: PerLeaf) -> Callable[[Any], list[bool]]:
    check_matrices(matrices)
    return lambda params: [
        one is not None for one in resolve_matrices(matrices, params)
    ]
