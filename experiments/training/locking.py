"""One process at a time in a run's folder.

The lock is the system's own and ends with the process that holds it, however that ends:
a lock file that a killed process has left locks nobody out.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.training import processes

LOCK = ".lock"
# Who holds it. A file of its own, as some file systems lock out those who read, too.
HOLDER = ".holder.json"
# How often the second process looks for the name of the first, which writes it right
# after it has the lock.
_LOOKS = 40


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made if there is none.

    Of several processes that train together the first one alone holds the lock.

    Raises:
        OSError: another command is there, or no lock can be had; in all processes.
    """
    lock, refused = filelock.FileLock(folder / LOCK), "the first process says why"

    def take() -> bool:
        nonlocal refused
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            refused = f"{_holder(folder)} is training there; wait for it or end it"
            return False
        except OSError as error:
            refused = f"cannot be locked: {error.strerror or error}"
            return False
        _name_holder(folder)
        return True

    if not processes.first_says(take):
        raise OSError(f"{folder}: {refused}")
    try:
        yield
    finally:
        if processes.is_first():
            (folder / HOLDER).unlink(missing_ok=True)
            # While it is held: who opened it before gets a lock on no name, which
            # filelock sees, and tries again.
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()
            # Nothing was written there, or all of it removed.
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_free(folder: Path) -> None:
    """Raise OSError if another command is in a folder; makes nothing."""
    if processes.first_says((folder / LOCK).exists):
        with alone_in(folder):
            pass


def _name_holder(folder: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    unfinished = folder / f"{HOLDER}.unfinished"
    unfinished.write_text(json.dumps(holder))
    os.replace(unfinished, folder / HOLDER)


def _holder(folder: Path) -> str:
    """Say who holds the lock, and not who held it before and was killed."""
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((folder / HOLDER).read_text())
            pid, host, since = (known[key] for key in ("pid", "host", "since"))
            if host != platform.node() or _is_alive(pid):
                return f"process {pid} on {host}, since {since},"
        time.sleep(0.05)
    return "another process"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # that of another user
        pass
    return True
