"""What a report of a bug should hold: `python -m normopt` prints it."""

import platform
from importlib import metadata

import jax

import normopt

_BESIDE = ("jax", "jaxlib", "optax", "numpy", "flax", "equinox", "orbax-checkpoint")


def report() -> str:
    """Tells versions, devices and the optimizers that there are."""
    lines = [f"normopt {normopt.__version__}", f"python {platform.python_version()}"]
    lines += [f"{name} {_version(name)}" for name in _BESIDE]
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    lines += ["", f"{len(devices)} {jax.default_backend()} ({', '.join(kinds)})"]
    lines += ["", "optimizers: " + ", ".join(normopt.names())]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    print(report())
