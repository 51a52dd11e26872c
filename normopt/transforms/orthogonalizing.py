"""The link of Muon: steps whose singular values are all equal, or nearly so."""

from typing import Any

import optax

from normopt.checks import check_moment_dtype, check_number
from normopt.leafwise import leafwise
from normopt.matrices import check_matrices, resolve_matrices
from normopt.orthogonal import polar_factor, triples_of
from normopt.rules import PerLeaf
from normopt.spreading import mesh_axes


def orthogonalize(
    matrices: PerLeaf,
    *,
    steps: int = 5,
    coefficients: Any = "quintic",
    eps: float = 1e-7,
    dtype: Any = None,
    spread: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the matrices of the updates by matrices with singular values near 1.

    .. math::
      X &\leftarrow \frac{u}{\|u\|_F + \epsilon}, \qquad
        X \leftarrow (a + b X X^T + c (X X^T)^2) X \text{ for each } (a, b, c) \\
      u &\leftarrow X \approx U V^T \text{ of } u = U S V^T

    :math:`U V^T` is the direction of steepest descent in the spectral norm. The
    iteration approximates this direction. Each iteration has its own coefficients (a,
    b, c); see `coefficients`. A matrix of zeros stays zero, for every `eps`.

    Singular values much smaller than the largest one may stay below 1. The largest ones
    are at most:

    ===============  ==================  =============
    `coefficients`   `steps`             largest value
    ===============  ==================  =============
    "simple"         any                 1.21
    "quintic"        a multiple of 5     1.21
    "quintic"        another number      1.28
    "polar_express"  5 or more           1.21
    "polar_express"  fewer               2
    ===============  ==================  =============

    On several devices, the amount of data that a step sends depends on the sharding of
    the matrices:

    - Replicated: nothing is sent, and every device multiplies all matrices.
    - Sharded along inputs or outputs: in every iteration, the devices exchange matrices
      or sums of products.
    - With `spread`: each matrix is sent to one device, which does all iterations. The
      result is sent back to the devices that need it. If the matrices are replicated,
      only the results are sent.

    Example: 16 matrices of 512 x 512 and 8 of 512 x 2048, in float32 (50 MB), on 8
    devices. In a step, each device sends 624 MB if the matrices are sharded along
    inputs, 367 MB if they are sharded along outputs, and 11 MB with `spread`. If the
    matrices are replicated, each device sends 44 MB with `spread`, and multiplies an
    eighth of the matrices.

    Example: 256 matrices of 512 x 512 in four stacks of layers, multiplied in bfloat16,
    on 256 TPU chips (v5e, compiled and not run). In a step, each chip sends 1.3 GB if
    the matrices are sharded along inputs, 2.7 GB if they are sharded along outputs, and
    2.1 MB with `spread`.

    Args:
      matrices: `(input axes, output axes)` of a leaf, or None, per leaf: ((0,), (1,))
        for dense kernels of Flax, ((0, 1, 2), (3,)) for convolutions, ((1,), (2,)) for
        a stack of layers (layers, in, out), ((0,), (2,)) for each head of (features,
        heads, size). All other axes index separate matrices. `output_matrices` is a
        simple choice. Instead of a pair, you can pass a `MuonDimensionNumbers` of
        optax. Leaves without matrices stay unchanged.
      steps: the number of iterations, at least 1.
      coefficients: the coefficients (a, b, c) of the iterations, as a name or as your
        own sequence of triples, one triple per step. The name "simple" has the one
        triple of the original Muon. "quintic" has five triples; step 6 uses the first
        one again. "polar_express" has eight triples. Where there are more steps than
        triples, "polar_express" and your own sequence repeat the last triple.
      eps: added to the Frobenius norm, in the unit of the updates; at least 0.
      dtype: the dtype in which real matrices are multiplied, such as "bfloat16". None
        is float32, or the dtype of the leaf if it is wider, in full precision.
      spread: the name of a mesh axis, such as "data", or several names in any order.
        The devices of these axes share the matrices of leaves of equal shape and axes.
        If a shape has only one matrix, this matrix is not sent: it is multiplied with
        the sharding that it has. Name every mesh axis that shards inputs or outputs. If
        axes that index matrices are sharded, the matrices are gathered first, so avoid
        this. The mesh is that of the arrays. Without a mesh, or on one device, `spread`
        has no effect. Compute and apply the updates in one `jax.jit`. If a `jax.jit`
        returns the updates, set its `out_shardings`, because otherwise the compiler
        does not know their sharding.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter. Matrices of leaves of equal shape and axes are
      multiplied as one batch.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for an unknown name of coefficients or a number out of its
        range. At init, for axes that do not fit (see `normalize_blocks`), for an axis
        of `spread` that the mesh lacks, or for a pattern that matches no path. At
        update, inside `jax.shard_map` over an axis of `spread`.

    Examples:
      All singular values become about 1:

      >>> import jax.numpy as jnp
      >>> link = normopt.orthogonalize(((0,), (1,)), steps=8,
      ...                              coefficients="polar_express")
      >>> updates, _ = link.update(jnp.diag(jnp.array([9.0, -0.1])), link.init(None))
      >>> updates.round(2).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    References:
      Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for
      hidden layers in neural networks", 2024 ("simple"). Amsel, Persson, Musco, Gower,
      "The Polar Express", 2025, arXiv 2505.16932. The triples of "quintic" and
      "polar_express" have the numbers that Levanter and Emerging-Optimizers use.
    """
    check_matrices(matrices)
    check_number("eps", eps, 0)
    check_moment_dtype("dtype", dtype)
    return leafwise(
        "orthogonalize",
        _orthogonalize,
        resolve=lambda _, tree: resolve_matrices(matrices, tree),
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (eps,),
        static={"triples": triples_of(steps, coefficients), "dtype": dtype},
        batched=True,
        spread=mesh_axes(spread),
    )


def _orthogonalize(u, w, matrices, option, kept, shared, *, triples, dtype):
    return polar_factor(u, matrices, triples, shared[0], dtype), kept
