"""Recorded runs of the original implementations, and following them."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.originals import rebuilt
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
    return read(FOLDER / system / f"{case}.npz")


def read(path: str | Path) -> Recording:
    with np.load(path) as stored:

        def part(prefix: str) -> dict[str, np.ndarray]:
            prefix += "/"
            return {
                key.removeprefix(prefix): stored[key]
                for key in stored.files
                if key.startswith(prefix)
            }

        meta = json.loads(str(stored["meta"]))
        series = {k: stored[k] for k in stored.files if "/" not in k and k != "meta"}
        # What a constructor made of the weights before the first step.
        changed = part("state/param0_centered") | part("state/param0_normalized")
        start = {**part("param0"), **changed}
        return Recording(start, part("grads"), part("params"), meta, series)


def deviation(path: str | Path) -> tuple[float, float]:
    """How far the optimizer that a file's `meta` describes goes from what it recorded.

    Returns the largest of max|dp| / max|p| over leaves and steps, and what that is to
    be at most. Raises `NotFollowed`, with the reason, for what is not to be followed.
    """
    recording = read(path)
    meta = recording.meta
    miss = largest_miss(
        recording, lambda: rebuilt(meta), first=starts_off_the_sphere(recording)
    )
    return miss, tolerance(meta)


def tolerance(meta: dict[str, Any]) -> float:
    if "compare_at" in meta:
        return meta["compare_at"]
    if meta["dtype"] == "float32":
        return 1e-5
    # These add their eps to the length that they project by.
    eps = {**meta.get("defaults", {}), **meta["kwargs"]}.get("eps", 0.0)
    return 1e-9 + (2 * eps if meta["class"] in ("AdamP", "SGDP") else 0.0)


def starts_off_the_sphere(recording: Recording) -> bool:
    """Whether the original takes for a projection what is none at its first step."""
    if not recording.meta["class"].startswith("Oblique"):
        return False
    axis = recording.meta["kwargs"].get("dim", 0)
    lengths = [np.linalg.norm(w, axis=axis) for w in recording.params.values()]
    return any(np.abs(length - 1).max() > 1e-6 for length in lengths)


def largest_miss(
    recording: Recording,
    make: Callable[[], optax.GradientTransformation],
    without: Collection[str] = (),
    first: bool = False,
) -> float:
    """The largest of max|dp| / max|p| over leaves and steps, in the recorded dtype.

    With `first` the first step is taken as it was recorded.
    """
    dtype, recorded = jnp.dtype(recording.meta["dtype"]), recording.after
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
        if first:
            _, state = optimizer.update(
                {k: g[0] for k, g in grads.items()}, *start[::-1]
            )
            after = {k: jnp.asarray(v[0], dtype) for k, v in recording.after.items()}
            start, grads = (after, state), {k: g[1:] for k, g in grads.items()}
            recorded = {k: v[1:] for k, v in recorded.items()}
        _, followed = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(start, grads)
        return max(
            float(np.max(np.abs(np.asarray(followed[k], np.float64) - after)))
            / (float(np.max(np.abs(after))) or 1.0)  # of weights that stay zero
            for k, after in recorded.items()
            if k not in without
        )
