"""Ctrl-C that ends a run wherever it comes.

Python raises KeyboardInterrupt in whatever runs then. In a callback of the garbage
collector, as JAX has one, it is printed and forgotten: so it is raised once more where
a run counts its steps.
"""

import signal
from types import FrameType

_seen = False


class Interrupted(SystemExit):
    """Ends the program with a line and the status that a shell gives to Ctrl-C.

    Whoever ends the program prints the line, which is the message.
    """

    def __init__(self, message: str):
        """Keep the line."""
        super().__init__(message)
        self.code = 128 + signal.SIGINT


def install() -> None:
    """Remember interrupts from now on, in a program that has Python's own handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise)


def check() -> None:
    """Raise KeyboardInterrupt if there has been one since the last time."""
    global _seen
    if _seen:
        _seen = False
        raise KeyboardInterrupt


def _raise(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    signal.default_int_handler(number, frame)
