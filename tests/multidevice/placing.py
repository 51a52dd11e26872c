"""Eight host devices as a mesh, and what a compiled step exchanges between them."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_OTHERS = (
    "all-gather",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)
_SUM = r" = (\S+|\([^=]*\)) all-reduce(?:-start)?\("
_EXCHANGE = rf" = (\S+|\([^=]*\)) (all-reduce|{'|'.join(_OTHERS)})(?:-start)?\("


def mesh_of_eight() -> Mesh:
    assert jax.device_count() == 8
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def on(mesh: Mesh, *spec: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec))


def is_at(leaf: jax.Array, place: NamedSharding) -> bool:
    return leaf.sharding.is_equivalent_to(place, leaf.ndim)


def sizes_of_sums(compiled: Any) -> list[int]:
    """The sizes of all sums over devices; other exchanges there must be none."""
    # Long tuples have their places counted in comments.
    text = re.sub(r"/\*.*?\*/", "", compiled.as_text())
    for exchange in _OTHERS:
        assert exchange not in text, exchange
    sums = re.findall(_SUM, text)
    assert len(sums) == len(re.findall(r" all-reduce(?:-start)?\(", text))
    return [math.prod(shape) for result in sums for shape in _shapes(result)]


def exchanges(compiled: Any) -> dict[str, int]:
    """How many numbers each kind of exchange gives to one device."""
    text = re.sub(r"/\*.*?\*/", "", compiled.as_text())
    counts = collections.Counter()
    for result, kind in re.findall(_EXCHANGE, text):
        counts[kind] += sum(map(math.prod, _shapes(result)))
    return dict(counts)


def _shapes(result: str) -> Iterator[list[int]]:
    for shape in re.findall(r"\w+\[([0-9,]*)\]", result):
        yield [int(n) for n in shape.split(",") if n]
