"""One weight decay in the forms that optimizers and papers give it."""

import math
from typing import NamedTuple

from jax.core import Tracer

from normopt.checks import check_number


class DecayForms(NamedTuple):
    """One weight decay in all forms, as `decay_from` returns it."""

    independent: float  # the fraction of the weights that each step removes
    times_learning_rate: float  # `independent` divided by the learning rate
    following: float  # the factor of a schedule lr_t / lr_max
    corrected: float  # the factor of a schedule lr_t^2 / lr_max
    memory: float  # the number of updates over which weights are averaged
    angle: float  # the final angle per step of a scale-invariant block, in radians


def decay_from(
    *,
    learning_rate: float,
    independent: float | None = None,
    times_learning_rate: float | None = None,
    following: float | None = None,
    corrected: float | None = None,
    memory: float | None = None,
    angle: float | None = None,
    b1: float = 0.9,
) -> DecayForms:
    r"""Converts a weight decay from one form to all others.

    Let :math:`\lambda` be the fraction of the weights that a decay removes in each
    step. Optimizers compute :math:`\lambda` from their option `weight_decay` (wd) in
    different ways, so the same :math:`\lambda` needs different numbers wd. In the
    table, lr_t is the learning rate of a step, and lr_max the largest one. The results
    of this function give the same :math:`\lambda` when lr_t is lr_max. When lr_t is
    smaller, they differ as in the table:

    ===================  ====================  =========================================
    form                 lambda                used by
    ===================  ====================  =========================================
    independent          wd                    ``adamw``, ``sgdw``, ``nadamw``,
                                               ``decay_weights(wd)``
    times_learning_rate  lr_t wd               ``optax.adamw``, torch's AdamW, optax's
                                               ``lion``, ``muon``, ``adamp``,
                                               ``add_decay(wd)`` after the moments
    following            lr_t / lr_max wd      ``adamw(lr_max, weight_decay=wd,
                                               schedule=lambda t: lr(t) / lr_max)``
    corrected            lr_t² / lr_max wd     ``decay_weights(wd,
                                               schedule=lambda t: lr(t)**2 / lr_max)``
    ===================  ====================  =========================================

    Two more forms describe an effect of the decay. The weights are an exponential
    average of past updates. The memory is the number of steps over which they are
    averaged:

    .. math:: \mathrm{memory} = 1 / \lambda

    In the end (after about :math:`1 / \lambda` steps), a scale-invariant block turns by
    the same angle in each step. If gradients are mostly noise, this angle in radians is

    .. math:: \mathrm{angle} = \sqrt{2 \lambda \frac{1 - b_1}{1 + b_1}}

    This formula holds for Adam, SGD and similar optimizers, if the decay does not enter
    the moments. For other optimizers see `equilibrium`.

    Args:
      learning_rate: lr_max, the largest learning rate of the run, above 0.
      independent: the decay as `normopt.adamw` takes it, in (0, 1).
      times_learning_rate: the decay as `optax.adamw` takes it, above 0.
      following: the decay that is multiplied by a schedule lr_t / lr_max, in (0, 1).
      corrected: the decay that is multiplied by lr_t^2 / lr_max, above 0.
      memory: the memory in steps, above 1.
      angle: the angle in radians per step, above 0.
      b1: the decay of the first moment, or the momentum, in [0, 1); only the angle
        depends on it.

    Returns:
      A `DecayForms`, which has all forms by name.

    Raises:
      TypeError: for a value that is traced or not a number, and if not exactly one form
        is given.
      ValueError: for a number out of its range, for a decay that would remove all of
        the weights or more in one step, or if another form would overflow or underflow
        to 0.

    Examples:
      Convert the decay of `optax.adamw(1e-3, weight_decay=0.1)` for `normopt.adamw`:

      >>> now = normopt.decay_from(learning_rate=1e-3, times_learning_rate=0.1)
      >>> round(now.independent, 7), round(now.memory), round(now.angle, 5)
      (0.0001, 10000, 0.00324)

      With twice the learning rate, half of the decay of `optax.adamw` gives the same
      memory:

      >>> then = normopt.decay_from(learning_rate=2e-3, memory=now.memory)
      >>> round(then.times_learning_rate, 7)
      0.05

    References:
      Wang and Aitchison, "How to set AdamW's weight decay as you scale model and
      dataset size", 2024, arXiv 2405.13698 (the memory). Kosson, Messmer, Jaggi,
      "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural
      Networks", 2024, arXiv 2305.17212 (the angle). Defazio, "Why Gradients Rapidly
      Increase Near the End of Training", 2025, arXiv 2506.02285 (corrected).
    """
    _check_concrete("learning_rate", learning_rate)
    check_number("learning_rate", learning_rate, above=0)
    _check_concrete("b1", b1)
    check_number("b1", b1, 0, below=1)
    rate, noise = float(learning_rate), (1 - float(b1)) / (1 + float(b1))
    forms = {
        "independent": (independent, lambda wd: wd),
        "times_learning_rate": (times_learning_rate, lambda wd: rate * wd),
        "following": (following, lambda wd: wd),
        "corrected": (corrected, lambda wd: rate * wd),
        "memory": (memory, lambda steps: 1 / steps),
        "angle": (angle, lambda radians: radians * radians / (2 * noise)),
    }
    given = {name: pair for name, pair in forms.items() if pair[0] is not None}
    if len(given) != 1:
        raise TypeError(
            f"`decay_from` takes exactly one of {', '.join(forms)}, got "
            + (" and ".join(given) or "none")
        )
    ((name, (value, share_of)),) = given.items()
    _check_concrete(name, value)
    check_number(name, value, above=0)
    share = share_of(float(value))
    if share >= 1:
        is_plain = name in ("independent", "following")
        hint = "; one that is times the learning rate is `times_learning_rate`"
        raise ValueError(
            f"`{name}` must come to a decay below 1 per step, got {name}={value:g}, "
            f"which comes to {share:g} at learning_rate={rate:g}"
            + (hint if is_plain else "")
        )
    of_rate = share / rate
    if share == 0 or not 0 < of_rate < math.inf or math.isinf(1 / share):
        raise ValueError(
            f"`{name}` must have forms in the range of floats, got {name}={value:g}, "
            f"which comes to a decay of {share:g} per step at learning_rate={rate:g}"
        )
    return DecayForms(
        independent=share,
        times_learning_rate=of_rate,
        following=share,
        corrected=of_rate,
        memory=1 / share,
        angle=math.sqrt(2 * share * noise),
    )


def _check_concrete(option: str, value: object) -> None:
    if isinstance(value, Tracer):
        raise TypeError(
            f"`{option}` must be a concrete number, got {option}={value!r}: call "
            "decay_from outside of jax.jit and jax.vmap"
        )
