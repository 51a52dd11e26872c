"""Wrappers that set the length of a block after a step: a sphere, or less growth.

Both change the whole step of an inner optimizer. The length of a block after the step
becomes a function of its lengths before and after the step of `inner`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normopt.blocks import (
    Axes,
    across_block,
    block_dot,
    block_length,
    per_block,
    radial_quotient,
    resolve_proper_axes,
)
from normopt.checks import check_flag, check_number, check_radius
from normopt.copies import after
from normopt.keeping import OfBlocks
from normopt.leafwise import Lens, Option, around
from normopt.numerics import (
    length_of,
    safe_quotient,
    select,
    squared,
    widened,
)
from normopt.paths import check_distinct, named_leaves
from normopt.rules import PerLeaf, check_per_leaf, per_leaf


class RetractToSphereState(NamedTuple):
    """State of `retract_to_sphere` if a radius can be the initial length."""

    radius: Any  # {"path@axes": |w| of each block at init}
    inner: Any  # the state of the optimizer


def retract_to_sphere(
    inner: optax.GradientTransformation,
    channel_axes: PerLeaf,
    radius: PerLeaf = 1.0,
    *,
    moment: str | Callable[[Any], Any] | None = None,
    stretch: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Brings each block of the weights back to a sphere after each step of `inner`.

    .. math::
      w' &= w + u, \qquad u \leftarrow \mathrm{radius} \frac{w'}{\|w'\|} - w \\
      m &\leftarrow \frac{\|w'\|}{\|w\|}
        \left(m - \frac{\langle m, w' \rangle}{\|w'\|^2} w'\right)

    where u is first the step of `inner`. The second line of the formula is for the
    first moment m of `inner`, and holds only if you pass `moment`. Then the part of m
    along the new weights is removed. The factor :math:`\|w'\| / \|w\|` is there only
    with `stretch`.

    This must be the last link of a chain, with the learning rate inside, because a
    later link would move the weights off the sphere. A block of zeros stays zero if its
    step is zero. With the radius `"initial"` or `"present"`, a block of zeros
    gets inner's step unchanged.

    Weights are on the sphere from the first step on, up to rounding. The first step has
    a large rounding error if weights start far from the sphere. If their length is L,
    the relative error of an element is up to L / radius times the machine epsilon of
    the dtype, for the weights and for the moment. Over a block the errors partly cancel
    out. Example: weights in bfloat16 start at a length of 30 radii. After the first
    step, the length has an error of 1 %, and the direction an error of 2 degrees. The
    second step corrects the length, but not the direction. To avoid this, call
    `on_sphere` on the weights before training. For weights of less than 32 bits you can
    also put `compensate_rounding` around this link.

    Args:
      inner: an optimizer, learning rate included.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, get
        inner's step unchanged.
      radius: the radius of the sphere, per leaf. A number above 0, in the unit of the
        weights; `"initial"` for the length that a block has at init (the state stores
        it, so it does not drift in low precision); `"present"` for the length before
        the step; or None, which leaves inner's step unchanged. Leaves that no pattern
        of a mapping matches have None.
      moment: where the first moment is in the state of `inner`. Pass the name of a
        field, such as `mu` for Adam or `trace` for momentum SGD. Or pass a function
        from this state to a pair: the moment (a tree like the params, or a part of it),
        and a function that puts a new moment into the state. With None the moment stays
        unchanged.
      stretch: whether to multiply the moment by :math:`\|w'\| / \|w\|` as well.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks. Its state is the
      state of `inner`. If a radius is `"initial"`, or `radius` is a callable, this
      state is inside a `RetractToSphereState`. Updates keep their structure and shapes,
      and get the wider dtype of update and parameter.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a radius that is not positive or an unknown word. At
        init, if the state of `inner` does not have exactly one field of the name that
        you pass as `moment`, or if this field does not hold a tree like the params. At
        init, for axes that do not fit (see `normalize_blocks`), or a pattern that
        matches no path. At update, without `params` or with params of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.retract_to_sphere(optax.adam(0.1), (), "initial")
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(params), params)
      >>> round(float(normopt.block_norms(optax.apply_updates(params, updates))), 6)
      5.0

    References:
      Cho and Lee, "Riemannian approach to batch normalization", 2017, arXiv 1709.09603
      (Adam-G), as implemented beside Roburin, de Mont-Marin, Bursuc, Marlet, Pérez,
      Aubry, "Spherical Perspective on Learning with Normalization Layers", 2020, arXiv
      2006.13382. Without the stretch: AdamHR of the marin project.
    """
    if not (moment is None or isinstance(moment, str) or callable(moment)):
        raise TypeError(
            "`moment` must be the name of a field of inner's state, a function of that "
            f"state or None, got moment={moment!r}"
        )
    check_flag("stretch", stretch)
    return around(
        "retract_to_sphere",
        inner,
        _retract,
        lens=None if moment is None else _checked(moment),
        static={"stretch": stretch, "carries": moment is not None},
        separates=True,
        **_spheres(channel_axes, radius),
    )


def _retract(g, u, w, sphere, option, kept, shared, *, stretch, carries):
    axes, wanted = sphere.axes, _wanted(sphere, option, kept, w.ndim)
    square = block_dot(w + u, w + u, axes)
    old, new = block_length(w, axes), length_of(square)
    factor = _factor(old, new, wanted)
    if not carries or kept[-1] is None:
        return (w + u) * factor - w, kept
    dot = block_dot(kept[-1], w + u, axes)
    # XLA's CPU copies neither w nor w + u, so that AdamG's step takes 0.6 of the time
    # that it took with both copies (step_time --optimizers adamg): the new weights,
    # which take the place of w, come after all sums; the moment reads them, not w + u;
    # and each sum has a copy of w + u to itself.
    step = (w + u) * after(factor, old, dot) - w
    radial = radial_quotient(factor * dot, squared(factor) * square)
    m = widened(kept[-1]) - radial * (w + step)
    growth = safe_quotient(new, old) if stretch else jnp.ones([])
    carried = _stretched(m, growth, kept[-1].dtype)
    if sphere.kind:
        # A block without a radius keeps inner's step, and its moment, too.
        radius = wanted(old, jnp.zeros([]))
        carried = jnp.where(radius > 0, carried, kept[-1])
    return step, (*kept[:-1], carried)


def brake_radial(
    inner: optax.GradientTransformation,
    channel_axes: PerLeaf,
    outward: float = 0.5,
    inward: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the change of length that each step of `inner` makes.

    .. math::
      w' = w + u, \qquad
      u \leftarrow \frac{\|w\| + s (\|w'\| - \|w\|)}{\|w'\|} w' - w, \qquad
      s = \begin{cases}
        \mathrm{outward} & \|w'\| \ge \|w\| \\
        \mathrm{inward} & \|w'\| < \|w\|
      \end{cases}

    where u is first the step of `inner`. The direction after the step is the same as
    without this link. If `outward` and `inward` are 1, the step stays unchanged. If
    both are 0, the length is fixed, as with `retract_to_sphere` and `radius="present"`.
    A block of length zero gets inner's step unchanged. This must be the last link of a
    chain, with the learning rate inside.

    Args:
      inner: an optimizer, learning rate included.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`). Leaves without blocks, or with blocks of one element, get
        inner's step unchanged.
      outward: the factor of an increase in length, at least 0.
      inward: the factor of a decrease in length, at least 0. A block cannot shrink
        below zero.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks. Its state is the
      state of `inner`. Updates keep their structure and shapes, and get the wider dtype
      of update and parameter.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, for a negative number. At init, for axes that do not fit
        (see `normalize_blocks`), or a pattern that matches no path. At update, without
        `params` or with params of another shape.

    Examples:
      The step of `inner` would increase the length from 3 to 5. Half of this increase
      is taken:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.brake_radial(optax.sgd(1.0), ())
      >>> params = jnp.array([3.0, 0.0])
      >>> updates, _ = tx.update(jnp.array([0.0, -4.0]), tx.init(params), params)
      >>> round(float(normopt.block_norms(optax.apply_updates(params, updates))), 6)
      4.0

    References:
      The radial brake of NVIDIA-NeMo/Emerging-Optimizers.
    """
    check_number("outward", outward, 0)
    check_number("inward", inward, 0)
    return around(
        "brake_radial",
        inner,
        _brake,
        channel_axes=channel_axes,
        resolve=resolve_proper_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        share=lambda state: (outward, inward),
    )


def _brake(g, u, w, axes, option, kept, shared):
    outward, inward = shared

    def braked(before, after):
        part = select(after < before, inward, outward)
        length = jnp.maximum(before + part * (after - before), 0)
        return select(before > 0, length, after)

    before, after = block_length(w, axes), block_length(w + u, axes)
    return (w + u) * _factor(before, after, braked) - w, kept


def _factor(
    before: jax.Array,
    after: jax.Array,
    wanted: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Gives what w + u is multiplied by, so that blocks are as long as wanted.

    It is 1 where w + u has no length.

    Args:
      before: the lengths of the blocks of w.
      after: those of w + u.
      wanted: from both to the lengths after the step.
    """
    moves = after > 0
    # The division stands last, as in `safe_quotient`.
    return select(moves, wanted(before, after), 1) / select(moves, after, 1)


class _Sphere(NamedTuple):
    """What the program of a leaf depends on."""

    axes: tuple[int, ...]
    kind: str  # of its radius: "initial", "present", or "" for a number


def _spheres(channel_axes: PerLeaf, radius: PerLeaf) -> dict[str, Any]:
    """Gives what `around` is told of spheres with these radii."""
    check_per_leaf("radius", radius, check_radius)

    def resolve(channel_axes: PerLeaf, tree: Any) -> list[_Sphere | None]:
        radii = per_leaf("radius", radius, tree, None, check_radius)
        return [
            None
            if axes is None or own is None
            else _Sphere(axes, own if isinstance(own, str) else "")
            for axes, own in zip(
                resolve_proper_axes(channel_axes, tree), radii, strict=True
            )
        ]

    given = radius.values() if isinstance(radius, Mapping) else [radius]
    keeps = any(
        callable(one) or isinstance(one, str) and one == "initial" for one in given
    )
    return {
        "channel_axes": channel_axes,
        "resolve": resolve,
        "options": {"radius": Option(_numbers_of(radius), 0.0, check_radius)},
        "acts": lambda leaf: leaf.has_blocks,
        "reads_weights": lambda leaf: True,
        "keeps": {"radius": _InitialRadii()} if keeps else {},
        "state": RetractToSphereState if keeps else optax.EmptyState,
    }


def _wanted(
    sphere: _Sphere, option: Sequence[Any], kept: Sequence[Any], ndim: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Gives the radius as a function of the lengths before and after a step."""

    def wanted(before: jax.Array, after: jax.Array) -> jax.Array:
        radius = before if sphere.kind == "present" else option[0]
        if sphere.kind == "initial":
            radius = across_block(kept[0], sphere.axes, ndim)
        # A block that has no length to be kept goes where the step takes it.
        return select(radius > 0, radius, after)

    return wanted


class InitialLengths(OfBlocks):
    """Keeps how long each block is at init."""

    def zeros(self, params: Any, axes: Sequence[Axes]) -> Any:
        """Takes the lengths before the first step."""
        kept = super().zeros(params, axes)
        lengths = [
            None if own is None else per_block(block_length(w, own), own)
            for w, own in zip(jax.tree.leaves(params), axes, strict=True)
        ]
        return self.pack(lengths, kept, params, axes)


class _InitialRadii(InitialLengths):
    """Keeps how long the blocks of leaves with an initial radius are at init."""

    def zeros(self, params: Any, axes: Sequence[Any]) -> Any:
        """Takes the lengths before the first step."""
        return InitialLengths().zeros(params, _initial(axes))

    def unpack(self, kept: Any, tree: Any, axes: Sequence[Any]) -> Any:
        """Lists the lengths of the blocks of each leaf."""
        return super().unpack(kept, tree, _initial(axes))

    def pack(self, values: Any, kept: Any, tree: Any, axes: Sequence[Any]) -> Any:
        """Undoes `unpack`."""
        return super().pack(values, kept, tree, _initial(axes))


def _initial(spheres: Sequence[_Sphere | None]) -> list[Axes]:
    """Gives the channel axes of leaves with an initial radius."""
    return [
        None if one is None or one.kind != "initial" else one.axes for one in spheres
    ]


def _numbers_of(radius: PerLeaf) -> PerLeaf:
    """Puts a number in the place of words and of None, in any form of an option."""

    def number(one: Any) -> Any:
        return 1.0 if one is None or isinstance(one, str) else one

    if isinstance(radius, Mapping):
        return {pattern: number(one) for pattern, one in radius.items()}
    if callable(radius):
        return lambda tree: jax.tree.map(
            number, radius(tree), is_leaf=lambda x: x is None
        )
    return number(radius)


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
    check_distinct([place.path for place in named_leaves(mu)])
    shapes = {place.path: jnp.shape(place.leaf) for place in named_leaves(params)}
    for place in named_leaves(mu):
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
