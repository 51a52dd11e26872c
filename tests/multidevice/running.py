"""Programs in processes of their own, on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EIGHT = "--xla_force_host_platform_device_count=8"


def start(module, *args, flags=""):
    """Start `python -m module`; `flags` are XLA's, beside those that are set."""
    # Stripped: of what is blank, XLA takes the blank for the name of a file.
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What a program has printed, as soon as it has ended well."""
    try:
        printed, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return printed


def free_address():
    """Where the first of several processes can listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "{}:{}".format(*probe.getsockname())
