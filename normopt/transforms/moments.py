"""Adam's moments, with the second one shared by a block, and on the sphere.

A weight that a normalization layer follows has a length without meaning: only its
direction is trained. `tangent=True` keeps the moments of such a direction: the first
one is projected on the tangent space at the weights, the second one is read in the unit
of the gradient at their present length.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    Axes,
    accumulator,
    across_block,
    block_dot,
    bounded_sqrt,
    check_channel_axes,
    choose,
    has_numbers,
    larger,
    largest_root,
    positive_sqrt,
    resolve_proper_axes,
    saturated,
    smallest_root,
    squares,
)
from normopt.checks import check_flag, check_moment_dtype, check_number
from normopt.paths import params_like
from normopt.rules import PerLeaf
from normopt.transforms.block_numbers import (
    BlockNumbers,
    moment_dtype,
    pack,
    pack_like_params,
    real_dtype,
    unpack,
    unpack_like_params,
    zeros,
    zeros_like_params,
)


class ScaleByBlockAdamState(NamedTuple):
    """State of `scale_by_block_adam`."""

    count: jax.Array  # int32 scalar: updates done
    mu: Any  # params' structure and shapes, in `mu_dtype`
    nu: BlockNumbers  # v; of tangent blocks sqrt(v) |w|, or -sqrt(v) where |w| is 0
    nu_max: BlockNumbers | None  # with amsgrad: the largest nu so far


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
) -> optax.GradientTransformationExtraArgs:
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
    the trajectory on the sphere independent of the length of the weights. A block whose
    weights are all zero begins anew at each step, as what its moments were has no unit
    there: :math:`m \leftarrow (1 - b_1) g`, and the root is that of
    :math:`\|g\|^2` alone.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of a sum over the block, in the unit of the gradient; at
        least 0. With 0, too, a block that never had a gradient is not moved.
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
      decay), and real for complex leaves; of a tangent block it keeps the root of
      v |w|^2, which does not change with the length of the weights. Updates keep
      structure, shapes and dtypes.

    Raises:
      TypeError: when built, if an option has the wrong type.
      ValueError: when built, for a number out of its range; at init, for an axis that
        does not exist, a pattern that matches no path, or two leaves of the same path;
        at update, with params of another shape or, when tangent, without.

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
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        leaves, treedef = jax.tree.flatten(updates)
        weights = params_like(updates, params, "scale_by_block_adam", needed=tangent)
        axes = resolve_proper_axes(channel_axes, updates)
        count: Any = optax.safe_increment(state.count)
        # What both corrections come to: scale m / (sqrt(v) + own_eps), same for all.
        correction = 1 - b2**count
        scale = jnp.sqrt(correction) / (1 - b1**count)
        own_eps = eps if eps_hat else eps * jnp.sqrt(correction)
        numbers = _Numbers(b1, 1 - b1, b2, 1 - b2, scale, own_eps, correction)

        @functools.cache
        def numbers_in(dtype: Any) -> _Numbers:
            # Of another dtype, as the powers are under x64, they would raise a leaf's.
            return _Numbers(*(jnp.asarray(number, dtype) for number in numbers))

        directions, moments = [], []
        for g, w, mu, nu, nu_max, own in zip(
            leaves,
            weights,
            unpack_like_params(state.mu, updates),
            unpack(state.nu, updates, axes),
            unpack(state.nu_max, updates, axes),
            axes,
            strict=True,
        ):
            old = _Moments(mu, nu, nu_max)
            if has_numbers(g):
                own_w = w if tangent and own is not None else None
                own_numbers = numbers_in(real_dtype(g))
                g, old = _step(g, own_w, old, own_numbers, axes=own, nesterov=nesterov)
            directions.append(g)
            moments.append(old)
        mus, nus, maxima = zip(*moments, strict=True) if moments else ((), (), ())
        return treedef.unflatten(directions), ScaleByBlockAdamState(
            count=count,
            mu=pack_like_params(mus, state.mu),
            nu=pack(nus, state.nu, updates, axes),
            nu_max=pack(maxima, state.nu_max, updates, axes),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Moments(NamedTuple):
    """What the state holds for one leaf."""

    mu: Any
    nu: Any
    nu_max: Any


class _Numbers(NamedTuple):
    """What the leaves share at a step; 1 - b is taken before b is a float32."""

    b1: Any
    b1_rest: Any
    b2: Any
    b2_rest: Any
    scale: Any
    own_eps: Any
    correction: Any


# Jitted, so that leaves of the same shape and axes are traced once.
@functools.partial(jax.jit, static_argnames=("axes", "nesterov"))
def _step(
    g: jax.Array,
    w: jax.Array | None,
    old: _Moments,
    numbers: _Numbers,
    *,
    axes: Axes,
    nesterov: bool,
) -> tuple[jax.Array, _Moments]:
    """Takes the direction and the moments of one leaf; with `w`, on the tangent."""
    mu, nu, nu_max = old
    b1 = numbers.b1
    past, wide, square = accumulator(mu), accumulator(g), squares(g, axes)
    if w is None or axes is None:
        nu = second = saturated(numbers.b2 * nu + numbers.b2_rest * square)
        if nu_max is not None:
            nu_max = second = larger(nu_max, nu)
        root = positive_sqrt(second)
    else:
        w = accumulator(w)
        # A sum that stands once needs no loop of its own: `dot`, `square`, and the
        # length, whose bounded root is also looked at instead of the sum.
        dot = block_dot(past, w, axes, keepdims=False)
        length = bounded_sqrt(squares(w, axes))
        # A block without length has no unit for what it was, and begins anew: no past,
        # and the first average of its squares is the square itself.
        is_alive = length >= 2 * smallest_root(length.dtype)
        has_direction = is_alive & (length < largest_root(length.dtype))
        # Divided twice, as the derivative by the square itself would leave the range.
        radial = dot / length / length
        radial = choose(has_direction & jnp.isfinite(radial), radial, 0)
        past = past - across_block(radial, axes, g.ndim) * w
        b1 = across_block(b1 * is_alive.astype(length.dtype), axes, g.ndim)
        past_root = choose(is_alive, _read(nu, length), 0)
        share = choose(is_alive, numbers.b2_rest, numbers.correction)
        second = numbers.b2 * past_root * past_root + share * square
        length_or_sign = choose(is_alive, length, -1)
        nu = kept = bounded_sqrt(second) * length_or_sign
        if nu_max is not None:
            past_root = choose(is_alive, _read(nu_max, length), 0)
            second = larger(past_root * past_root, second)
            nu_max = kept = bounded_sqrt(second) * length_or_sign
        root = _read(kept, length)
    mu = b1 * past + numbers.b1_rest * wide
    ahead = numbers.b1 * mu + numbers.b1_rest * wide if nesterov else mu
    factor = across_block(numbers.scale / (root + numbers.own_eps), axes, g.ndim)
    return (ahead * factor).astype(g.dtype), _Moments(mu, nu, nu_max)


def _read(kept: jax.Array, length: jax.Array) -> jax.Array:
    """Gives the root of v in the unit of the gradient at the present length, bounded.

    What the state keeps is that root times the length, which stays in range where
    v |w|^2 would not; or times -1, where there was no length.
    """
    return jax.lax.clamp(-kept, kept / length, largest_root(length.dtype))
