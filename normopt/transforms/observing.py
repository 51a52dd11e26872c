"""A wrapper that records what a step does to every block, and does not change it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from normopt.blocks import block_dot, per_block, radial_quotient
from normopt.checks import check_inner, check_integer
from normopt.copies import LARGE, apart, stored
from normopt.keeping import OfBlocks
from normopt.leafwise import Leaf, Work
from normopt.mapping import sharded_by_compiler
from normopt.numerics import saturated, widened
from normopt.rules import PerLeaf


class ObserveState(NamedTuple):
    """State of `observe`: sums over each block at the last recorded step."""

    count: jax.Array  # int32 scalar: updates done
    step: jax.Array  # int32 scalar: the last recorded step; 0 before it
    sums: Any  # {"path@axes": five sums per block, (*channel axes, 5)}
    inner: Any  # the state of the optimizer


class Sums(NamedTuple):
    """Sums over a block, of which all that is told of it follows."""

    gradient: jax.Array  # |g|^2
    weight: jax.Array  # |w|^2
    sideways: jax.Array  # |u|^2 of the part of u that is orthogonal to w
    gradient_along: jax.Array  # <g, w>
    update_along: jax.Array  # <u, w>


def unstacked(sums: jax.Array) -> Sums:
    """Gives the sums of a leaf by their names."""
    return Sums(*(sums[..., index] for index in range(len(Sums._fields))))


def observe(
    inner: optax.GradientTransformation,
    channel_axes: PerLeaf = (),
    *,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Records for each block what a step of `inner` does; the step stays the same.

    The state has these numbers for the gradient g, the update u and the weights w of
    each block:

    .. math::
      \|g\|^2, \quad \|w\|^2, \quad \|u^\perp\|^2, \quad
        \langle g, w \rangle, \quad \langle u, w \rangle, \qquad
        u^\perp = u - \frac{\langle u, w \rangle}{\|w\|^2} w

    From these numbers, `observations` computes norms, angles and cosines. Pass it the
    state of your whole optimizer. Then pass its result to `summary`, which returns
    numbers for a log.

    The gradient is the input of `observe`, and the update is its output. So the place
    of `observe` matters:

    - Put the whole optimizer inside, with learning rate and weight decay. If more links
      follow `observe` in a chain, it records another update than the final one. If
      clipping is inside, the recorded gradient is not clipped. If clipping comes before
      `observe`, the recorded gradient is clipped.
    - Inside `optax.MultiSteps`, it records the averaged gradients, once per step of the
      weights. Around `optax.MultiSteps`, it records the gradient of each small batch;
      most of the updates are then zero.
    - Around `compensate_rounding`, it records the exact change of the low-precision
      weights. Inside `compensate_rounding`, or without it, the update is recorded
      before rounding. Norms of gradients and weights are always computed in float32.
    - In `optax.masked`, or in one part of `optax.partition`, it records the leaves of
      that part only. Several parts may have an `observe` each.

    Args:
      inner: an optimizer, learning rate included.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`); `()` for one block. Leaves whose axes are None are not
        recorded.
      every: an integer n of at least 1: only the steps n, 2n, 3n, ... are recorded. At
        the other steps `observe` takes little time (5 % of AdamW's step on a CPU),
        except under `jax.vmap`: there the numbers are computed at every step. Under
        `jax.jit` `inner` runs twice at a recorded step, with the same state. So its
        side effects, such as a print, happen twice.

    Returns:
      An optimizer whose `update` needs `params` if a leaf has blocks. Its state is an
      `ObserveState`: five numbers per block, and the state of `inner`. The updates are
      those of `inner`. In a compiled step, XLA may round them differently; otherwise
      they are equal bit for bit.

    Raises:
      TypeError: when built, if `inner` is not an optimizer or an option has the wrong
        type.
      ValueError: when built, if `every` is below 1. At init, for axes that do not fit
        (see `normalize_blocks`), or a pattern that matches no path. At update, without
        `params`, with params of another shape, or for a gradient of None (pass zeros
        instead).

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.observe(optax.sgd(0.5))
      >>> params, grads = {"kernel": jnp.array([3.0, 0.0])}, jnp.array([0.0, 8.0])
      >>> updates, state = tx.update({"kernel": grads}, tx.init(params), params)
      >>> seen = normopt.observations(state)["kernel"]
      >>> [round(float(x), 4) for x in (seen.update, seen.weight, seen.relative_step)]
      [4.0, 3.0, 1.3333]
      >>> round(float(seen.angle), 4)  # of a triangle with sides 3, 4 and 5
      0.9273

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212, for the angle.
    """
    check_inner("observe", inner)
    check_integer("every", every, 1)
    is_always = not isinstance(every, Tracer) and int(every) == 1
    inner = optax.with_extra_args_support(inner)
    # Its updates are those of inner, whatever their dtype: it has no step for `go`.
    plan = Work(
        "observe",
        lambda *leaf: leaf,
        channel_axes=channel_axes,
        acts=lambda leaf: leaf.has_blocks,
        reads_weights=lambda leaf: True,
        keeps={"sums": OfBlocks(len(Sums._fields))},
        state=ObserveState,
        start=lambda: {
            "count": jnp.zeros([], jnp.int32),
            "step": jnp.zeros([], jnp.int32),
        },
    )

    def init_fn(params: optax.Params) -> ObserveState:
        leaves = plan.read_at_init(params)
        return plan.started(leaves, params, inner=inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ObserveState]:
        leaves, weights = plan.read_at_update(updates, state, params)
        count: Any = optax.safe_increment(state.count)
        kept = plan.unpack(state, updates, leaves)

        def stepped(updates: Any) -> Any:
            return inner.update(updates, state.inner, params, **extra_args)

        def seen(steps: Any, store: bool) -> tuple[list[Any], Any]:
            """Gives the sums of each leaf, and the steps, which a CPU may store."""
            made, treedef = jax.tree.flatten(steps)
            found: list[Any] = list(kept)
            earlier: Sequence[Any] = ()
            for position, (g, w, leaf) in enumerate(
                zip(jax.tree.leaves(updates), weights, leaves, strict=True)
            ):
                if leaf.axes is None:
                    continue
                if store:
                    made[position] = stored(made[position], w, *earlier)
                u = made[position]
                found[position] = _sums(g, u, w, leaf.axes, *found[position])
                earlier = found[position][1:] if w.size >= LARGE else earlier
            return found, treedef.unflatten(made)

        is_time = count % every == 0
        if is_always or not isinstance(is_time, Tracer):
            steps, inner_state = stepped(updates)
            found = kept
            if is_always or is_time:
                found, steps = seen(steps, store=True)
            if is_always:
                steps = _after([one[-1] for one in found], steps, leaves)
            step = jnp.where(is_time, count, state.step)
        else:
            # XLA would store what both cases and the weights need, inner's whole step,
            # at every step. Taken for itself, it is a part of the case that needs it.
            # Traced once: an extra argument may be a function that is asked.
            stepped = jax.jit(stepped)

            def found_now() -> tuple[list[Any], Any]:
                found, _ = seen(stepped(updates)[0], store=False)
                return [one[:1] for one in found], count

            found, step = jax.lax.cond(is_time, found_now, lambda: (kept, state.step))
            # No step is below 0, which XLA does not know.
            steps, inner_state = stepped(
                _after([step < 0] * len(leaves), updates, leaves)
            )
        now = [one[:1] for one in found]
        state = plan.pack(now, state, updates, leaves)
        return steps, state._replace(count=count, step=step, inner=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _sums(
    g: Any, u: Any, w: Any, axes: tuple[int, ...], old: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Takes the sums over the blocks of a leaf; with them comes what is never true.

    Large arrays are summed as copies: XLA's CPU would store the squares of a gradient
    that a moment needs, too.
    """
    if w.size >= LARGE:
        g, u, w = apart((g, u, w), mark=0)
    return _summed(g, u, w, old, axes)


@functools.partial(jax.jit, static_argnames="axes")
def _summed(g, u, w, old, axes):
    """Takes the sums; that of what is orthogonal to the weights is one of its own.

    |u|^2 - <u, w>^2 / |w|^2 would lose the digits of a step that is nearly radial.
    """
    gg, ww = block_dot(g, g, axes), block_dot(w, w, axes)
    # A factor that both products had in common would be stored in the leaf's shape.
    of_g, of_w = _inverse_length(gg), _inverse_length(ww)
    gw = block_dot(of_g * widened(g), w, axes)
    uw = block_dot(of_w * widened(u), w, axes)
    rest = widened(u) - radial_quotient(uw, of_w * ww) * widened(w)
    sideways = block_dot(rest, rest, axes)
    is_long = jnp.isinf(ww)
    sums = Sums(
        gradient=bounded(gg, gw),
        weight=bounded(ww, gw),
        sideways=bounded(sideways, uw),
        gradient_along=jnp.where(is_long | jnp.isinf(gg), 0 * gw, _over(gw, of_g)),
        update_along=jnp.where(is_long | jnp.isinf(sideways), 0 * uw, _over(uw, of_w)),
    )
    never = (sideways < 0) & (gw < gg)
    kept = jnp.stack([per_block(one, axes) for one in sums], axis=-1)
    # The old sums are read at every step, so that their memory can be taken for it.
    is_old = jnp.expand_dims(per_block(never, axes), -1)
    kept = sharded_by_compiler(_or_old, is_old, kept, old)
    return kept, never


def _or_old(is_old: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(is_old, old, new.astype(old.dtype))


def _inverse_length(square: jax.Array) -> jax.Array:
    """Gives a power of two near 1 / |x|, at most 1: a factor that rounds no number.

    If x or what it is multiplied with has this factor, their dot product overflows for
    no elements up to 1e30.
    """
    info = jnp.finfo(square.dtype)
    # It is divided out again, and contributes nothing to a derivative.
    inverse = jax.lax.rsqrt(jax.lax.stop_gradient(square))
    inverse = jnp.clip(inverse, info.tiny, 1)
    return jax.lax.reduce_precision(inverse, info.nexp, 0)


def _over(along: jax.Array, factor: jax.Array) -> jax.Array:
    """Takes the factor off a dot product, as large as its dtype can hold."""
    most = jnp.finfo(along.dtype).max
    product = jnp.clip(along / factor, -most, most)
    return jnp.where(jnp.isfinite(along), product, along)


def bounded(square: jax.Array, along: jax.Array) -> jax.Array:
    """Bounds a sum of squares if all elements are finite, as their dot products are.

    Any product with an infinite element is infinite or NaN.
    """
    return jnp.where(jnp.isfinite(along), saturated(square), square)


def _after(nevers: Sequence[Any], tree: Any, leaves: Sequence[Leaf]) -> Any:
    """Gives the same tree, of which XLA knows nothing before it knows the sums.

    Else it may write new weights and moments in the place of the old ones before these
    have been summed, and copies what it then still needs: at each step, a third of it.

    Args:
      nevers: for each leaf what is never true, and follows from its sums. So what is
        taken off is 0, which changes no number, not even the sign of a zero.
      tree: updates.
      leaves: what the options say of each.
    """
    arrays, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        x - jnp.where(never, 1, 0).astype(x.dtype)
        if leaf.has_blocks and isinstance(x, Tracer)
        else x
        for x, never, leaf in zip(arrays, nevers, leaves, strict=True)
    )
