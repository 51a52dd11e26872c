"""What JAX runs on, said first, so that nobody trains on the CPU by mistake."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import jax

# NVIDIA's driver branch from which CUDA 13 runs; older drivers need CUDA 12.
_CUDA13_DRIVER = 580

# Where there are no chips, libtpu looks for a metadata server that only Google's
# machines have, and complains on stderr; told what it looks for, it is silent.
WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Its lock is for the chips: without them, processes need not wait for each other.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_GOOGLE = "0x1ae0"  # as vendor of a PCI device


def quieten_libtpu(root: Path = Path("/")) -> None:
    """Have an installed libtpu say nothing where there is no TPU.

    It is set before JAX looks for devices, and leaves the choice of these to JAX: a TPU
    or GPU that is there is used. What somebody has set of it stays.

    Args:
        root: of the file system in which devices are looked for.
    """
    if importlib.util.find_spec("libtpu") is not None and not _has_tpu(root):
        for name, value in WITHOUT_CHIPS.items():
            os.environ.setdefault(name, value)


def _has_tpu(root: Path) -> bool:
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    return (
        any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)
        or any(root.glob("dev/accel*"))
        or any(root.glob("dev/vfio/[0-9]*"))
    )


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
