"""A weight decay that hardly depends on the number of updates."""

import math

from normopt.checks import check_integer, check_not_negative
from normopt.rules import PerLeaf, check_per_leaf, scaled


def normalized_decay(lambda_norm: PerLeaf, total_steps: int) -> PerLeaf:
    r"""Computes the weight decay per update from a normalized weight decay.

    .. math:: \lambda = \lambda_\mathrm{norm} \sqrt{1 / T}

    If a training has more updates, the best decay per update is smaller. The best
    normalized decay hardly depends on the number of updates, on the batch size and on
    the number of epochs.

    Args:
      lambda_norm: the normalized decay, at least 0: a number, `{pattern: number}`, or a
        callable from params to a tree of numbers.
      total_steps: T, at least 2. In the paper it is the number of updates in one cycle
        of warm restarts. If you pass the number of updates of the whole training
        instead, the decay is smaller.

    Returns:
      The decay per update: a number, a mapping or a callable, as `lambda_norm` is.

    Raises:
      TypeError: if a decay is not a number or `total_steps` not an integer.
      ValueError: for a negative decay, or fewer than 2 steps.

    Examples:
      >>> normopt.normalized_decay({"kernel$": 0.05, "bias$": 0.0}, 2500)
      {'kernel$': 0.001, 'bias$': 0.0}

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv
      1711.05101, appendix B.1, with T = B E / b for B examples, E epochs and batches of
      b examples.
    """
    check_per_leaf("lambda_norm", lambda_norm, check_not_negative)
    check_integer("total_steps", total_steps, 2, static=True)
    return scaled(lambda_norm, math.sqrt(1 / total_steps))
