"""The polar factor of matrices, by a Newton-Schulz iteration.

U V^T of a matrix U S V^T is the orthogonal matrix nearest to it. Each step applies an
odd polynomial to all singular values at once, with matrix products alone:

    A = X X^T,    X <- (a + b A + c A^2) X

Axes are contracted where they stand: none is moved or merged, which could gather a
sharded leaf on each device.
"""

import functools
import itertools
import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normopt.blocks import across_block, block_length, reduce_blocks
from normopt.checks import check_integer, check_number
from normopt.mapping import sharded_by_compiler
from normopt.matrices import Matrices
from normopt.numerics import safe_quotient, widened

Triple = tuple[float, float, float]

# Each set with whether it begins again after its last triple, or repeats that.
COEFFICIENTS: dict[str, tuple[tuple[Triple, ...], bool]] = {
    "simple": (((3.4445, -4.775, 2.0315),), True),
    "quintic": (
        (
            (4.0848, -6.8946, 2.927),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        True,
    ),
    "polar_express": (
        (
            (8.2051, -22.9019, 16.4607),
            (4.0664, -2.8612, 0.5184),
            (3.9096, -2.8234, 0.525),
            (3.2856, -2.4153, 0.4853),
            (2.2779, -1.6198, 0.3985),
            (1.8726, -1.2307, 0.3585),
            (1.8564, -1.2132, 0.3568),
            (1.875, -1.25, 0.375),
        ),
        False,
    ),
}


def triples_of(steps: Any, coefficients: Any) -> tuple[Triple, ...]:
    """Gives the coefficients of each step.

    Args:
      steps: how many steps, at least 1.
      coefficients: the name of a set, one triple (a, b, c), or a sequence of triples,
        one a step, the last of which repeats.

    Raises:
      TypeError: if they are nothing of the kind.
      ValueError: for a name that is not known, or no step.
    """
    check_integer("steps", steps, 1, static=True)
    again = False
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            raise ValueError(
                f"`coefficients` must be one of {', '.join(COEFFICIENTS)} or triples "
                f"(a, b, c), got coefficients={coefficients!r}"
            )
        triples, again = COEFFICIENTS[coefficients]
    else:
        triples = _given(coefficients)
    endless = itertools.chain(triples, itertools.repeat(triples[-1]))
    if again:
        endless = itertools.cycle(triples)
    return tuple(itertools.islice(endless, int(steps)))


def _given(coefficients: Any) -> tuple[Triple, ...]:
    is_listed = isinstance(coefficients, Sequence) and len(coefficients) > 0
    if is_listed and not isinstance(coefficients[0], Sequence):
        coefficients = (coefficients,)
    if not is_listed or any(
        not isinstance(one, Sequence) or len(one) != 3 for one in coefficients
    ):
        raise TypeError(
            "`coefficients` must be a name or triples (a, b, c), one a step, got "
            f"coefficients={coefficients!r}"
        )
    for number in itertools.chain(*coefficients):
        check_number("coefficients", number)
    return tuple((float(a), float(b), float(c)) for a, b, c in coefficients)


def polar_factor(
    x: jax.Array,
    matrices: Matrices,
    triples: Sequence[Triple],
    eps: Any,
    dtype: Any = None,
) -> jax.Array:
    """Approximates U V^T of each matrix U S V^T of a leaf; zero stays zero.

    Args:
      x: the leaf.
      matrices: its axes.
      triples: the coefficients of each step.
      eps: added to the Frobenius norm, by which each matrix is divided before.
      dtype: in which matrices of real numbers are multiplied; None for that of `x`,
        in its full precision also on a TPU or a GPU, which would take less.
    """
    multiply = functools.partial(
        _polar_factor, matrices=matrices, triples=triples, eps=eps, dtype=dtype
    )
    return sharded_by_compiler(multiply, x)


def _polar_factor(
    x: jax.Array,
    *,
    matrices: Matrices,
    triples: Sequence[Triple],
    eps: Any,
    dtype: Any,
) -> jax.Array:
    stack, names = matrices.stack(x.ndim), string.ascii_letters
    inputs, outputs = matrices.sizes(x.shape)
    short = matrices.inputs if inputs < outputs else matrices.outputs
    z = "".join(names[axis] for axis in stack)

    def side(n: int) -> str:
        """Names the shorter side of the matrices, for the n-th time."""
        return "".join(names[axis + n * x.ndim] for axis in short)

    def whole(n: int) -> str:
        return "".join(
            names[axis + n * x.ndim if axis in short else axis]
            for axis in range(x.ndim)
        )

    full = jax.lax.Precision.HIGHEST if dtype is None else None
    product = functools.partial(jnp.einsum, precision=full)
    # Divided by the largest element before, whose square could leave the range.
    largest = reduce_blocks(jnp.max, jnp.abs(x), stack)
    y = x / jnp.where(largest > 0, largest, 1)
    y = y * safe_quotient(1, block_length(y, stack) + eps * safe_quotient(1, largest))
    if dtype is not None and not jnp.iscomplexobj(y):
        y = y.astype(dtype)
    for a, b, c in triples:
        gram = product(f"{whole(0)},{whole(1)}->{z}{side(0)}{side(1)}", y.conj(), y)
        square = product(
            f"{z}{side(0)}{side(1)},{z}{side(1)}{side(2)}->{z}{side(0)}{side(2)}",
            *(gram, gram),
        )
        correction = b * gram + c * square
        y = a * y + product(
            f"{whole(0)},{z}{side(0)}{side(1)}->{whole(1)}", y, correction
        )
    return y.astype(x.dtype)


def largest_stretch(x: jax.Array, matrices: Matrices) -> jax.Array:
    """Takes the largest singular value of each matrix of a leaf, exactly.

    The result has the dimensions of the leaf, the axes of a matrix of length 1.
    """
    measure = functools.partial(_largest_stretch, matrices=matrices)
    return sharded_by_compiler(measure, x, within=matrices.inputs + matrices.outputs)


def _largest_stretch(x: jax.Array, *, matrices: Matrices) -> jax.Array:
    stack = matrices.stack(x.ndim)
    moved = jnp.transpose(widened(x), (*stack, *matrices.inputs, *matrices.outputs))
    sizes = [x.shape[axis] for axis in stack]
    flat = moved.reshape(*sizes, *matrices.sizes(x.shape))
    values = jnp.linalg.svd(flat, compute_uv=False)[..., 0]
    return across_block(values, stack, x.ndim)
