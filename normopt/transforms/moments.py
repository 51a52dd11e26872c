"""Adam's moments, with the second one shared by a block, and on the sphere.

A weight that a normalization layer follows has a length without meaning: only its
direction is trained. `tangent=True` keeps the moments of such a direction: the first
one is projected on the tangent space at the weights, the second one is read in the unit
of the gradient at their present length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    Axes,
    accumulator,
    block_dot,
    check_channel_axes,
    has_numbers,
    larger,
    radial_factor,
    resolve_proper_axes,
    safe_quotient,
    safe_sqrt,
    saturated,
    squares,
)
from normopt.checks import check_flag, check_moment_dtype, check_number
from normopt.paths import params_like
from normopt.rules import PerLeaf
from normopt.transforms.block_numbers import (
    BlockNumbers,
    moment_dtype,
    pack,
    pack_blocks,
    pack_like_params,
    unpack,
    unpack_blocks,
    unpack_like_params,
    zeros,
    zeros_like_params,
    zeros_per_block,
)


class ScaleByBlockAdamState(NamedTuple):
    """State of `scale_by_block_adam`."""

    count: jax.Array  # int32 scalar: updates done
    mu: Any  # params' structure and shapes, in `mu_dtype`
    nu: BlockNumbers  # second moments, float32 at least, at the last weights
    nu_max: BlockNumbers | None  # with amsgrad: the largest nu so far
    square: dict[str, jax.Array] | None  # with tangent: |w|^2 at the last update


def scale_by_block_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    channel_axes: PerLeaf = None,
    *,
    tangent: bool = False,
    eps_hat: bool = False,
    amsgrad: bool = False,
    mu_dtype: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""Scales by Adam's moments, the second of which is one number for each block.

    .. math::
      m &\leftarrow b_1 P(m) + (1 - b_1) g \\
      v &\leftarrow b_2 r v + (1 - b_2) \|g\|^2 \\
      g &\leftarrow \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}

    with sums over the block: :math:`\|g\|^2` is no mean, so a step has the length of
    about 1 for the block, not for each element; see `scale_by_block_size`. Without
    blocks this is Adam. P and r are 1 unless `tangent`:

    .. math::
      P(m) = m - \frac{\langle m, w \rangle}{\|w\|^2} w, \qquad
      r = \frac{\|w_\mathrm{last}\|^2}{\|w\|^2}

    `w_last` are the weights at the last update. P removes what of m is radial at the
    present weights, and r keeps :math:`v \|w\|^2` an average over the steps: both make
    the trajectory on the sphere independent of the length of the weights.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of a sum over the block, in the unit of the gradient; at
        least 0. A block whose root and `eps` are both 0 is not moved.
      channel_axes: the axes that index a leaf's blocks, per leaf; blocks of one element
        count as None, which is element-wise Adam.
      tangent: whether blocks have the moments of a direction, as above. Leaves without
        blocks are not changed by it.
      eps_hat: whether eps is added to the root of the uncorrected v, as Keras does:
        :math:`\sqrt{1 - b_2^t} / (1 - b_1^t) \cdot m / (\sqrt{v} + \epsilon)`.
      amsgrad: whether the root is taken of the largest v so far, which is corrected
        after (optax corrects before); when tangent, the largest of
        :math:`v \|w\|^2`.
      mu_dtype: dtype of the first moment of real leaves; None for that of the leaf.
      nesterov: whether m is replaced in the last line by
        :math:`b_1 m + (1 - b_1) g`.

    Returns:
      A link; it needs `params` when tangent. Its state is a `ScaleByBlockAdamState`:
      second moments are in float32 at least (with b2 near 1, one in bfloat16 could not
      decay), and real for complex leaves. Updates keep structure, shapes and dtypes.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range; at init, for an axis that
        does not exist, a pattern that matches no path, or two leaves of the same path;
        when tangent, at update without `params` or with params of another shape.

    Examples:
      One number for each column, whose first step has the length of 1:

      >>> import jax.numpy as jnp
      >>> link = normopt.scale_by_block_adam(eps=0.0, channel_axes=(-1,))
      >>> grads = jnp.array([[3.0, 1e-9], [4.0, 0.0]])
      >>> updates, state = link.update(grads, link.init(grads))
      >>> [round(float(n), 4) for n in normopt.block_norms(updates, (-1,))]
      [1.0, 1.0]
      >>> state.nu.blocks[""].shape
      (2,)

    References:
      Roburin, de Mont-Marin, Bursuc, Marlet, Pérez, Aubry, "Spherical Perspective on
      Learning with Normalization Layers", 2020, arXiv 2006.13382 (AdamS, Adam-SRT).
      Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv
      1412.6980, Algorithm 1 and, for `eps_hat`, the end of section 2. Reddi, Kale,
      Kumar, "On the Convergence of Adam and Beyond", 2018, arXiv 1904.09237.
    """
    check_number("b1", b1, 0, below=1)
    check_number("b2", b2, 0, below=1)
    check_number("eps", eps, 0)
    check_channel_axes(channel_axes)
    check_moment_dtype("mu_dtype", mu_dtype)
    flags = {"tangent": tangent, "eps_hat": eps_hat, "amsgrad": amsgrad}
    for option, value in {**flags, "nesterov": nesterov}.items():
        check_flag(option, value)

    def init_fn(params: optax.Params) -> Any:
        axes = resolve_proper_axes(channel_axes, params)
        return ScaleByBlockAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params, lambda w: moment_dtype(w, mu_dtype)),
            nu=zeros(params, axes),
            nu_max=zeros(params, axes) if amsgrad else None,
            square=zeros_per_block(params, axes) if tangent else None,
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        weights: list[Any] = [None] * len(leaves)
        if tangent:
            weights = params_like(updates, params, "scale_by_block_adam")
        axes = resolve_proper_axes(channel_axes, updates)
        count = optax.safe_increment(state.count)
        # What both corrections come to: scale m / (sqrt(v) + own_eps), same for all.
        root_correction = jnp.sqrt(1 - b2**count)
        scale = root_correction / (1 - b1**count)
        own_eps = eps if eps_hat else eps * root_correction

        directions, moments = [], []
        for g, w, old, own in zip(
            leaves, weights, _unpacked(state, updates, axes), axes, strict=True
        ):
            if not has_numbers(g):
                directions.append(g)
                moments.append(old)
                continue
            if tangent and own is not None:
                old = _transported(old, w, own)
            new = _averaged(old, g, own, b1, b2)
            second = new.nu if new.nu_max is None else new.nu_max
            # With eps = 0 a block that never had a gradient would be divided by zero.
            factor = safe_quotient(scale, safe_sqrt(second) + own_eps)
            ahead = b1 * new.mu + (1 - b1) * accumulator(g) if nesterov else new.mu
            directions.append((ahead * factor).astype(g.dtype))
            moments.append(new)
        return treedef.unflatten(directions), _packed(
            moments, state, count, updates, axes
        )

    return optax.GradientTransformation(init_fn, update_fn)


class _Moments(NamedTuple):
    """What the state holds for one leaf, in shapes that multiply it."""

    mu: Any
    nu: Any
    nu_max: Any
    square: Any


def _transported(old: _Moments, w: jax.Array, axes: tuple[int, ...]) -> _Moments:
    """Takes the moments of a leaf with blocks from the last weights to these."""
    w = accumulator(w)
    square = saturated(block_dot(w, w, axes))
    # At init, and where a block had or has no length, its moments stay as they are.
    has_length = (old.square > 0) & (square > 0)
    ratio = jnp.where(has_length, old.square, 1) / jnp.where(has_length, square, 1)
    ratio = saturated(ratio)
    return _Moments(
        mu=accumulator(old.mu) - radial_factor(old.mu, w, axes) * w,
        nu=saturated(old.nu * ratio),
        nu_max=None if old.nu_max is None else saturated(old.nu_max * ratio),
        square=square,
    )


def _averaged(old: _Moments, g: jax.Array, axes: Axes, b1: Any, b2: Any) -> _Moments:
    g = accumulator(g)
    nu = saturated(b2 * old.nu + (1 - b2) * squares(g, axes))
    return _Moments(
        mu=b1 * accumulator(old.mu) + (1 - b1) * g,
        nu=nu,
        nu_max=None if old.nu_max is None else larger(old.nu_max, nu),
        square=old.square,
    )


def _unpacked(
    state: ScaleByBlockAdamState, updates: optax.Updates, axes: list[Axes]
) -> list[_Moments]:
    nothing = [None] * len(axes)
    return [
        _Moments(*one)
        for one in zip(
            unpack_like_params(state.mu, updates),
            unpack(state.nu, updates, axes),
            nothing if state.nu_max is None else unpack(state.nu_max, updates, axes),
            nothing
            if state.square is None
            else unpack_blocks(state.square, updates, axes),
            strict=True,
        )
    ]


def _packed(
    moments: list[_Moments],
    old: ScaleByBlockAdamState,
    count: Any,
    updates: optax.Updates,
    axes: list[Axes],
) -> ScaleByBlockAdamState:
    mus, nus, maxima, squares = (
        [getattr(one, field) for one in moments] for field in _Moments._fields
    )
    return ScaleByBlockAdamState(
        count=count,
        mu=pack_like_params(mus, old.mu),
        nu=pack(nus, old.nu, updates, axes),
        nu_max=None if old.nu_max is None else pack(maxima, old.nu_max, updates, axes),
        square=None if old.square is None else pack_blocks(squares, updates, axes),
    )
