"""Recorded runs of the original implementations, and following them."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.versions import enable_x64

FOLDER = Path(__file__).parent / "reference"


class Recording(NamedTuple):
    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]  # (steps, ...)
    after: dict[str, np.ndarray]  # params after each step, (steps, ...)
    meta: dict[str, Any]
    series: dict[str, np.ndarray]  # one number a step: eta_t, eta_t_before, ...


def cases(system: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / system).glob("*.npz"))


def load(system: str, case: str) -> Recording:
    with np.load(FOLDER / system / f"{case}.npz") as stored:

        def part(prefix: str) -> dict[str, np.ndarray]:
            prefix += "/"
            return {
                key.removeprefix(prefix): stored[key]
                for key in stored.files
                if key.startswith(prefix)
            }

        meta = json.loads(str(stored["meta"]))
        series = {k: stored[k] for k in stored.files if "/" not in k and k != "meta"}
        return Recording(part("param0"), part("grads"), part("params"), meta, series)


def largest_miss(
    recording: Recording,
    make: Callable[[], optax.GradientTransformation],
    without: Collection[str] = (),
) -> float:
    """The largest of max|dp| / max|p| over leaves and steps, in the recorded dtype."""
    dtype = jnp.dtype(recording.meta["dtype"])
    with enable_x64(dtype == jnp.float64):
        optimizer = make()
        params = {k: jnp.asarray(v, dtype) for k, v in recording.params.items()}
        grads = {k: jnp.asarray(v, dtype) for k, v in recording.grads.items()}

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = (params, optimizer.init(params))
        _, followed = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(start, grads)
        return max(
            float(np.max(np.abs(np.asarray(followed[k], np.float64) - after)))
            / float(np.max(np.abs(after)))
            for k, after in recording.after.items()
            if k not in without
        )
