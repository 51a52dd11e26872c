"""The numbers that an experiment is given, and what each of them may be."""

import math
from typing import Any

# Counts are int32 on the device, and of a larger seed JAX takes the last 32 bits alone:
# 2**32 would train what 0 does, under another name.
MOST = 2**31 - 1
LARGEST_SEED = 2**32 - 1


def check(config: Any, **least: float) -> None:
    """Raise ValueError at the first option that is out of its range.

    Args:
        config: what the options are fields of; None is one that is left out.
        **least: the smallest value of each, by name.
    """
    for option, low in least.items():
        given = getattr(config, option)
        if given is None:
            continue
        if not math.isfinite(given):
            raise ValueError(f"`{option}` must be finite, got {given}")
        if given < low:
            raise ValueError(f"`{option}` must be >= {low}, got {given}")
        high = LARGEST_SEED if option == "seed" else MOST
        if given > high:
            raise ValueError(f"`{option}` must be <= {high}, got {given}")
