"""Reads what `observe` recorded, makes numbers for a log, and finds what stands out.

A state is what the next step needs; this is what a person looks at.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normopt.blocks import radial_quotient
from normopt.checks import check_number, is_scalar
from normopt.numerics import safe_quotient, safe_sqrt
from normopt.paths import compiled, unboxed
from normopt.transforms.observing import ObserveState, bounded, unstacked


class Observation(NamedTuple):
    """What one step did to the blocks of a leaf: arrays of one number per block."""

    gradient: jax.Array  # |g|, in the unit of the gradient
    update: jax.Array  # |u|, in the unit of the weights
    weight: jax.Array  # |w| before the step, in the unit of the weights
    relative_step: jax.Array  # |u| / |w|
    angle: jax.Array  # radians from w to w + u, in [0, pi]
    radial_gradient: jax.Array  # the cosine of g and w, in [-1, 1]
    radial_update: jax.Array  # the cosine of u and w, in [-1, 1]
    step: jax.Array  # int32 scalar: which update it was, from 1; 0 before any


class Spike(NamedTuple):
    """A number in a log that is much larger than the earlier ones."""

    step: int  # the step of the summary
    path: str  # the path of the leaf
    quantity: str  # a field of `Observation`; with `_max`, its largest number
    ratio: float  # the number divided by the running median


_QUANTITIES = Observation._fields[:-1]
_MOST = "_max"
# A cosine has no size that could stand out: it crosses zero.
_SIZES = {q + end for q in _QUANTITIES if "radial" not in q for end in ("", _MOST)}
_WINDOW, _LEAST = 20, 4


def observations(opt_state: Any) -> dict[str, Observation]:
    r"""Reads the last record of `observe` from an optimizer state.

    For each block it returns the norms of the gradient g, the update u and the weights
    w, and

    .. math::
      \mathrm{relative\ step} = \frac{\|u\|}{\|w\|}, \quad
      \mathrm{angle} = \mathrm{atan2}\left(\|u^\perp\|,
        \|w\| + \tfrac{\langle u, w \rangle}{\|w\|}\right), \quad
      \mathrm{radial\ update} = \frac{\langle u, w \rangle}{\|u\| \|w\|}

    The radial gradient is the same as the radial update, with g in place of u. Both are
    cosines. Here :math:`u^\perp` is the part of u that is orthogonal to w. The angle is
    that between w and w + u. It is accurate even for relative steps of 1e-7, and for
    nearly radial steps.

    Args:
      opt_state: the state of an optimizer or wrapper with `observe` in it. It may be
        sharded, or restored from a checkpoint. The call works inside and outside of
        `jax.jit`. You can also pass an `nnx.Optimizer`, or any object with an attribute
        `opt_state`.

    Returns:
      A dictionary: for the path of each leaf with blocks, an `Observation`. Its numbers
      have the shape of the channel axes, and are float32 or wider. Before the first
      record all are 0. If the divisor of a quotient is 0, the quotient is 0; there is
      no eps.

      The numbers are right if elements are at least 1e-17 and norms at most 1e19.
      Elements below about 1e-19 count as 0, because their squares underflow. As long
      as no element is above 1e30, a norm above 1.8e19 counts as 1.8e19, and the cosines
      of its block count as 0. If elements are not finite, norms are infinite or NaN.

    Raises:
      TypeError: for a state of shapes alone.
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
            if isinstance(sums, jax.ShapeDtypeStruct):
                raise TypeError(
                    f"the state holds the shape of what is observed of {path!r}, and "
                    "no numbers: jax.eval_shape(normopt.observations, state) gives the "
                    "shapes of observations"
                )
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
    # The quotient is 0 where it is not finite, and has to say so here.
    radial = radial_quotient(sums.update_along, sums.weight) + 0 * sums.update_along
    square = sums.sideways + radial * sums.update_along
    update = safe_sqrt(bounded(square, sums.update_along))
    sideways = safe_quotient(safe_sqrt(sums.sideways), weight)
    return Observation(
        gradient=gradient,
        update=update,
        weight=weight,
        relative_step=safe_quotient(update, weight),
        angle=jnp.where(weight == 0, 0, jnp.arctan2(sideways, 1 + radial)),
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
    """Makes a flat dictionary of numbers for a log from observations.

    Write the result `numbers` as a line of JSON, or log it: with wandb by
    `wandb.log(numbers)`, with CLU by `writer.write_scalars(numbers["step"], numbers)`.
    With TensorBoard call `writer.add_scalar(name, x, numbers["step"])` for each item
    `name, x`.

    Args:
      observations: the result of `normopt.observations`.
      only: a regular expression; only leaves whose path it matches are in the result.

    Returns:
      A dictionary. For each field of an `Observation` it has the key `"path/field"`,
      with the median over the blocks of the leaf. For leaves of several blocks it also
      has `"path/field_max"`, with the largest number (for cosines, the largest absolute
      value). `"step"` is the step of the observation; if steps differ, the last one.
      Values are Python numbers, or scalar arrays under `jax.jit`.

      If one block is NaN, median and maximum are NaN. `json.dumps` writes NaN and
      infinity as `NaN` and `Infinity`. Python's `json.loads` reads these, other readers
      may not.

    Raises:
      TypeError: if `only` is not a string, or `observations` are not observations.
      ValueError: if `only` is not a regular expression, or matches no path; for the
        observations of an ensemble (a state from `jax.vmap`).

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
    _check_observations(observations)
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


def _check_observations(observations: Any) -> None:
    """Refuses a state in the place of what is read from it, and those of ensembles."""
    is_mapping = isinstance(observations, Mapping)
    values = observations.values() if is_mapping else [observations]
    for seen in values:
        if not isinstance(seen, Observation):
            raise TypeError(
                "`observations` must be what normopt.observations(state) gives, got "
                f"{type(observations).__name__}"
            )
        if np.ndim(seen.step):
            raise ValueError(
                "`observations` are those of an ensemble, with steps of shape "
                f"{np.shape(seen.step)}: take the numbers of each by "
                "jax.vmap(lambda s: normopt.summary(normopt.observations(s)))(state)"
            )


def _as_it_is(x: Any) -> Any:
    return x


def spikes(summaries: Iterable[Mapping[str, Any]], factor: float = 10.0) -> list[Spike]:
    r"""Lists the spikes in a log: numbers far larger than the ones shortly before.

    When training becomes unstable, the updates and gradients of some layer often become
    much larger before the loss does. A spike is a number x of the log (a norm, a
    relative step or an angle) with

    .. math:: x_t > \mathrm{factor} \cdot \mathrm{median}(x_{t-20}, \dots, x_{t-1})

    A log has two numbers of each kind for a leaf: the median of its blocks and their
    maximum. Both are checked.

    Args:
      summaries: dictionaries as `summary` returns them, each with its `"step"`, in any
        order. Other entries in them are ignored. An element of
        `summaries` may also be None. Several dictionaries
        may contain numbers of the same step. Step 0 is ignored, because nothing was
        recorded yet.
      factor: the ratio from which a number is a spike, above 1. The median is taken
        over the 20 summaries before; near the start of the log over fewer, but at least
        4.

    Returns:
      The spikes, sorted by step; spikes of the same step are sorted by ratio, the
      largest first. A number that is not finite has an infinite ratio. If the median is
      0 there is no spike.

    Raises:
      TypeError: if `factor` is not a number, or a summary not a mapping.
      ValueError: if `factor` is not above 1; if a summary has no step; if a quantity is
        not a number; if two summaries have different numbers for the same quantity and
        step. This happens in the log of a resumed run: remove the steps that were
        repeated.

    Examples:
      >>> log = [{"step": step, "conv/gradient": 0.5} for step in range(1, 9)]
      >>> log[6]["conv/gradient"] = 50.0
      >>> [tuple(spike) for spike in normopt.spikes(log)]
      [(7, 'conv', 'gradient', 100.0)]
    """
    check_number("factor", factor, above=1)
    found = []
    for name, values in _by_quantity(summaries).items():
        path, _, quantity = name.rpartition("/")
        before: list[float] = []
        for step, value in sorted(values.items()):
            ratio = _ratio(value, before[-_WINDOW:])
            if ratio > factor:
                found.append(Spike(step, path, quantity, ratio))
            if math.isfinite(value):
                before.append(value)
    return sorted(found, key=lambda spike: (spike.step, -spike.ratio))


def _by_quantity(summaries: Any) -> dict[str, dict[int, float]]:
    """Sorts the records of a log into the numbers of each quantity, by their steps."""
    if isinstance(summaries, Mapping):
        raise TypeError("`summaries` must be a list of summaries, got one: write [it]")
    found: dict[str, dict[int, float]] = {}
    for position, numbers in enumerate(summaries):
        where = f"`summaries[{position}]`"
        if not isinstance(numbers, Mapping):
            raise TypeError(f"{where} must be a summary, a mapping, got {numbers!r}")
        own = {
            name: value
            for name, value in numbers.items()
            if isinstance(name, str)
            and name.rpartition("/")[2] in _SIZES
            and value is not None
        }
        step = _step_of(numbers, where) if own else 0
        for name, value in own.items() if step else ():
            if not _is_number(value):
                raise ValueError(f"{where} has {value!r} for {name!r}: no number")
            values, number = found.setdefault(name, {}), float(value)
            old = values.setdefault(step, number)
            if old != number and not (math.isnan(old) and math.isnan(number)):
                raise ValueError(
                    f"{where} has {number:g} for {name!r} at step {step}, an earlier "
                    f"one {old:g}: keep the records of one run"
                )
    return found


def _step_of(numbers: Mapping[Any, Any], where: str) -> int:
    if "step" not in numbers:
        raise ValueError(f'{where} has no "step", which normopt.summary gives')
    step = numbers["step"]
    if not _is_number(step) or not float(step).is_integer() or step < 0:
        raise ValueError(
            f'{where} must have an integer of at least 0 for "step", got {step!r}'
        )
    return int(step)


def _is_number(value: Any) -> bool:
    return is_scalar(value) and not isinstance(value, bool)


def _ratio(value: float, before: Sequence[float]) -> float:
    if not math.isfinite(value):
        return math.inf
    if len(before) < _LEAST or not (middle := statistics.median(before)):
        return 0.0
    return value / middle
