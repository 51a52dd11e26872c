"""A link that brings matrices back to orthogonal ones after any optimizer's step."""

from typing import Any

import optax

from normopt.checks import check_number
from normopt.leafwise import Option, around
from normopt.matrices import (
    check_matrices,
    check_scale,
    resolve_matrices,
    shape_factors,
)
from normopt.orthogonal import polar_factor, triples_of
from normopt.rules import PerLeaf
from normopt.spreading import mesh_axes


def retract_to_stiefel(
    inner: optax.GradientTransformation,
    matrices: PerLeaf,
    *,
    scale: PerLeaf = 1.0,
    steps: int = 5,
    coefficients: Any = "quintic",
    eps: float = 1e-7,
    spread: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes matrices orthogonal again after each whole step of `inner`.

    .. math::
      w' = w + u, \qquad u \leftarrow c \, \mathrm{orthogonalize}(w') - w

    where u is first the step of `inner`. The new weights are c times the orthogonal
    matrix that is nearest to w' (its polar factor), as `orthogonalize` approximates it:
    closely if the weights were orthogonal before the step, more coarsely in the first
    step from other weights. This must be the last link of a chain, with the learning
    rate inside. A matrix of zeros stays zero if its step is zero.

    Args:
      inner: an optimizer, learning rate included.
      matrices: `(input axes, output axes)` or None, per leaf; see `orthogonalize`.
        Leaves without matrices get inner's step unchanged.
      scale: c, per leaf: a number of at least 0, or one of the names of `scale` in
        `muon`; 1 for leaves that no pattern matches.
      steps: the number of iterations of `orthogonalize`, at least 1.
      coefficients: the coefficients of the iteration; see `orthogonalize`.
      eps: added to the Frobenius norm of the weights, in their unit; at least 0.
      spread: the mesh axes whose devices share the matrices; see `orthogonalize`.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has matrices. Its state is
      the state of `inner`. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a number out of its range or an unknown name. At init,
        for axes that do not fit (see `normalize_blocks`), or a pattern that matches no
        path. At update, without `params` or with params of another shape.

    Examples:
      After any step, rows and columns are orthogonal again:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.retract_to_stiefel(optax.sgd(0.1), ((0,), (1,)), steps=8,
      ...                                 coefficients="polar_express")
      >>> params = jnp.eye(3)
      >>> grads = jax.random.normal(jax.random.key(0), (3, 3))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> bool(jnp.allclose(params @ params.T, jnp.eye(3), atol=1e-2))
      True

    References:
      Yang and Lai, "Manifold constrained steepest descent", 2026, arXiv 2601.21487
      (SPEL). Bernstein and Newhouse, "Modular Duality in Deep Learning", 2024, arXiv
      2410.21265, which projects linear layers as `scale="spectral"` does.
    """
    check_matrices(matrices)
    check_number("eps", eps, 0)
    return around(
        "retract_to_stiefel",
        inner,
        _retract,
        resolve=lambda _, tree: resolve_matrices(matrices, tree),
        options={"scale": Option(shape_factors(scale, matrices), 1.0, check_scale)},
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        share=lambda state: (eps,),
        static={"triples": triples_of(steps, coefficients)},
        batched=True,
        spread=mesh_axes(spread),
    )


def _retract(g, u, w, matrices, option, kept, shared, *, triples):
    (scale,), (eps,) = option, shared
    return scale * polar_factor(w + u, matrices, triples, eps) - w, kept
