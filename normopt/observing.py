"""What `observe` saw: read from a state, as numbers for a log, and what stands out.

A state is what the next step needs; this is what a person looks at.
"""

import collections
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normopt.blocks import radial_quotient
from normopt.checks import check_number
from normopt.numerics import safe_quotient, safe_sqrt
from normopt.paths import compiled, unboxed
from normopt.transforms.observing import ObserveState, unstacked


class Observation(NamedTuple):
    """What the blocks of one leaf did at a step, one number for each of them."""

    gradient: jax.Array  # |g|, in the unit of the gradient
    update: jax.Array  # |u|, in the unit of the weights
    weight: jax.Array  # |w| before the step, in the unit of the weights
    relative_step: jax.Array  # |u| / |w|
    angle: jax.Array  # radians from w to w + u, in [0, pi]
    radial_gradient: jax.Array  # the cosine of g and w, in [-1, 1]
    radial_update: jax.Array  # the cosine of u and w, in [-1, 1]
    step: jax.Array  # int32 scalar: updates done then, this one included; 0: none yet


class Spike(NamedTuple):
    """A number of a log that stands out of those before it."""

    step: int  # of the summary
    path: str  # of the leaf
    quantity: str  # a field of `Observation`, of the largest block with `_max`
    ratio: float  # to the running median


_QUANTITIES = Observation._fields[:-1]
_MOST = "_max"
# A cosine has no size that could stand out: it crosses zero.
_SIZES = {q + end for q in _QUANTITIES if "radial" not in q for end in ("", _MOST)}
_WINDOW, _LEAST = 20, 4


def observations(opt_state: Any) -> dict[str, Observation]:
    r"""Reads what `observe` saw last out of a state.

    Of the gradient g, the update u and the weights w of each block it gives the lengths
    and

    .. math::
      \mathrm{relative\ step} = \frac{\|u\|}{\|w\|}, \quad
      \mathrm{angle} = \mathrm{atan2}\left(\|u^\perp\|,
        \|w\| + \tfrac{\langle u, w \rangle}{\|w\|}\right), \quad
      \mathrm{radial\ update} = \frac{\langle u, w \rangle}{\|u\| \|w\|}

    where :math:`u^\perp` is the part of u that is orthogonal to w: the angle is that
    from w to w + u, right for steps of 1e-7 of the length and for nearly radial ones.

    Args:
      opt_state: a state that holds at least one `ObserveState`, of any optimizer or
        wrapper, sharded, or restored from a checkpoint, inside and outside `jax.jit`.
        An `nnx.Optimizer`, or anything else with an attribute `opt_state`, may stand
        for its own.

    Returns:
      An `Observation` for the path of each leaf that has blocks: numbers in the shape
      of its channel axes, in float32 at least. Before the first observation all of
      them are 0, and what a block of zeros would divide is 0; there is no eps. They
      are right for elements from 1e-15 to 1e15, and finite beyond: the squares of those
      below 1e-23 are 0, and a length is 1.8e19 at most.

    Raises:
      ValueError: if the state holds no `ObserveState`, or two that observe one leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = optax.chain(optax.clip(1.0), normopt.observe(optax.sgd(0.1), (-1,)))
      >>> params = {"kernel": jnp.ones((4, 2))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> seen = normopt.observations(state)
      >>> list(seen), [round(float(x), 4) for x in seen["kernel"].relative_step]
      (['kernel'], [0.1, 0.1])
    """
    found: dict[str, Observation] = {}
    states = list(_observing(getattr(opt_state, "opt_state", opt_state)))
    if not states:
        raise ValueError(
            "the state holds nothing that was observed: wrap the optimizer, "
            "normopt.observe(optimizer). A checkpoint is to be restored into the "
            "structure of jax.eval_shape(optimizer.init, params), without which it "
            "comes as plain dictionaries"
        )
    for state in states:
        # Of a tree without leaves there is no dictionary.
        kept = state.sums if isinstance(state.sums, Mapping) else {}
        for key, sums in kept.items():
            path = key.rpartition("@")[0]
            if path in found:
                raise ValueError(
                    f"{path!r} is observed twice in this state: pass a part of it, or "
                    "keep one `observe` for each leaf"
                )
            found[path] = _read(jnp.asarray(sums), jnp.asarray(state.step))
    return found


@jax.jit
def _read(kept: jax.Array, step: jax.Array) -> Observation:
    """Takes lengths and angles of sums; 0 where a block of zeros would divide."""
    sums = unstacked(kept)
    weight, gradient = safe_sqrt(sums.weight), safe_sqrt(sums.gradient)
    radial = radial_quotient(sums.update_along, sums.weight)
    update = safe_sqrt(sums.sideways + radial * sums.update_along)
    sideways = safe_quotient(safe_sqrt(sums.sideways), weight)
    return Observation(
        gradient=gradient,
        update=update,
        weight=weight,
        relative_step=safe_quotient(update, weight),
        angle=jnp.where(weight > 0, jnp.arctan2(sideways, 1 + radial), 0),
        radial_gradient=_cosine(safe_quotient(sums.gradient_along, gradient), weight),
        radial_update=_cosine(radial * weight, update),
        step=step,
    )


def _cosine(along: jax.Array, length: jax.Array) -> jax.Array:
    return jnp.clip(safe_quotient(along, length), -1, 1)


def _observing(tree: Any) -> Iterator[ObserveState]:
    """Lists the states of `observe`, also those inside of another one, as arrays."""

    def is_one(node: Any) -> bool:
        return isinstance(node, ObserveState)

    for node in jax.tree.leaves(tree, is_leaf=is_one):
        if is_one(node):
            yield unboxed(node._replace(inner=None))
            yield from _observing(node.inner)


def summary(observations: Mapping[str, Observation], only: str = "") -> dict[str, Any]:
    """Makes a flat dictionary of numbers for a log of what was observed.

    It is what TensorBoard, wandb and CLU take, and a line of JSON:
    `wandb.log(numbers)`, `writer.write_scalars(numbers["step"], numbers)`,
    `for name, x in numbers.items(): writer.add_scalar(name, x, numbers["step"])`.

    Args:
      observations: as `normopt.observations` gives them.
      only: a regular expression; leaves in whose path it is not found are left out.

    Returns:
      `"path/quantity"` for each quantity of an `Observation`, the median over the
      blocks of the leaf, and `"path/quantity_max"` the largest, for leaves of several
      blocks; of cosines that is the largest size. `"step"` is that of the observation,
      of several the last. Python numbers; under `jax.jit` scalar arrays.

    Raises:
      TypeError: if `only` is not a string.
      ValueError: if it is not a regular expression, or matches no path.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = normopt.observe(optax.sgd(0.1), (-1,))
      >>> params = {"kernel": jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> numbers = normopt.summary(normopt.observations(state))
      >>> [numbers[name] for name in ("step", "kernel/weight", "kernel/weight_max")]
      [1, 2.0, 5.0]
    """
    search = compiled("only", only).search
    chosen = {path: seen for path, seen in observations.items() if search(path)}
    if not chosen and observations:
        listing = "\n  ".join(observations)
        raise ValueError(
            f"`only`: no observed path matches {only!r}. The paths are:\n  {listing}"
        )
    is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(chosen))
    # One transfer of all numbers, and no program for each shape.
    of, number = (jnp, _as_it_is) if is_traced else (np, float)
    chosen = chosen if is_traced else jax.device_get(chosen)
    found: dict[str, Any] = {}
    for path, seen in chosen.items():
        for quantity in _QUANTITIES:
            name = f"{path}/{quantity}" if path else quantity
            numbers = getattr(seen, quantity)
            found[name] = number(of.median(numbers))
            if numbers.size > 1:
                found[name + _MOST] = number(of.max(of.abs(numbers)))
    steps = [seen.step for seen in chosen.values()]
    if is_traced:
        return {"step": jnp.max(jnp.stack(steps)), **found}
    return {"step": max(map(int, steps), default=0), **found}


def _as_it_is(x: Any) -> Any:
    return x


def spikes(summaries: Iterable[Mapping[str, Any]], factor: float = 10.0) -> list[Spike]:
    r"""Lists what stands out in a log: what was far larger than shortly before.

    Updates of a layer jump before the loss does, and gradients with them.

    .. math:: x_t > \mathrm{factor} \cdot \mathrm{median}(x_{t-20}, \dots, x_{t-1})

    for each length, relative step and angle, of the median and of the largest block.

    Args:
      summaries: as `summary` gives them, in the order of their `"step"`, which is
        looked at once. Other entries do not matter, so the records of a log in which
        they were put among others will do.
      factor: how much larger than the median of the 20 summaries before, or of fewer
        at the start, but at least 4; above 1.

    Returns:
      The spikes, by step, and of one step the largest ratio first. A number that is
      not finite has an infinite ratio. There is none to a median of 0.

    Raises:
      TypeError: if `factor` is no number.
      ValueError: if it is not above 1, or if a summary has no step.

    Examples:
      >>> log = [{"step": step, "conv/gradient": 0.5} for step in range(1, 9)]
      >>> log[6]["conv/gradient"] = 50.0
      >>> [tuple(spike) for spike in normopt.spikes(log)]
      [(7, 'conv', 'gradient', 100.0)]
    """
    check_number("factor", factor, above=1)
    before: dict[str, collections.deque[float]] = {}
    found, last = [], 0
    for position, numbers in enumerate(summaries):
        if "step" not in numbers:
            raise ValueError(
                f'`summaries[{position}]` has no "step", which normopt.summary gives'
            )
        step = int(numbers["step"])
        # Written again before the next observation, or before the first.
        if step == last:
            continue
        last = step
        for name, value in numbers.items():
            path, _, quantity = name.rpartition("/")
            if quantity not in _SIZES:
                continue
            shortly = before.setdefault(name, collections.deque(maxlen=_WINDOW))
            ratio = _ratio(float(value), shortly)
            if ratio > factor:
                found.append(Spike(step, path, quantity, ratio))
            if math.isfinite(value):
                shortly.append(float(value))
    return sorted(found, key=lambda spike: (spike.step, -spike.ratio))


def _ratio(value: float, before: Iterable[float]) -> float:
    if not math.isfinite(value):
        return math.inf
    known = list(before)
    if len(known) < _LEAST or not (middle := statistics.median(known)):
        return 0.0
    return value / middle
