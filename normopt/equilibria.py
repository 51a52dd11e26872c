"""The length, and the angle per step, at which a scale-invariant block settles."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from normopt.checks import check_integer, check_number
from normopt.registry import completed, make


class Equilibrium(NamedTuple):
    """The steady state of a scale-invariant block under steps and weight decay."""

    length: float | None  # the norm of the block; None if not known without `size`
    angle: float  # radians per step, the root of the mean square


def equilibrium(
    config: Mapping[str, Any],
    *,
    size: int | None = None,
    gradient: float = 1.0,
    step: int | None = None,
) -> Equilibrium:
    r"""Predicts the length and angle per step that a scale-invariant block reaches.

    The gradient of a scale-invariant block is orthogonal to its weights. So steps make
    the block longer, and decay makes it shorter. In the end both effects are equal, and
    the length stays the same.

    The prediction is for gradients that are mostly noise. A step is then
    :math:`\eta \sum_k c_k g_{t-k}`: a sum of past gradients with factors :math:`c_k`.
    The moments have scaled each gradient to a length n. If :math:`\eta` is the learning
    rate and :math:`\lambda` the total decay per step,

    .. math::
      \mathrm{length}^2 = \frac{\eta^2 n^2 C^2}{2 \lambda}, \qquad
      \mathrm{angle}^2 = 2 \lambda \frac{\sum_k c_k^2}{C^2}, \qquad
      C = \sum_k c_k

    The table has n and C for each kind of moments. In the table, d is the argument
    `size` and s is the argument `gradient`. The RMS of the elements of the gradient is
    s / length, because a longer block has a smaller gradient.

    =================  ==============  =====================  ========================
    moments            n               C                      sum of the c_k² over C²
    =================  ==============  =====================  ========================
    Adam, AdamS        √d              1                      (1 - b1) / (1 + b1)
    SGD, momentum m    s √d / length   1 / (1 - m)            (1 - m) / (1 + m)
    NovoGrad           1               1 / (1 - b1)           (1 - b1) / (1 + b1)
    Lion               √d              √(2 / (π V))           π V / 2
    AdamSRT            √d              √((1 - b1)/(1 + b1))   1
    SGD-MRT            s √d / length   1 / √(1 - m²)          1
    =================  ==============  =====================  ========================

    The step of Lion is the sign of an average, and
    :math:`V = (1 - b_1)^2 + b_1^2 (1 - b_2) / (1 + b_2)` is the variance of this
    average. With Nesterov momentum the sums differ. With `grad_averaging`, C of
    NovoGrad is 1. For AdamSRT and SGD-MRT, C is not the sum of the c_k but the root of
    the sum of their squares, because their moments stay orthogonal to the block.

    The next table has **the decay per step** :math:`\lambda`. The first four forms are
    those of `decay_from`. In the table, wd is `weight_decay`, lr_t is the learning
    rate, and eta_t the value of a `schedule`, both at `step`:

    =========================  =========================================================
    independent                wd, for `adamw`, `sgdw`, `decay_weights`
    following                  eta_t wd, for the same three with a `schedule`
    corrected                  eta_t wd, for `decay_weights`, eta_t = lr_t² / lr_max
    times_learning_rate        lr_t wd, for `lion`, and `add_decay` after the moments
    in the momentum            lr_t C wd, for NovoGrad, and for SGD with L2
    L2 in the gradient         lr_t C wd length / s, for Adam, AdamS and Lion
    L2, orthogonal moments     lr_t (1 - b1) wd length / s, for AdamSRT; lr_t wd, for
                               SGD-MRT
    =========================  =========================================================

    So with L2, the length of a block is
    :math:`\sqrt[3]{\eta\, d\, s / (2\, \mathrm{wd})}` under Adam, and
    :math:`\sqrt[4]{\eta\, d\, s^2 / (2\, \mathrm{wd} (1 - m))}` under SGD.

    **Limits.** A block follows a schedule with a delay of about :math:`1 / \lambda`
    steps. So the prediction at a `step` is right only if the schedules change slowly in
    this time. For gradients that are pure noise, the error of the prediction is at most
    5 % under two conditions: a block has at least 32 elements, and :math:`\lambda` is
    at most (1 - b1) / 10. Lion has other conditions: :math:`\lambda` is at most
    (1 - b2) / 10, and b1 is at least 0.7. With a larger decay, blocks are shorter than
    predicted. Blocks of four elements have an error of a quarter with Lion, and of 5 %
    with AdamSRT. With Lion and b1 = 0, blocks of any size have an error of a quarter.
    The prediction ignores eps. So eps must be small relative to the elements of a
    gradient, s / length. In real training the errors are larger: up to 15 % for the
    angles of AdamW, SGD, NovoGrad and Lion on a ResNet, and a factor of 3 for Adam with
    L2.

    Args:
      config: the configuration of the optimizer, as `normopt.config` takes it: `adamw`,
        `sgdw`, `adams`, `adamsrt`, `sgdmrt`, `novograd`, optax's `lion`, or a chain of
        the links of these optimizers, also inside `observe`. For optax's AdamW pass
        `adamw` with `weight_decay=learning_rate * weight_decay`. The prediction is for
        one block. So pass the decay and the channel axes of this block, not a mapping
        by path.
      size: d, the number of elements of the block, at least 2. With None, the result
        has no length if the length depends on d. For NovoGrad the block is a whole
        layer, because its channels share one second moment. All channels of the layer
        reach the angle of the layer. The squared lengths of the channels add up to the
        squared length of the layer.
      gradient: s, above 0: the RMS of the elements of the gradient of the block, times
        the length of the block. Only results for SGD and for L2 depend on it.
      step: the count of updates at which schedules in `config` are read, at least 0;
        None if there are no schedules.

    Returns:
      An `Equilibrium` with the `length` of the block and the `angle` in radians per
      step. The length is None if it depends on d and `size` is None.

    Raises:
      TypeError: if an option is not a number where it must be one (a mapping, or a
        schedule without `step`), or if `config` is not a mapping.
      ValueError: for an optimizer whose equilibrium is not known, or that has no decay
        or no learning rate. If `size` is None and the angle depends on d. For a decay
        of 1 per step or more. For links that ascend the loss, or whose decay increases
        the weights. Also for every configuration that `normopt.config` refuses.

    Examples:
      Compute the length and the angle of `optax.adamw(1e-3, weight_decay=0.1)`. Pass
      the angle to `rotational` as its learning rate:

      >>> now = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-3 * 0.1}
      >>> length, angle = normopt.equilibrium(now, size=512)
      >>> round(length, 3), round(angle, 5)
      (1.6, 0.00324)

      Here the cosine has halved the learning rate. Only with the corrected decay is the
      length still the same. A real run would follow with a delay, because 1 / lambda
      is 10,000 steps here:

      >>> cosine = {"name": "cosine_decay_schedule", "decay_steps": 10_000}
      >>> def after(exponent):
      ...     rate = {"init_value": 1e-3, **cosine}
      ...     share = {"init_value": 1e-4, "exponent": exponent, **cosine}
      ...     links = [{"name": "scale_by_adam"},
      ...              {"name": "scale_by_learning_rate", "learning_rate": rate},
      ...              {"name": "decay_weights", "weight_decay": 1.0,
      ...               "schedule": share}]
      ...     chain = {"name": "chain", "links": links}
      ...     return round(normopt.equilibrium(chain, size=512, step=5000).length, 3)
      >>> # independent, times_learning_rate, corrected
      >>> after(0.0), after(1.0), after(2.0)
      (0.8, 1.131, 1.6)

    References:
      Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances
      Learning Across Neural Networks", 2024, arXiv 2305.17212 (the angles of AdamW,
      SGD, Lion and Adam with L2). Defazio, "Why Gradients Rapidly Increase Near the End
      of Training", 2025, arXiv 2506.02285 (the corrected decay).
    """
    whole = completed(config)
    if size is not None:
        check_integer("size", size, 2, hint="the number of elements of one block")
        size = int(size)
    check_number("gradient", gradient, above=0)
    if step is not None:
        check_integer("step", step, 0)
    links = _links(_at(whole, step))
    try:
        found = _balance(links, size, float(gradient))
    except (OverflowError, ZeroDivisionError):
        found = Equilibrium(None, math.nan)
    if not all(0 < one < math.inf for one in found if one is not None):
        raise ValueError(
            "`config`, `size` and `gradient` come to a length or an angle beyond the "
            "range of floats"
        )
    return found


def _balance(links: "list[Read]", size: int | None, gradient: float) -> Equilibrium:
    run = _Run(_Term(gradient, of_length=-1, of_size=0.5))
    for read, options in links:
        run = read(run, options)
    if not (run.gradient.factor > 0 and run.decay.factor > 0):
        raise ValueError(
            f"`config` comes to a rate of {run.gradient.factor:g} and a decay of "
            f"{run.decay.factor:g} a step: without both there is no balance"
        )
    if not run.flips % 2:
        raise ValueError(
            "`config` is without a learning rate, whose link turns gradients into "
            "steps: without it there is no balance"
            if run.flips == 0
            else f"`config` has {run.flips} learning rates in a chain, each of which "
            "turns the sign of a step: it would climb"
        )
    if run.grows:
        raise ValueError(
            "`config` has a decay with the wrong sign, which lengthens the block: "
            "add_decay belongs before the learning rate, decay_weights behind it"
        )
    # The square of the length, which may stand on this side, too.
    balance = _Term(run.total**2 / 2) * run.gradient * run.gradient / run.decay
    at_one = balance.at(1.0, size)
    power = 1 / (2 - balance.of_length)
    length = None if at_one is None else at_one**power
    decay = run.decay.at(length, size)
    if decay is None:
        raise ValueError(
            "`size` must be given, the number of elements of the block: with L2 in the "
            "gradient the angle depends on the length, and that on `size`"
        )
    if decay >= 1:
        raise ValueError(
            f"`config` comes to a decay of {decay:g} a step, which takes off all of "
            "the weights, or more: it must be below 1"
        )
    return Equilibrium(length, math.sqrt(2 * decay * run.squares) / run.total)


@dataclasses.dataclass(frozen=True)
class _Term:
    """A number that goes as powers of the length of the block and of its size."""

    factor: float
    of_length: float = 0.0
    of_size: float = 0.0

    def __mul__(self, other: "_Term") -> "_Term":
        return _Term(
            self.factor * other.factor,
            self.of_length + other.of_length,
            self.of_size + other.of_size,
        )

    def __truediv__(self, other: "_Term") -> "_Term":
        return self * _Term(1 / other.factor, -other.of_length, -other.of_size)

    def at(self, length: float | None, size: int | None) -> float | None:
        """Gives the number, or None if it depends on what is not known."""
        value = self.factor
        for base, power in ((length, self.of_length), (size, self.of_size)):
            if power:
                if base is None:
                    return None
                value *= base**power
        return value


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the links so far make of gradients, which add up as noise does.

    An update is sum_k c_k g_{t-k}, and takes off decay times the weights.
    """

    gradient: _Term  # the length of a g, learning rates included
    total: float = 1.0  # sum of the c_k, after all that a gradient ever moves
    squares: float = 1.0  # sum of their squares, of which one step consists
    decay: _Term = _Term(0.0)
    flips: int = 0  # learning rates so far, which turn the sign
    grows: bool = False  # whether a decay has the sign of the weights

    def changed(self, **fields: Any) -> "_Run":
        return dataclasses.replace(self, **fields)


def _scale(run: _Run, by: _Term) -> _Run:
    return run.changed(gradient=run.gradient * by, decay=run.decay * by)


def _descend(run: _Run, by: _Term) -> _Run:
    return _scale(run, by).changed(flips=run.flips + 1)


def _add(run: _Run, by: float) -> _Run:
    """Adds weights to a gradient, which a learning rate has yet to turn."""
    return _pull(run, by, run.flips % 2 == 1)


def _take(run: _Run, by: float) -> _Run:
    """Takes weights off a step, which a learning rate has turned."""
    return _pull(run, by, run.flips % 2 == 0)


def _pull(run: _Run, by: float, grows: bool) -> _Run:
    if by == 0:
        return run
    total = dataclasses.replace(run.decay, factor=run.decay.factor + by)
    if run.decay.factor == 0:
        total = _Term(by)
    elif total != _Term(total.factor):
        raise ValueError(
            "`config` has a decay beside one in the gradient, before the moments: "
            "their equilibrium is not known, as one changes with the length"
        )
    return run.changed(decay=total, grows=run.grows or grows)


def _to_unit(run: _Run, unit: _Term) -> _Run:
    """Divides by the second moment, which gives gradients the length of `unit`."""
    if run.gradient.factor == 0:  # after a learning rate of 0, which is refused later
        return run
    _check_single(run)
    return _scale(run, unit / run.gradient)


_OF_ELEMENTS, _OF_BLOCK = _Term(1.0, of_size=0.5), _Term(1.0)


def _average(run: _Run, decay: float, share: float, options: Mapping[str, Any]) -> _Run:
    """Adds up gradients in a momentum, each by its share.

    Where that is kept tangent, a past pull is gone, and what is left of a past gradient
    is orthogonal to the weights: the squares alone add to the length.
    """
    _check_single(run)
    nesterov = options["nesterov"]
    total = share / (1 - decay)
    squares = share**2 / (1 - decay**2)
    if nesterov:
        squares = share**2 * ((1 + decay) ** 2 + decay**4 / (1 - decay**2))
    pulls = total
    if options["tangent"]:
        pulls = share * (1 + decay if nesterov else 1)
        total = math.sqrt(squares)
    pull = run.decay * _Term(pulls)
    return run.changed(total=total, squares=squares, decay=pull)


def _lion(run: _Run, options: Mapping[str, Any]) -> _Run:
    _check_single(run)
    b1, b2 = _number(options, "b1"), _number(options, "b2")
    variance = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    # How much of a sign is due to one of the normal numbers that it is the sign of.
    total = math.sqrt(2 / math.pi / variance)
    run = _to_unit(run, _OF_ELEMENTS)
    return run.changed(total=total, decay=run.decay * _Term(total))


def _check_single(run: _Run) -> None:
    if run.total != 1 or run.squares != 1:
        raise ValueError(
            "`config` has two moments in a chain, whose equilibrium is not known"
        )


Read = tuple[Callable[[_Run, Any], _Run], Any]

_KNOWN = (
    "adam, adamw, sgd, sgdw, lion, novograd, adams, adamsrt, sgdmrt, and chains of "
    "add_decay, average_gradients, decay_weights, scale_by_adam, scale_by_block_adam, "
    "scale_by_block_rms, scale_by_block_size, scale_by_learning_rate, scale_by_lion, "
    "trace and trace_on_tangent"
)


def _links(options: Mapping[str, Any]) -> list[Read]:
    """Takes an optimizer apart into what is read of its links, one after another."""
    name = options["name"]
    if name == "observe":
        return _links(options["inner"])
    if name == "chain":
        return [read for link in options["links"] for read in _links(link)]
    if name in ("scale_by_adam", "scale_by_block_adam", "adam", "adamw"):
        return [*_adam(options), *_after(options)]
    if name in ("adams", "adamsrt"):
        tangent = {**options, "tangent": name == "adamsrt"}
        return [*_decay(options), *_adam(tangent), *_sized(tangent), *_rate(options)]
    if name == "novograd":
        b1, share = _number(options, "b1"), 1.0
        if options["grad_averaging"]:
            share = 1 - b1
        momentum = _momentum(options, "b1", share=share)
        return [*_rms(options), *_decay(options), *_rate(options), momentum]
    if name in ("scale_by_lion", "lion"):
        _check_plain(options, mask=None, mode="hard")
        decay = _decay(options) if name == "lion" else []
        return [(_lion, options), *decay, *_rate(options)]
    if name in ("trace", "trace_on_tangent"):
        return [_momentum(options, "decay")]
    if name == "sgdmrt":
        return [*_decay(options), _momentum(options), *_rate(options)]
    if name == "sgd":
        momentum = [] if options["momentum"] is None else [_momentum(options)]
        return [*momentum, *_rate(options)]
    if name == "sgdw":
        rate, *decay = _after(options)
        return [rate, _momentum(options), *decay]
    if name in ("add_decay", "add_decayed_weights"):
        return _decay(options)
    if name == "decay_weights":
        return _after(options)
    if name == "scale_by_learning_rate":
        _check_plain(options, flip_sign=True)
        return _rate(options)
    if name == "scale_by_block_rms":
        return _rms(options)
    if name == "scale_by_block_size":
        return _sized(options)
    if name == "average_gradients":
        return [(_scale, _Term(1 - _number(options, "b1")))]
    raise ValueError(
        f"`config` names {name!r}, whose equilibrium is not known; known are {_KNOWN}"
    )


def _adam(options: Mapping[str, Any]) -> list[Read]:
    """Reads Adam's second moment, and the first, an average, that it divides."""
    _check_plain(options, amsgrad=False, eps_root=0.0)
    share = 1 - _number(options, "b1")
    return [_second(options), _momentum(options, "b1", share=share)]


def _rms(options: Mapping[str, Any]) -> list[Read]:
    _check_plain(options, amsgrad=False)
    return [_second(options)]


def _second(options: Mapping[str, Any]) -> Read:
    return _to_unit, _OF_BLOCK if _has_blocks(options) else _OF_ELEMENTS


def _sized(options: Mapping[str, Any]) -> list[Read]:
    if not _has_blocks(options):
        return []
    power = _number(options, "power") if "power" in options else 0.5
    return [(_scale, _Term(1.0, of_size=power))]


def _momentum(
    options: Mapping[str, Any], option: str = "momentum", *, share: float = 1.0
) -> Read:
    decay = _number(options, option, 0, below=1)
    if "dampening" in options:
        share *= 1 - _number(options, "dampening")
    is_tangent = options["name"] in ("trace_on_tangent", "sgdmrt")
    how = {
        "nesterov": options.get("nesterov", False),
        "tangent": options.get("tangent", is_tangent) and _has_blocks(options),
    }
    return (lambda run, how: _average(run, decay, share, how)), how


def _decay(options: Mapping[str, Any]) -> list[Read]:
    _check_plain(options, l1=0.0, mask=None)
    return [(_add, _number(options, "weight_decay", 0))]


def _after(options: Mapping[str, Any]) -> list[Read]:
    """Reads a learning rate, and a decay that is tied to the schedule alone."""
    eta = 1.0 if options.get("schedule") is None else _number(options, "schedule")
    reads: list[Read] = [(read, _Term(eta) * by) for read, by in _rate(options)]
    if "lr_multipliers" in options:
        by = _Term(_number(options, "lr_multipliers"))
        reads = [(read, by * rate) for read, rate in reads]
    if "weight_decay" in options:
        _check_plain(options, l1=0.0, cautious=False)
        reads.append((_take, eta * _number(options, "weight_decay")))
    return reads


def _rate(options: Mapping[str, Any]) -> list[Read]:
    has_rate = "learning_rate" in options
    if not has_rate:
        return []
    return [(_descend, _Term(_number(options, "learning_rate", 0)))]


def _has_blocks(options: Mapping[str, Any]) -> bool:
    axes = options.get("channel_axes")
    if isinstance(axes, Mapping):
        raise TypeError(
            f"`{options['name']}.channel_axes` must be those of the block, such as "
            f"(-1,), or None for a leaf without blocks, got {axes!r}"
        )
    return axes is not None


def _at(value: Any, step: int | None) -> Any:
    """Reads the schedules in a configuration at a step."""
    if isinstance(value, list):
        return [_at(one, step) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        option: _moment(option, one, step)
        if option in ("learning_rate", "schedule", "weight_decay")
        else _at(one, step)
        for option, one in value.items()
    }


def _moment(option: str, value: Any, step: int | None) -> Any:
    if step is None or not _is_schedule(value):
        return value
    if value["name"] == "WarmRestarts":
        raise TypeError(
            f"`{option}` is a WarmRestarts, which keeps a place of its own: give its "
            "present value, or the same cosine_restarts"
        )
    schedule: Any = make(**value)
    return float(schedule(step))


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _number(
    options: Mapping[str, Any],
    option: str,
    at_least: float = -math.inf,
    below: float = math.inf,
) -> float:
    where = f"{options['name']}.{option}" if "name" in options else option
    value = options[option]
    if _is_schedule(value):
        raise TypeError(
            f"`{where}` must be one number, got the schedule {value['name']!r}: give "
            "its present value, or `step` to read it at"
        )
    check_number(where, value, at_least, below=below)
    return float(value)


def _check_plain(options: Mapping[str, Any], **plain: Any) -> None:
    for option, value in plain.items():
        if options.get(option, value) != value:
            raise ValueError(
                f"`config` has {option}={options[option]!r}, with which no equilibrium "
                f"is known: it must be {value!r}"
            )
