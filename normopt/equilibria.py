"""What a scale-invariant block with a decay comes to: a length, and an angle a step."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from normopt.checks import check_number
from normopt.registry import config as complete


class Equilibrium(NamedTuple):
    """The steady state of a scale-invariant block under steps and decay."""

    length: float | None  # of the block, in the unit of the weights; None without size
    angle: float  # radians that it turns in a step, root of the mean square


def equilibrium(config: Mapping[str, Any], *, size: int | None = None) -> Equilibrium:
    r"""Predicts the length and the angle per step of a block with a decay.

    Gradients of a scale-invariant block are orthogonal to it: steps lengthen the block,
    decay shortens it, and the two come into balance. With gradients that are mostly
    noise, a decay of :math:`\lambda` per step, and steps that are
    :math:`\eta \sum_k c_k g_{t-k}` of gradients or signs of one length n,

    .. math::
      \mathrm{length}^2 = \frac{\eta^2 n^2 (\sum_k c_k)^2}{2 \lambda}, \qquad
      \mathrm{angle}^2 = 2 \lambda \frac{\sum_k c_k^2}{(\sum_k c_k)^2}

    For Adam, whose steps have elements of size 1, n is the root of `size`, and
    :math:`\mathrm{angle}^2 = 2 \lambda (1 - b_1) / (1 + b_1)`. For SGD with momentum m,
    whose gradients get longer as the block gets shorter, it is
    :math:`2 \lambda (1 - m) / (1 + m)`, and the length is that for gradients whose
    elements would have a size of 1 if the block had a length of 1 (times the root of
    their size in general). For Lion, whose signs follow
    :math:`b_1 m + (1 - b_1) g`,

    .. math::
      \mathrm{angle}^2 = \pi \lambda \left((1 - b_1)^2
        + b_1^2 \frac{1 - b_2}{1 + b_2}\right), \qquad
      \mathrm{length} = \frac{\eta \sqrt{\mathrm{size}}}{\mathrm{angle}}

    A decay that is multiplied by the learning rate counts as that product; one in the
    gradient counts 1 / (1 - m) times as much, because momentum adds it up. Under a
    schedule, give the numbers that hold at present: with a decay that is multiplied by
    the learning rate the angle follows the root of that rate, with one that is tied to
    nothing it stays.

    Args:
      config: of the optimizer, as `normopt.config` takes it, with plain numbers:
        `adamw`, `sgdw`, optax's `lion`, or a chain of links that comes to Adam, SGD
        with momentum or Lion with a decay; optax's AdamW is `adamw` with
        `weight_decay=learning_rate * weight_decay`. A mapping of decays per path is
        refused: give the decay of the block in question.
      size: the number of elements of the block; None if its length is not asked for.

    Returns:
      An `Equilibrium`.

    Raises:
      TypeError: if a number is none, such as a schedule or a mapping.
      ValueError: for an optimizer that this theory does not cover, without a decay or a
        learning rate, and for all that `config` refuses.

    Examples:
      The learning rate of a rotational AdamW that turns as a present run of
      `optax.adamw(1e-3, weight_decay=0.1)` does:

      >>> now = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-3 * 0.1}
      >>> length, angle = normopt.equilibrium(now, size=512)
      >>> round(length, 3), round(angle, 5)
      (1.6, 0.00324)

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212.
    """
    if size is not None:
        check_number("size", size, 1)
    run = _Run()
    for read, options in _links(complete(**config)):
        run = read(run, options)
    if not (run.rate > 0 and run.decay > 0):
        raise ValueError(
            f"`config` comes to a learning rate of {run.rate:g} and a decay of "
            f"{run.decay:g} a step: without both there is no balance"
        )
    angle = math.sqrt(2 * run.decay * run.squares) / run.total
    if size is None:
        return Equilibrium(None, angle)
    length = run.rate * run.total * math.sqrt(size / (2 * run.decay))
    return Equilibrium(length if run.is_unit else math.sqrt(length), angle)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the links so far make of gradients, which add up as noise does.

    A step is rate times sum_k c_k g_{t-k}, and takes off decay times the weights.
    """

    rate: float = 1.0
    total: float = 1.0  # sum of the c_k, after all that a gradient ever moves
    squares: float = 1.0  # sum of their squares, of which one step consists
    decay: float = 0.0
    is_unit: bool = False  # whether the g are directions, elements of size 1

    def changed(self, **fields: Any) -> "_Run":
        return dataclasses.replace(self, **fields)


def _adam(run: _Run, options: Mapping[str, Any]) -> _Run:
    b1 = _number(options, "b1")
    averaged = _trace(run, {"decay": b1, "nesterov": options["nesterov"]})
    share = 1 - b1
    return _as_direction(run).changed(
        total=share * averaged.total, squares=share**2 * averaged.squares
    )


def _lion(run: _Run, options: Mapping[str, Any]) -> _Run:
    b1, b2 = _number(options, "b1"), _number(options, "b2")
    variance = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    # How much of a sign is due to one of the normal numbers that it is the sign of.
    return _as_direction(run).changed(total=math.sqrt(2 / math.pi / variance))


def _trace(run: _Run, options: Mapping[str, Any]) -> _Run:
    if run.total != 1 or run.squares != 1:
        raise ValueError("`config` has two moments in a chain, which are not covered")
    m = _number(options, "decay")
    squares = 1 / (1 - m**2)
    if options["nesterov"]:
        squares = (1 + m) ** 2 + m**4 / (1 - m**2)
    total = 1 / (1 - m)
    return run.changed(total=total, squares=squares, decay=run.decay * total)


def _scale(run: _Run, by: float) -> _Run:
    return run.changed(rate=run.rate * by, decay=run.decay * by)


def _pull(run: _Run, by: float) -> _Run:
    return run.changed(decay=run.decay + by)


def _as_direction(run: _Run) -> _Run:
    if run.decay > 0:
        raise ValueError(
            "`config` has a decay in the gradient, before Adam's or Lion's moments, "
            "which is not covered: what it comes to depends on the gradients"
        )
    return run.changed(rate=1.0, is_unit=True)


Read = tuple[Callable[[_Run, Any], _Run], Any]


def _links(config: Mapping[str, Any]) -> list[Read]:
    """Takes an optimizer apart into what is read of its links, one after another."""
    name, options = config["name"], config
    if name == "chain":
        return [read for link in options["links"] for read in _links(link)]
    if name in ("scale_by_adam", "scale_by_block_adam", "adam", "adamw"):
        _check_plain(options, channel_axes=None, amsgrad=False, eps_root=0.0)
        options = {"nesterov": False, **options}
        return [(_adam, options), *_after(options)]
    if name in ("scale_by_lion", "lion"):
        decays = [(_pull, _number(options, "weight_decay"))] if name == "lion" else []
        _check_plain(options, mask=None, mode="hard")
        return [(_lion, options), *decays, *_rate(options)]
    if name in ("trace", "trace_on_tangent"):
        _check_plain(options, channel_axes=None, dampening=0.0)
        return [(_trace, options)]
    if name == "sgd":
        momentum = [] if options["momentum"] is None else [_momentum(options)]
        return [*momentum, *_rate(options)]
    if name == "sgdw":
        rate, *decay = _after(options)
        return [rate, _momentum(options), *decay]
    if name in ("add_decay", "add_decayed_weights"):
        _check_plain(options, l1=0.0, mask=None)
        return [(_pull, _number(options, "weight_decay"))]
    if name == "decay_weights":
        return _after(options)
    if name == "scale_by_learning_rate":
        return _rate(options)
    raise ValueError(
        f"`config` names {name!r}, which is not covered: give adamw, sgdw, lion, or a "
        "chain of add_decay, trace, scale_by_adam, scale_by_lion, decay_weights and "
        "scale_by_learning_rate"
    )


def _after(options: Mapping[str, Any]) -> list[Read]:
    """Reads a learning rate, and a decay that is tied to the schedule alone."""
    eta = 1.0 if options.get("schedule") is None else _number(options, "schedule")
    reads: list[Read] = [(_scale, eta * rate) for _, rate in _rate(options)]
    if "lr_multipliers" in options:
        reads = [(_scale, _number(options, "lr_multipliers") * r) for _, r in reads]
    if "weight_decay" in options:
        _check_plain(options, l1=0.0, cautious=False)
        reads.append((_pull, eta * _number(options, "weight_decay")))
    return reads


def _rate(options: Mapping[str, Any]) -> list[Read]:
    has_rate = "learning_rate" in options
    return [(_scale, _number(options, "learning_rate"))] if has_rate else []


def _momentum(options: Mapping[str, Any]) -> Read:
    momentum = _number(options, "momentum")
    return _trace, {"decay": momentum, "nesterov": options["nesterov"]}


def _number(options: Mapping[str, Any], option: str) -> float:
    where = f"{options['name']}.{option}" if "name" in options else option
    check_number(where, options[option])
    return float(options[option])


def _check_plain(options: Mapping[str, Any], **plain: Any) -> None:
    for option, value in plain.items():
        if options.get(option, value) != value:
            raise ValueError(
                f"`config` has {option}={options[option]!r}, which is not covered: it "
                f"must be {value!r}"
            )
