"""What scaling a leaf's blocks changes in the loss, in float64 and by brute force.

The network keeps its own epsilons. Blocks are multiplied by random factors around 1/2
and 2, and the change of the loss is compared with that by moves of the same blocks, as
far in random directions: below 1 % a leaf is invariant, and from 0.3 to 3 % either
answer is right. That is asked near the parameters, for biases that start at zero hide
what they break.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.paths import named_leaves
from tests.versions import enable_x64

INVARIANT, NOT_INVARIANT = 0.03, 0.003
POINTS, DRAWS = 3, 4
# Where no move changes the loss by more than this share, there is nothing to compare.
NO_CHANGE = 1e-9

Axes = tuple[int, ...]


class Oracle:
    """One network in float64."""

    def __init__(self, loss_fn: Callable, params: Any, args: Any, has_aux: bool):
        self._rng = np.random.default_rng(0)
        with enable_x64(True):
            leaves, self._structure = jax.tree.flatten(params)
            self._leaves = [_doubled(leaf) for leaf in leaves]
            args = jax.tree.map(_doubled, args)

            def value(leaves, args):
                result = loss_fn(self._structure.unflatten(leaves), *args)
                return jnp.asarray(result[0] if has_aux else result, jnp.float64)

            numbers = {i: w for i, w in enumerate(self._leaves) if _is_numbers(w)}
            rest = {i: w for i, w in enumerate(self._leaves) if i not in numbers}
            compiled = jax.jit(
                lambda numbers, args: value(
                    [(numbers | rest)[i] for i in range(len(leaves))], args
                )
            )
            self._value = lambda numbers: float(compiled(numbers, args))
            self._index = {p.path: i for i, p in enumerate(named_leaves(params))}
            sizes = {i: _rms(w) for i, w in numbers.items()}
            usual = np.median([s for s in sizes.values() if s] or [0.1])
            self._points = [
                {
                    i: w + 0.3 * (sizes[i] or usual) * self._noise(w)
                    for i, w in numbers.items()
                }
                for _ in range(POINTS)
            ]
            self._losses = [self._value(point) for point in self._points]

    def ratio(self, path: str, axes: Axes) -> float:
        """What scaling changes over what other moves change; 0 over 0 is infinite."""
        by_scale, by_others, i = 0.0, 0.0, self._index[path]
        with enable_x64(True):
            for point, loss in zip(self._points, self._losses, strict=True):
                w, size = point[i], max(abs(loss), 1e-300)
                within = tuple(a for a in range(w.ndim) if a not in axes)
                shape = tuple(n if a in axes else 1 for a, n in enumerate(w.shape))
                for _ in range(DRAWS):
                    sign = self._rng.choice([-1, 1], shape)
                    factors = 2 ** (sign * self._rng.uniform(0.75, 1.25, shape))
                    move = self._noise(w)
                    move /= np.sqrt(np.sum(np.abs(move) ** 2, within, keepdims=True))
                    move *= np.sqrt(np.sum(np.abs(w) ** 2, within, keepdims=True))
                    others = w + np.abs(factors - 1) * move
                    by_scale += (
                        (self._value(point | {i: w * factors}) - loss) / size
                    ) ** 2
                    by_others += ((self._value(point | {i: others}) - loss) / size) ** 2
        if by_others < NO_CHANGE**2:
            return np.inf
        return float(np.sqrt(by_scale / by_others))

    def _noise(self, w: np.ndarray) -> np.ndarray:
        noise = self._rng.normal(size=w.shape)
        if np.iscomplexobj(w):
            noise = (noise + 1j * self._rng.normal(size=w.shape)) / np.sqrt(2)
        return noise

    def mistakes(self, found: dict[str, Axes]) -> dict[str, str]:
        """Names what is wrong, by path, in answers that a search gave."""
        wrong = {}
        for path, i in self._index.items():
            if not _is_numbers(self._leaves[i]):
                continue
            shape, axes = self._leaves[i].shape, found.get(path)
            if axes is not None and self.ratio(path, axes) > INVARIANT:
                wrong[path] = f"{axes}: {self.ratio(path, axes):.3g}"
            for finer in _finer(shape, axes):
                if self.ratio(path, finer) < NOT_INVARIANT:
                    wrong[path] = f"{axes}, not {finer}: {self.ratio(path, finer):.3g}"
        return wrong


def _finer(shape: tuple[int, ...], axes: Axes | None) -> list[Axes]:
    """Lists the next finer partitions with blocks of more than one element."""
    if axes is None:
        options = [()]
    else:
        rest = [a for a, n in enumerate(shape) if a not in axes and n > 1]
        options = [tuple(sorted((*axes, a))) for a in rest]
    return [
        o
        for o in options
        if np.prod([n for a, n in enumerate(shape) if a not in o]) > 1
    ]


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc" and leaf.size > 0


def _rms(w: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(w) ** 2)))


def _doubled(leaf: Any) -> Any:
    """Makes arrays float64 or complex128; everything else stays as it is."""
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return np.asarray(leaf, np.complex128)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.asarray(leaf, np.float64)
    return leaf
