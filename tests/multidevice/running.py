"""Programs in processes of their own, on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HELD: list[socket.socket] = []
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
    (printed,) = finish_all([process])
    return printed


def finish_all(processes):
    """What programs that run together have printed, as soon as all have ended well."""
    try:
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes what is left open
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [printed for printed, _ in ends]


def free_address():
    """Where the first of several processes can listen, and nobody else.

    The port is held: who listens on it has to share it, as gRPC does.
    """
    probe = socket.socket()
    if hasattr(socket, "SO_REUSEPORT"):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    probe.bind(("127.0.0.1", 0))
    _HELD.append(probe)
    return "{}:{}".format(*probe.getsockname())
