"""A link that brings weights back to the sphere after any optimizer's step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import block_length, resolve_proper_axes
from normopt.checks import check_number
from normopt.leafwise import Lens, around
from normopt.numerics import safe_quotient, widened
from normopt.paths import check_distinct, places
from normopt.rules import PerLeaf
from normopt.transforms.tangent import tangent_part


def retract_to_sphere(
    inner: optax.GradientTransformation,
    channel_axes: PerLeaf,
    radius: float = 1.0,
    *,
    moment: str | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Brings each block of the weights back to a sphere after a whole step of `inner`.

    .. math::
      w' &= w + u, \qquad u \leftarrow \mathrm{radius} \frac{w'}{\|w'\|} - w \\
      m &\leftarrow \frac{\|w'\|}{\|w\|}
        \left(m - \frac{\langle m, w' \rangle}{\|w'\|^2} w'\right)

    The first moment m of `inner` is carried along where `moment` says which it is: what
    it has along the new weights is removed. This is the last link of a chain, with the
    learning rate inside, since what comes after it would leave the sphere. A block that
    stands at zero and does not move stays there.

    Weights are on the sphere from the first step on, up to the rounding of that step:
    where it has to undo a length L, it is off by up to L / radius times the eps of
    their dtype, in length until the second step, in direction for good (at 30 radii in
    bfloat16, by 1 % and 2 degrees). Weights on the sphere from the start avoid this.
    `normalize_blocks`, given weights for updates, brings them to radius 1 (blocks of
    one element, too, which here are left alone). For weights of less than 32 bits,
    `compensate_rounding` around this link avoids it as well.

    Args:
      inner: an optimizer, learning rate included.
      channel_axes: the axes that index a leaf's blocks, per leaf. Leaves without
        blocks, and with blocks of one element, take inner's step as it is.
      radius: of the sphere, in the unit of the weights, above 0.
      moment: where in inner's state the first moment is: the name of a field, `mu` in
        Adam's, `trace` in momentum's; or a function of inner's state that returns the
        moment, like the params whole or in part, and a function from another one to the
        state with it. None carries nothing along.

    Returns:
      An optimizer that needs `params` where a leaf has blocks; its state is that of
      `inner`. Updates keep structure and shapes, in the wider dtype of update and
      param.

    Raises:
      TypeError: when built, if `inner` is no optimizer or an option has the wrong type.
      ValueError: when built, for a radius that is not positive; at init, if no field or
        several fields of inner's state have the name `moment`, or it does not hold
        something like the params, and for an axis that does not exist or a pattern that
        matches no path; at update, without `params` or with params of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.retract_to_sphere(optax.adam(0.1), ())
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(params), params)
      >>> round(float(normopt.block_norms(optax.apply_updates(params, updates))), 6)
      1.0

    References:
      Cho and Lee, "Riemannian approach to batch normalization", 2017, arXiv 1709.09603
      (Adam-G), as implemented beside Roburin, de Mont-Marin, Bursuc, Marlet, Pérez,
      Aubry, "Spherical Perspective on Learning with Normalization Layers", 2020, arXiv
      2006.13382.
    """
    check_number("radius", radius, above=0)
    if not (moment is None or isinstance(moment, str) or callable(moment)):
        raise TypeError(
            "`moment` must be the name of a field of inner's state, a function of that "
            f"state or None, got moment={moment!r}"
        )
    return around(
        "retract_to_sphere",
        inner,
        _retract,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        share=lambda state: (radius,),
        lens=None if moment is None else _checked(moment),
    )


def _retract(g, u, w, axes, option, kept, shared):
    new = w + u
    length = block_length(new, axes)
    # A block that stands at zero has no direction to be retracted along.
    on_sphere = jnp.where(length > 0, new * safe_quotient(shared[0], length), new)
    if kept and kept[0] is not None:
        (m,), dtype = kept, kept[0].dtype
        stretch = safe_quotient(length, block_length(w, axes))
        kept = (_stretched(tangent_part(widened(m), new, axes), stretch, dtype),)
    return on_sphere - w, kept


def _stretched(m: jax.Array, stretch: jax.Array, dtype: Any) -> jax.Array:
    # Bounded where gradients of 1e30 have stretched a moment by 1e10 or more: by a
    # thousandth of the range, for inner's bias correction. The sign is that of m, as
    # an infinite complex number has none.
    most = float(jnp.finfo(dtype).max)
    largest = most / 1024
    if most < 1e30:
        # In float16 that is 64, an ordinary moment. There it bounds only what a step of
        # more than 0.45 radians adds: a few of these in a row leave the range.
        present = jnp.clip(jnp.abs(m), largest, most)
        largest = jnp.where(stretch < 1.1, most, present)
    within = jnp.abs(m) * stretch <= largest
    return jnp.where(within, m * stretch, largest * jnp.sign(m))


def _checked(moment: str | Callable[[Any], Any]) -> Lens:
    """Gives the lens of a moment, which says what is wrong with what it finds."""

    def lens(state: optax.OptState, params: Any) -> Any:
        if isinstance(moment, str):
            mu, put = _field_of(state, moment, params)
        else:
            mu, put = moment(state)
        if params is not None:
            _check_moment(moment, mu, params)
        return mu, put

    return lens


def _field_of(state: optax.OptState, moment: str, params: Any) -> Any:
    is_field = _is_field_of_state(params)
    found = optax.tree.get_all_with_path(state, moment, is_field)
    if len(found) != 1:
        where = ", ".join(jax.tree_util.keystr(path) for path, _ in found) or "none"
        raise ValueError(
            f"`moment`={moment!r} must name one field of inner's state; those of that "
            f"name: {where}. Momentum SGD calls it 'trace', Adam 'mu'; an inner "
            "optimizer without a first moment takes moment=None, and one with several "
            "a function of its state"
        )
    return found[0][1], lambda mu: optax.tree.set(state, is_field, **{moment: mu})


def _check_moment(moment: Any, mu: Any, params: Any) -> None:
    check_distinct([place.path for place in places(mu)])
    shapes = {place.path: jnp.shape(place.leaf) for place in places(params)}
    for place in places(mu):
        if shapes.get(place.path) != jnp.shape(place.leaf):
            raise ValueError(
                f"`moment`={moment!r} of inner's state is no first moment: its "
                f"{place.path!r} has the shape {jnp.shape(place.leaf)}, the parameter "
                f"has {shapes.get(place.path)}"
            )


def _is_field_of_state(params: Any) -> Callable[..., bool]:
    """Tells the fields of inner's state from parameters that have such a name.

    A field of the params' own NamedTuples turns up in all of the state that is like
    the params, whole or in part.
    """
    kinds: set[str] = set()

    def note_kind(node: Any) -> bool:
        kinds.add(type(node).__name__)
        return False

    jax.tree.leaves(params, is_leaf=note_kind)

    def is_field(path: tuple[Any, ...], value: Any) -> bool:
        del value
        is_in_tuple = isinstance(path[-1], optax.tree_utils.NamedTupleKey)
        return is_in_tuple and path[-1].tuple_name not in kinds

    return is_field
