"""The link of steepest descent: the direction that a norm's dual gives."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from normopt.blocks import check_channel_axes, resolve_axes
from normopt.checks import check_number
from normopt.leafwise import leafwise
from normopt.matrices import Matrices
from normopt.norms import Norm, norm_of
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.spreading import mesh_axes


def steepest(
    norm: PerLeaf, channel_axes: PerLeaf = (), *, eps: float = 1e-7, spread: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces each block of the updates by the steepest direction in a norm.

    .. math::
      g_b \leftarrow d_b, \qquad d_b = \arg\max \{ \langle g_b, d \rangle :
        \mathrm{norm}(d) \le 1 \}

    If the block has n elements, the direction is

    ==========  =============================================================
    norm        direction
    ==========  =============================================================
    l2          :math:`g / (\|g\| + \epsilon)`, as `normalize_blocks` gives
    avg_l2      :math:`g / (\|g\| / \sqrt{n} + \epsilon)`, elements of size 1
    max, linf   :math:`\mathrm{sign}(g)`
    l1          the sign of the largest element, others 0
    avg_l1      n times the direction for l1
    spectral    :math:`U V^T` of :math:`g = U S V^T`; see `orthogonalize`
    ==========  =============================================================

    This direction is called the *dual* of g. A block of zeros stays zero. The other
    built-in norms have no dual, so they raise an error.

    Args:
      norm: per leaf, the name of a norm, or a norm object such as `spectral(...)`, or a
        pair of a norm and its channel axes, such as ("avg_l2", (0,)). None leaves the
        leaf unchanged.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). The spectral norm uses its `matrices` instead.
      eps: added to the divisor, as in the table; at least 0.
      spread: the mesh axes whose devices share the matrices of the spectral norm; see
        `orthogonalize`.

    Returns:
      A link without state. Updates keep their structure and shapes, and get the wider
      dtype of update and parameter.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a norm that is not known or has no dual. At init, for
        axes that do not fit (see `normalize_blocks`), or a pattern that matches no
        path.

    Examples:
      No other direction of norm 1 has a larger inner product with the gradient. For the
      norm `max` this product is the l1 norm of the gradient:

      >>> import jax.numpy as jnp
      >>> grads = jnp.array([3.0, -4.0])
      >>> for norm in ("l2", "max", "l1"):
      ...     link = normopt.steepest(norm, eps=0.0)
      ...     updates, _ = link.update(grads, link.init(grads))
      ...     print(norm, round(float(grads @ updates), 4))
      l2 5.0
      max 7.0
      l1 4.0

    References:
      Bernstein and Newhouse, "Old Optimizer, New Norm: An Anthology", 2024, arXiv
      2409.20325.
    """
    check_per_leaf("norm", norm, check_dual)
    check_channel_axes(channel_axes)
    check_number("eps", eps, 0)
    if callable(norm):
        # What it will give is not known yet, and only what is batched can be spread.
        batched = spread is not None
    else:
        given = norm.values() if isinstance(norm, Mapping) else [norm]
        batched = any(one is not None and _norm_in(one).batched for one in given)
    return leafwise(
        "steepest",
        _descend,
        channel_axes=channel_axes,
        resolve=lambda axes, tree: resolve_descents(norm, axes, tree),
        acts=lambda leaf: leaf.has_blocks,
        share=lambda state: (eps,),
        batched=batched,
        spread=mesh_axes(spread),
    )


def check_dual(option: str, norm: Any, where: str) -> None:
    """Raises unless `norm` is None, or one with a dual and perhaps channel axes."""
    if norm is None:
        return
    if _is_pair(norm):
        check_channel_axes(norm[1])
        norm = norm[0]
    if norm_of(norm, option).dual is None:
        place = f" at {where!r}" if where else ""
        raise ValueError(
            f"`{option}` must have a direction of steepest descent: l1, avg_l1, l2, "
            "avg_l2, max, spectral, or a norm of your own with a method "
            f"`dual(x, channel_axes, eps)`; got {option}={norm!r}{place}"
        )


class _Descent(NamedTuple):
    """What the program of a leaf depends on."""

    dual: Any
    axes: Any

    def alone(self, ndim: int) -> Any:
        """Does as the axes of matrices do; None where blocks are no matrices."""
        if not isinstance(self.axes, Matrices):
            return None
        stack, axes = self.axes.alone(ndim)
        return stack, self._replace(axes=axes)


def _descend(g, w, descent, option, kept, shared):
    return descent.dual(g, descent.axes, shared[0]), kept


def resolve_descents(
    norm: PerLeaf, channel_axes: PerLeaf, tree: Any, option: str = "norm"
) -> list[Any]:
    """Reads for each leaf the dual of its norm, and the axes for that; or None."""
    norms = per_leaf(option, norm, tree, None, check_dual)
    if _is_pair(norm):  # plain axes, which not every leaf has to have
        channel_axes = norm[1]
    axes = [
        one[1] if _is_pair(one) and one is not norm else own
        for one, own in zip(norms, resolve_axes(channel_axes, tree), strict=True)
    ]
    resolved: list[Any] = [None] * len(norms)
    for found in _distinct([_norm_in(one) for one in norms if one is not None]):
        mine = [one is not None and _norm_in(one) == found for one in norms]
        values = jax.tree.structure(tree).unflatten(
            own if is_mine else None for own, is_mine in zip(axes, mine, strict=True)
        )
        for position, read in enumerate(found.resolve(lambda _, v=values: v, tree)):
            if read is not None:
                resolved[position] = _Descent(found.dual, read)
    return resolved


def _distinct(norms: list[Norm]) -> list[Norm]:
    return [one for position, one in enumerate(norms) if one not in norms[:position]]


def _is_pair(norm: Any) -> bool:
    return isinstance(norm, tuple | list) and len(norm) == 2


def _norm_in(norm: Any) -> Norm:
    return norm_of(norm[0] if _is_pair(norm) else norm)
