"""A table of what each leaf will get, to read before a GPU is spent on it."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from normopt.blocks import Axes, block_size, check_channel_axes, resolve_axes
from normopt.checks import check_not_negative, check_radius
from normopt.matrices import Matrices, check_matrices, resolve_matrices
from normopt.norms import block_norm
from normopt.observing import Observation, summary
from normopt.paths import compiled, named_leaves
from normopt.registry import RULES, completed, make
from normopt.rules import PerLeaf, check_per_leaf, per_leaf

_SEEN = ("gradient", "weight", "relative_step", "angle")
_COLUMNS = (
    *("dtype", "axes", "blocks", "multiplier", "decay", "half-life"),
    *("matrices", "radius"),
    *(quantity.replace("_", " ") for quantity in _SEEN),
)
_NEUTRAL = {"channel_axes": None, "weight_decay": 0.0, "l1": 0.0, "lr_multipliers": 1.0}
_Digits = tuple[str, ...]


class _Row(NamedTuple):
    path: str
    shape: tuple[int, ...]
    cells: tuple[str, ...]  # of _COLUMNS


def describe(
    params: Any,
    config: Mapping[str, Any] | None = None,
    *,
    channel_axes: PerLeaf = None,
    weight_decay: PerLeaf = 0.0,
    l1: PerLeaf = 0.0,
    lr_multipliers: PerLeaf = 1.0,
    matrices: PerLeaf = None,
    radius: PerLeaf = None,
    only: str = "",
    observations: Mapping[str, Observation] | None = None,
) -> str:
    r"""Makes a table of the options that each leaf gets.

    Leaves share a row if they have equal shapes and options, and their paths differ
    only in numbers: `stages/{0..2}/conv{1,2}/kernel` stands for six leaves. If a column
    has the same value for all leaves, this value is in the line below the table
    instead.

    Args:
      params: a pytree of arrays, or of `jax.ShapeDtypeStruct`s from `jax.eval_shape`,
        or a whole module. Only arrays have a row.
      config: the configuration of the optimizer, as `normopt.config` takes and returns
        it. The options come from there, unless you also pass them as arguments. If a
        chain or a wrapper has several values of an option, the first one that has an
        effect counts. (None, a decay of 0 and a multiplier of 1 have no effect.) A
        decay that depends on the gradient or the learning rate has no half-life; then a
        line below the table says so.
      channel_axes: the axes that index the blocks of a leaf, per leaf (see
        `normalize_blocks`).
      weight_decay: the decay :math:`\lambda` per step, independent of the learning
        rate, at least 0, per leaf. Its half-life is :math:`\ln 2 / -\ln(1 - \lambda)`
        steps.
      l1: an L1 decay, at least 0, per leaf.
      lr_multipliers: factors of the learning rate, at least 0, per leaf.
      matrices: the input and output axes of matrices, per leaf, as in `orthogonalize`
        and `muon`. A dash marks the leaves that go to `rest`.
      radius: the radius of `retract_to_sphere`, per leaf: a number, `"initial"` (as in
        `hyperball` and `rotational`), `"present"`, or None for no such column. For
        `"initial"` and `"present"` the table shows the present lengths of the blocks,
        and how many blocks have length zero.
      only: a regular expression. Only leaves whose path it matches have a row and count
        in the totals.
      observations: the result of `normopt.observations`. The table then also has the
        norms of gradient and weights, the relative step and the angle in radians of
        each leaf. For a leaf of several blocks it shows the median and the largest
        number.

    Returns:
      A table with path, shape, number of leaves, dtype, axes, number and size of
      blocks, multiplier, decay and half-life. If you pass matrices, a radius or
      observations, it also has these; matrices as their number and size (inputs x
      outputs). Below the table, one line has the values that are the same for all
      leaves, and one line has the totals.

    Raises:
      TypeError: if a value has the wrong type.
      ValueError: for a bad value or configuration, axes that do not fit (see
        `normalize_blocks`), a pattern that matches no path, or observations that do not
        fit `params`.

    Examples:
      >>> import jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> params = {"layers": [layer, layer, layer], "head": jnp.ones((8, 3))}
      >>> print(normopt.describe(params, channel_axes={"kernel": (-1,)},
      ...                        weight_decay={"kernel": 0.01}))
      path                  shape   leaves  axes  blocks  decay  half-life
      head                  (8, 3)  1       None  -       0      -
      layers/{0..2}/bias    (8,)    3       None  -       0      -
      layers/{0..2}/kernel  (8, 8)  3       (1,)  8 of 8  0.01   69 steps
      every leaf: dtype float32, multiplier 1
      7 leaves, 240 parameters, 24 blocks
    """
    given = {
        "channel_axes": channel_axes,
        "weight_decay": weight_decay,
        "l1": l1,
        "lr_multipliers": lr_multipliers,
    }
    check_channel_axes(channel_axes)
    for option in list(_NEUTRAL)[1:]:
        check_per_leaf(option, given[option], check_not_negative)
    check_per_leaf("radius", radius, check_radius)
    check_matrices(matrices)
    options, notes = given, []
    if config is not None:
        complete = completed(config)
        options, notes = _read(complete, given)
        radius = _radius_in(complete) if radius is None else radius
        matrices = _matrices_in(complete) if matrices is None else matrices
    arrays = jax.tree.map(_array_or_none, params)
    search = compiled("only", only).search
    observed = _cells({} if observations is None else observations, arrays)
    rows = _rows(arrays, options, matrices, radius, observed)
    rows = [row for row in rows if search(row.path)]
    if not rows and named_leaves(arrays):
        listing = "\n  ".join(place.path for place in named_leaves(arrays))
        raise ValueError(
            f"`only`: no parameter path matches {only!r}. The paths are:\n  {listing}"
        )
    left_out = len(named_leaves(params)) - len(named_leaves(arrays))
    if left_out:
        notes.append(f"not shown: leaves that are no arrays, {left_out} of them")
    return "\n".join([*_table(rows), *notes, _totals(rows)])


def _array_or_none(leaf: Any) -> Any:
    if isinstance(leaf, float | complex):
        return np.asarray(leaf)
    return leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else None


def _read(
    config: Mapping[str, Any], given: dict[str, PerLeaf]
) -> tuple[dict[str, PerLeaf], list[str]]:
    """Reads the options of a complete configuration, and notes what has no column."""
    options, notes = dict(given), []
    for part, level in _levels(config):
        for option, neutral in _NEUTRAL.items():
            value = _built(level.get(option, neutral))
            if _is_neutral(value, neutral):
                continue
            is_decay = option in ("weight_decay", "l1")
            if part:
                notes.append(f"{option} {value} of {part}: not in the table")
            elif is_decay and "schedule" not in level:
                notes.append(
                    f"{option} {value} of {level['name']}: tied to the gradient or the "
                    "learning rate, for which the table has no column"
                )
            elif _is_neutral(options[option], neutral):
                options[option] = value
            elif options[option] != value:
                notes.append(f"{option} {value} of {level['name']}: not in the table")
    return options, notes


def _radius_in(config: Mapping[str, Any]) -> PerLeaf:
    """Reads the radius of what brings weights back to a sphere, if something does."""
    for part, level in _levels(config):
        if not part and level["name"] in ("hyperball", "rotational"):
            return "initial"
        if not part and "radius" in level:
            return level["radius"]
    return None


def _matrices_in(config: Mapping[str, Any]) -> PerLeaf:
    """Reads which leaves are matrices, if something makes matrices orthogonal."""
    for part, level in _levels(config):
        if not part and "matrices" in level:
            return _built(_tupled(level["matrices"]))
    return None


def _tupled(value: Any) -> Any:
    """Gives the lists of a JSON configuration as the tuples that they stand for."""
    if isinstance(value, Mapping):
        return {key: _tupled(one) for key, one in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _levels(value: Any, part: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Lists a configuration and all those inside it, the outermost first.

    With each comes what part of the params it is of, if it may not be of all.
    """
    if isinstance(value, Mapping) and _built(value) is value:
        if isinstance(value.get("name"), str):
            yield part, value
        is_masked = any(option.endswith("mask") and value[option] for option in value)
        for option, inner in value.items():
            of_part = option in ("rest", "length") or is_masked
            yield from _levels(inner, part or (option if of_part else ""))
    elif isinstance(value, list):
        for inner in value:
            yield from _levels(inner, part)


def _built(value: Any) -> Any:
    """Builds a rule that a configuration names; other values stay."""
    is_rule = isinstance(value, Mapping) and value.get("name") in RULES
    return make(**value) if is_rule else value


def _is_neutral(value: PerLeaf, neutral: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_neutral(one, neutral) for one in value.values())
    return (
        value is None if neutral is None else not callable(value) and value == neutral
    )


def _cells(
    observations: Mapping[str, Observation], params: Any
) -> dict[str, tuple[str, ...]]:
    """Writes down what was observed of each leaf."""
    numbers = summary(observations)
    shapes = {place.path: np.shape(place.leaf) for place in named_leaves(params)}
    for path, seen in observations.items():
        if path not in shapes:
            raise ValueError(
                f"`observations` has {path!r}, which is no path of these params"
            )
        blocks, rest = np.shape(seen.weight), iter(shapes[path])
        if not all(number in rest for number in blocks):
            raise ValueError(
                f"`observations` has blocks of shape {blocks} for {path!r}, whose own "
                f"shape is {shapes[path]}: they are those of other params"
            )

    def cell(path: str, quantity: str) -> str:
        name = f"{path}/{quantity}" if path else quantity
        most = numbers.get(f"{name}_max")
        return f"{numbers[name]:.3g}" + ("" if most is None else f", max {most:.3g}")

    return {path: tuple(cell(path, one) for one in _SEEN) for path in observations}


def _rows(
    params: Any,
    options: dict[str, PerLeaf],
    matrices: PerLeaf,
    radius: PerLeaf,
    observed: Mapping[str, tuple[str, ...]],
) -> list[_Row]:
    axes = resolve_axes(options["channel_axes"], params)
    decays, l1s, multipliers = (
        per_leaf(option, options[option], params, neutral, check_not_negative)
        for option, neutral in list(_NEUTRAL.items())[1:]
    )
    radii = per_leaf("radius", radius, params, None, check_radius)
    pairs = resolve_matrices(matrices, params)
    rows, nothing = [], ("-",) * len(_SEEN)
    for place, own, decay, sparsity, multiplier, pair, length in zip(
        named_leaves(params), axes, decays, l1s, multipliers, pairs, radii, strict=True
    ):
        shape, blocks = np.shape(place.leaf), "-"
        if own is not None:
            size = block_size(shape, own)
            blocks = f"{math.prod(shape) // size} of {size}"
        l1_part = f" + l1 {float(sparsity):g}" if float(sparsity) else ""
        cells = (
            *(str(place.leaf.dtype), str(own), blocks, f"{float(multiplier):g}"),
            *(f"{float(decay):g}{l1_part}", _half_life(float(decay))),
            *(_matrices(shape, pair), _radius(place.leaf, own, length)),
            *observed.get(place.path, nothing),
        )
        rows.append(_Row(place.path, shape, cells))
    return rows


def _matrices(shape: tuple[int, ...], pair: Matrices | None) -> str:
    if pair is None:
        return "-"
    inputs, outputs = pair.sizes(shape)
    number = math.prod(shape[axis] for axis in pair.stack(len(shape)))
    return (
        f"{inputs} x {outputs}" if number == 1 else f"{number} of {inputs} x {outputs}"
    )


def _radius(leaf: Any, axes: Axes, radius: Any) -> str:
    if axes is None or radius is None or block_size(np.shape(leaf), axes) == 1:
        return "-"
    if not isinstance(radius, str):
        return f"{float(radius):g}"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return radius
    lengths = np.asarray(block_norm("l2", leaf, axes), np.float64)
    present = lengths[lengths > 0]
    missing = lengths.size - present.size
    parts = [f"{present.min():.3g} to {present.max():.3g}"] if present.size else []
    return ", ".join(parts + ([f"{missing} without length"] if missing else []))


def _half_life(decay: float) -> str:
    if decay == 0:
        return "-"
    steps = 1.0 if decay >= 0.5 else math.log(2) / -math.log1p(-decay)
    return f"{steps:,.0f} steps"


def _table(rows: Sequence[_Row]) -> list[str]:
    """Lays rows out: folded, and with what all of them share in a line below."""
    values = [sorted({row.cells[i] for row in rows}) for i in range(len(_COLUMNS))]
    shared = [len(own) == 1 and len(rows) > 1 for own in values]
    asked = _COLUMNS.index("matrices")  # from here on what may not be given
    shared[asked:] = [
        all_of or own == ["-"]
        for all_of, own in zip(shared[asked:], values[asked:], strict=True)
    ]
    folded = list(_folded(rows))
    counted = any(count > 1 for *_, count in folded)
    lines = [["path", "shape", *["leaves"] * counted]]
    lines[0] += [
        name for name, all_of in zip(_COLUMNS, shared, strict=True) if not all_of
    ]
    for path, row, count in folded:
        cells = [
            cell for cell, all_of in zip(row.cells, shared, strict=True) if not all_of
        ]
        lines.append([path, str(row.shape), *[str(count)] * counted, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    told = [
        f"{name} {own[0]}"
        for name, own, all_of in zip(_COLUMNS, values, shared, strict=True)
        if all_of and own[0] != "-"
    ]
    return [*laid, f"every leaf: {', '.join(told)}"] if told else laid


def _folded(rows: Sequence[_Row]) -> Iterator[tuple[str, _Row, int]]:
    """Joins the rows that differ in the numbers of their paths alone."""
    groups: dict[Any, dict[_Digits, _Row]] = {}
    for row in rows:
        words = tuple(re.split(r"\d+", row.path))
        key = words, row.shape, row.cells
        groups.setdefault(key, {})[tuple(re.findall(r"\d+", row.path))] = row
    for (words, *_), members in groups.items():
        for choices in _products(list(members)):
            first = members[tuple(choice[0] for choice in choices)]
            spelt = [_spelt(choice) for choice in choices]
            path = "".join(itertools.chain(*zip(words, [*spelt, ""], strict=True)))
            yield path, first, math.prod(map(len, choices))


def _products(numbers: list[_Digits]) -> Iterator[tuple[_Digits, ...]]:
    """Splits tuples of numbers into full products of choices for each place."""
    choices = tuple(tuple(dict.fromkeys(place)) for place in zip(*numbers, strict=True))
    if math.prod(map(len, choices)) == len(numbers):
        yield choices
        return
    rests: dict[str, list[_Digits]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[_Digits, ...], list[str]] = {}
    for first, rest in rests.items():
        alike.setdefault(tuple(rest), []).append(first)
    for rest, firsts in alike.items():
        for choice in _products(list(rest)):
            yield (tuple(firsts), *choice)


def _spelt(choice: _Digits) -> str:
    """Writes 3, {0,2} or {0..5}."""
    choice = tuple(sorted(choice, key=int))
    if len(choice) == 1:
        return choice[0]
    start = int(choice[0])
    is_run = choice == tuple(str(start + i) for i in range(len(choice)))
    if is_run and len(choice) > 2:
        return f"{{{choice[0]}..{choice[-1]}}}"
    return f"{{{','.join(choice)}}}"


def _totals(rows: Sequence[_Row]) -> str:
    blocks = [row.cells[_COLUMNS.index("blocks")] for row in rows]
    parameters = sum(math.prod(row.shape) for row in rows)
    return (
        f"{len(rows)} leaves, {parameters:,} parameters, "
        f"{sum(int(b.split()[0]) for b in blocks if b != '-'):,} blocks"
    )
