"""Where a result comes from: the commit, the versions and the device behind it."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")
# What a program writes does not change it: a run may go on beside its own results.
_BUT_RESULTS = (".", ":!experiments/results")


def describe() -> dict[str, Any]:
    """Return what JSON can hold of the program and the machine that run now.

    Returns:
        `commit`: that of the checkout, with `+` where files other than stored results
        differ from it, and None outside of one; `versions` by package; `devices`: each
        kind and how many.
    """
    kinds = [f"{device.device_kind} ({device.platform})" for device in jax.devices()]
    return {
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def is_known(provenance: dict[str, Any]) -> bool:
    """Say whether its commit tells what the program was."""
    commit = provenance["commit"]
    return commit is not None and not commit.endswith("+")


def _commit() -> str | None:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git("status", "--porcelain", "--", *_BUT_RESULTS) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
