"""What JAX runs on, said first, so that nobody trains on the CPU by mistake."""

import shutil
import subprocess
from pathlib import Path

import jax

# NVIDIA's driver branch from which CUDA 13 runs; older drivers need CUDA 12.
_CUDA13_DRIVER = 580


def describe() -> str:
    """Return JAX's version and devices, and how to use a GPU that lies idle."""
    devices = ", ".join(f"{d.device_kind} ({d.platform})" for d in jax.devices())
    lines = [f"JAX {jax.__version__} on {devices}"]
    if jax.default_backend() == "cpu" and (driver := _nvidia_driver()) is not None:
        cuda = "cuda13" if driver >= _CUDA13_DRIVER else "cuda12"
        lines.append(f"An NVIDIA GPU is not in use; to use it: make train JAX={cuda}")
    return "\n".join(lines)


def _nvidia_driver() -> int | None:
    """Return the major version of the driver; 0 if a GPU has none that answers."""
    if shutil.which("nvidia-smi"):
        query = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        major = query.stdout.strip().partition(".")[0]
        if query.returncode == 0 and major.isdigit():
            return int(major)
    return 0 if Path("/dev/nvidia0").exists() else None
