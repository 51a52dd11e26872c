"""Several processes that train together, one for each host: how they differ.

All run the same program on the same arrays. The first one alone writes files, into a
folder that all can read, and prints; what hangs on files it decides for all.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.training import interrupting


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


def first_says(question: Callable[[], bool]) -> bool:
    """Return the first process's answer, in all of them."""
    answer = is_first() and question()
    if not are_many():
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """End a process that fails, with its message, though others wait for it.

    JAX would have it wait for them at its end. They fail as soon as they miss it.
    """
    try:
        yield
    except BaseException as error:
        if not are_many():
            raise
        if isinstance(error, SystemExit):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, interrupting.Interrupted) else 1)
