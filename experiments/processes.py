"""Several processes that train together, one for each host: how they differ.

All run the same program on the same arrays. The first one alone writes files, into a
folder that all can read, and prints.
"""

import jax
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Say whether this process is the one that writes, as a lone one is."""
    return jax.process_index() == 0


def are_many() -> bool:
    """Say whether there are others, which must come to the same places in order."""
    return jax.process_count() > 1


def wait_for_all(place: str) -> None:
    """Wait until every process is at this place of the program."""
    if are_many():
        multihost_utils.sync_global_devices(place)
