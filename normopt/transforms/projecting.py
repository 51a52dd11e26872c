"""AdamP's link: tests whether a leaf looks scale-invariant, and projects if it does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.blocks import (
    block_dot,
    block_size,
    check_channel_axes,
    radial_quotient,
    reduce_blocks,
    resolve_axes,
)
from normopt.checks import check_flag, check_not_negative, check_number, is_zero
from normopt.leafwise import Option, around
from normopt.numerics import safe_quotient, safe_sqrt
from normopt.paths import named_leaves
from normopt.rules import PerLeaf, output_channels
from normopt.transforms.caution import agreeing

# The default. Asked for by a user, (-1,) must be found on one leaf at least; nobody
# asked for the default, which also takes params that are all scalars.
EACH_CHANNEL: PerLeaf = (-1,)

# What the share of the elements that are kept is divided by at least, under `cautious`.
LEAST_SHARE = 1e-3


def project_if_invariant(
    inner: optax.GradientTransformation,
    weight_decay: PerLeaf = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    channel_axes: PerLeaf = EACH_CHANNEL,
    layer_axes: PerLeaf = (),
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Projects the steps of leaves that look scale-invariant, and reduces their decay.

    A leaf looks scale-invariant if its raw gradient g is nearly orthogonal to its
    weights w. A leaf passes the test if

    .. math::
      \max_b \frac{|\langle g_b, w_b \rangle|}{\|g_b\| \|w_b\|}
        < \frac{\delta}{\sqrt{d}}

    where its blocks b have d elements. The output p of `inner` has a part along the
    weights, the radial part. If a leaf passes, each block of p loses its radial part,
    and the weight decay is multiplied by `wd_ratio`. If a leaf does not pass, the test
    is repeated with the whole leaf as one block. If it passes then, the same is done
    with this one block. If it fails again, p and the weight decay stay unchanged:

    .. math::
      u_b = p_b - \frac{\langle p_b, w_b \rangle}{\|w_b\|^2} w_b
        + \mathrm{wd\_ratio} \, \lambda w_b
      \qquad\text{or}\qquad u_b = p_b + \lambda w_b

    With `cautious`, these steps are taken for each leaf (with `layer_axes`, for each
    layer of a leaf):

    1. If the leaf passes the test, p and the gradient both lose their radial parts.
    2. Elements of p become zero if their sign differs from that of the gradient. The
       other elements are divided by their share: their number, divided by the number
       of all elements of the leaf.
    3. If the leaf passes the test, p loses its radial part once more.
    4. The decay is added.

    Put the learning rate after this link; it multiplies the decay, too. The link wraps
    the moments, because the test needs the raw gradient. No eps is added to the
    lengths: the cosine counts as 0 for a block of zeros, and if a sum of squares
    overflows or underflows.

    Args:
      inner: a link from gradients to directions, without the learning rate.
      weight_decay: :math:`\lambda`, per leaf, at least 0; 0 for leaves that no pattern
        matches.
      delta: the threshold of the test, at least 0. For random vectors, the cosine times
        sqrt(d) is about 1.
      wd_ratio: factor of the decay of a leaf that passes the test, at least 0.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, and those of fewer than two
        dimensions, are not tested.
      layer_axes: the channel axes that index layers, per leaf. Each layer of a stack is
        then tested separately. Example: `channel_axes=(0, -1), layer_axes=(0,)` treats
        each layer of a stack as `channel_axes=(-1,)` treats a single layer.
      cautious: whether to set elements of p to zero if their sign differs from that of
        the gradient, as above, in all leaves. A share below 1e-3 counts as 1e-3.

    Returns:
      A link whose `update` needs `params` if a leaf is tested or has a weight decay.
      Its state is the state of `inner`. Updates keep their structure and shapes, and
      get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if `inner` is not a transformation or an option has the
        wrong type.
      ValueError: when built, for a negative number. At init, for axes that do not fit
        (see `normalize_blocks`), or a pattern that matches no path. At update, without
        `params` or with params of another shape.

    Examples:
      The second gradient is orthogonal to the weights, so the second step loses the
      radial part of the momentum:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> link = normopt.project_if_invariant(optax.trace(0.9), channel_axes=())
      >>> params = jnp.array([[1.0, 0.0]])
      >>> state = link.init(params)
      >>> for grads in (jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])):
      ...     updates, state = link.update(grads, state, params)
      ...     print(updates[0].round(4).tolist())
      [1.0, 1.0]
      [0.0, 1.899999976158142]

    References:
      Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for
      Momentum Optimizers on Scale-invariant Weights", 2021, arXiv 2006.08217,
      Algorithms 1 and 2. Liang, Chen, Liu, Liu, "Cautious Optimizers", 2024, arXiv
      2411.16085, as pytorch-image-models joins the two.
    """
    check_flag("cautious", cautious)
    check_number("delta", delta, 0)
    check_number("wd_ratio", wd_ratio, 0)
    check_channel_axes(layer_axes, "layer_axes")
    return around(
        "project_if_invariant",
        inner,
        _project,
        channel_axes=channel_axes,
        resolve=lambda channels, tree: _resolve_tested(
            channels, layer_axes, cautious, tree
        ),
        options={"weight_decay": Option(weight_decay, 0.0, check_not_negative)},
        acts=lambda leaf: cautious or leaf.has_blocks or not is_zero(leaf.option[0]),
        reads_weights=lambda leaf: leaf.has_blocks or not is_zero(leaf.option[0]),
        share=lambda state: (delta, wd_ratio),
        static={"cautious": cautious},
    )


def _project(g, p, w, both, option, kept, shared, *, cautious):
    (decay,), (delta, wd_ratio) = option, shared
    axes, layers = both or (None, ())
    if axes is None:
        p = agreeing(p, g, layers, LEAST_SHARE) if cautious else p
        return p if w is None else p + decay * w, kept
    gw, gg, ww, pw = _sums(both, (g, w), (g, g), (w, w), (p, w))
    passed = _test(gw, gg, ww, g.shape, both, delta)
    radial = passed.radial(pw)
    if cautious:
        p = agreeing(p - radial * w, g - passed.radial(gw) * w, layers, LEAST_SHARE)
        (pw,) = _sums(both, (p, w))
        radial = passed.radial(pw)
    pull = decay * jnp.where(passed.by_block | passed.by_layer, wd_ratio, 1) - radial
    return p + pull * w, kept


class _Sum(NamedTuple):
    """A sum over each block, and over each layer."""

    of_block: jax.Array
    of_layer: jax.Array


class _Passed(NamedTuple):
    """Which layers passed the test, and |w|^2 of what passed."""

    by_block: jax.Array
    by_layer: jax.Array
    square: jax.Array

    def radial(self, dot: _Sum) -> jax.Array:
        """Gives what is radial, as a multiple of `w`, of what has this dot with it."""
        of_layer = jnp.where(self.by_layer, dot.of_layer, 0)
        return radial_quotient(
            jnp.where(self.by_block, dot.of_block, of_layer), self.square
        )


def _sums(both: tuple[Any, Any], *pairs: tuple[jax.Array, jax.Array]) -> list[_Sum]:
    axes, layers = both
    # The sums of a layer follow from those of its blocks; without the barrier XLA
    # takes them from the leaf again, of products that it stores: AdamP's step accesses
    # 116 bytes a parameter instead of 68 (`cost_analysis` of a kernel of 3x3x512x512).
    dots = tuple(block_dot(a, b, axes) for a, b in pairs)
    whole = jax.lax.optimization_barrier(dots)
    return [
        _Sum(dot, reduce_blocks(jnp.sum, one, layers))
        for dot, one in zip(dots, whole, strict=True)
    ]


def _test(
    gw: _Sum, gg: _Sum, ww: _Sum, shape: tuple[int, ...], both: Any, delta: Any
) -> _Passed:
    layers = both[1]
    tangent, by_layer = (
        _is_tangent(*sums, block_size(shape, own), delta)
        for sums, own in zip(zip(gw, gg, ww, strict=True), both, strict=True)
    )
    by_block = reduce_blocks(jnp.all, tangent, layers)
    square = jnp.where(by_block, ww.of_block, ww.of_layer)
    return _Passed(by_block, by_layer, square)


def _is_tangent(
    dot: jax.Array, g_square: jax.Array, w_square: jax.Array, size: int, delta: Any
) -> jax.Array:
    lengths = safe_sqrt(g_square) * safe_sqrt(w_square)
    cosine = safe_quotient(jnp.abs(dot), lengths)
    return cosine < delta / size**0.5


def _resolve_tested(
    channel_axes: PerLeaf, layer_axes: PerLeaf, cautious: bool, tree: Any
) -> list[Any]:
    """Reads both axes of layers of two or more dimensions: kernels, not biases.

    A leaf whose blocks have one element, with a cosine of 1, is tested by layer. With
    caution the layers of what is not tested matter, too.
    """
    if cautious:
        resolve_axes((), tree)  # which refuses pieces of any leaf in `jax.shard_map`
    if channel_axes is EACH_CHANNEL:
        channel_axes = output_channels()
    tested: list[Any] = []
    for axes, layers, place in zip(
        resolve_axes(channel_axes, tree),
        resolve_axes(layer_axes, tree, "layer_axes"),
        named_leaves(tree),
        strict=True,
    ):
        layers = layers or ()
        if axes is None or np.ndim(place.leaf) - len(layers) < 2:
            tested.append((None, layers) if cautious and layers else None)
            continue
        if not set(layers) <= set(axes):
            raise ValueError(
                f"`layer_axes` = {layers} of {place.path!r} must be among its "
                f"`channel_axes` = {axes}, which index the blocks of every layer"
            )
        is_single = block_size(np.shape(place.leaf), axes) == 1
        tested.append((layers if is_single else axes, layers))
    return tested
