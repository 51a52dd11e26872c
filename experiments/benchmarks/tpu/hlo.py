"""What stands in the text of a compiled program: exchanges and main memory traffic."""

import math
import re
from typing import Any

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Of an exchange that has a start and an end, the end has the type of the result.
_EXCHANGE = re.compile(rf"(?:^|\s)%?(\S+) = (.*?) ({'|'.join(KINDS)})(?:-done)?\(")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ARRAY = re.compile(r"\b[a-z]+(\d*)[a-z0-9]*\[([0-9,]*)\]")
# The TPU's name for a sum of which each chip keeps a part: a fusion around the sum.
_SCATTERED_SUM = re.compile(r"^%?all-reduce-scatter\S* .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][a-z-]*)\((.*)$", re.M
)
_OPERAND = re.compile(r"%([^\s,)]+)")
_ON_CHIP = re.compile(r"\b[a-z]+\d*[a-z0-9]*\[[0-9,]*\]\{[^}]*S\(\d+\)[^}]*\}")
# They name what is there, or end what began before.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("copy-done", "slice-start", "conditional"),
}


def collectives(text: str, devices: int) -> list[dict[str, Any]]:
    """Sum up the collectives of a program in which all devices take part in each.

    Args:
        text: the compiled program, as `jax.stages.Compiled.as_text` gives it.
        devices: how many there are.

    Returns:
        A row a kind: `kind`, `count` and `bytes`, those of the whole arrays that are
        summed, gathered or scattered, or of what one device sends to another.
    """
    sizes: dict[str, dict[str, int]] = {}
    scattered = False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            scattered = bool(_SCATTERED_SUM.match(line))
        if found := _EXCHANGE.search(line):
            name, result, kind = found.groups()
            size = _bytes(result) * (devices if kind == "reduce-scatter" else 1)
            if scattered:
                kind = "reduce-scatter"
            # An exchange that other work hides stands in several fusions, and its
            # channel is what they share.
            channel = _CHANNEL.search(line)
            sizes.setdefault(kind, {})[channel[1] if channel else name] = size
    return [
        {"kind": kind, "count": len(sizes[kind]), "bytes": sum(sizes[kind].values())}
        for kind in KINDS
        if kind in sizes
    ]


def main_memory_bytes(text: str) -> int:
    """Sum up what a TPU's program reads from and writes to its main memory.

    What lies in a memory of the chip itself has its number in the layout, `S(1)`. XLA's
    own `bytes accessed` counts that too, and the whole array for each slice of it. What
    a conditional reads and writes is left out: it may be what few steps do.

    Args:
        text: the compiled program, whose every other instruction must run once and use
            all of its operands, as in a step of an optimizer.
    """
    entry = text[text.index("\nENTRY ") :]
    types = {name: result for name, result, _, _ in _INSTRUCTION.findall(entry)}
    total = 0
    for _, result, operation, rest in _INSTRUCTION.findall(entry):
        if operation == "slice-done":
            total += _bytes(result)
        elif operation == "copy-start":
            # The copy and what it copies, of which one may lie in the chip's memory.
            total += _bytes(_in_main_memory(result))
        elif operation not in _FREE and "ConcatBitcast" not in rest:
            operands = _OPERAND.findall(rest.partition(")")[0])
            total += sum(_bytes(_in_main_memory(types[name])) for name in operands)
            total += _bytes(_in_main_memory(result))
    return total


def _in_main_memory(result: str) -> str:
    return _ON_CHIP.sub("", result)


def _bytes(result: str) -> int:
    """Return the bytes of a type, which may be a tuple, without its padding."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * int(bits or 8) // 8
        for bits, shape in _ARRAY.findall(result)
    )
