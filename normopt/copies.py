"""Copies of arrays for sums alone, which XLA's CPU then takes without storing them.

XLA's CPU hands each large sum to a library, together with the arithmetic that makes
what is summed, if nobody else uses that. Of g + wd w there are two users: the sum of
its squares, and the moment. So it is stored: 45 MB in each step of AdamS on ResNet-18's
shapes, and 2.3 times optax.adamw's time, where a copy for the sum alone leaves 0 MB and
1.0 times:

    python -m experiments step_time --optimizers adams adams+L2

A link's step is therefore taken twice where what comes in was made by a link: once of
copies, for the sums, of which all else is thrown away, and once of what came in, with
those sums. Copies are made of the inputs of the link that made an array, behind a
barrier, as XLA would see that they are the same and merge them. Elsewhere than on CPUs
there is no barrier, and they are merged: a GPU's or TPU's program stays as it is.
"""

import contextlib
import contextvars
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax

_Sums = list[jax.Array]
_TAKEN: contextvars.ContextVar[_Sums | None] = contextvars.ContextVar(
    "taken", default=None
)
_GIVEN: contextvars.ContextVar[Iterator[jax.Array] | None] = contextvars.ContextVar(
    "given", default=None
)
# By the identity of an array that is traced: itself, and what makes a copy of it. Both
# are held weakly, so that nothing of a trace outlives it.
_MADE: dict[int, tuple[weakref.ref, Callable[[], jax.Array | None]]] = {}


def reduction(take: Callable[[], jax.Array]) -> jax.Array:
    """Takes a sum over blocks, or gives that of a copy which was taken before."""
    if (given := _GIVEN.get()) is not None:
        return next(given)
    result = take()
    if (taken := _TAKEN.get()) is not None:
        taken.append(result)
    return result


@contextlib.contextmanager
def _within(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def with_sums_of(copy: Any, step: Callable[..., Any], *inputs: Any) -> Any:
    """Calls `step(*inputs)`, in which all sums are those of `step(*copy)`."""
    with _within(_TAKEN, []) as sums:
        step(*copy)
    with _within(_GIVEN, iter(sums)):
        return step(*inputs)


def remember(made: Any, make: Callable[..., Any] | None, *inputs: Any) -> None:
    """Notes that `made`, an array, is `make(*inputs)`, or with None that none is made.

    What `make` takes is cheap to compute again from what is stored in any case.
    """
    if not _is_traced(made):
        return
    leaves, treedef = jax.tree.flatten(inputs)
    held = [weakref.ref(x) if _is_traced(x) else (lambda x=x: x) for x in leaves]

    def again() -> jax.Array | None:
        copies = None if make is None else _copies([hold() for hold in held])
        return None if copies is None else make(*treedef.unflatten(copies))

    key = id(made)
    _MADE[key] = weakref.ref(made, lambda _: _MADE.pop(key, None)), again


def copied(tree: Any) -> Any:
    """Copies the arrays of a tree, or gives None unless that spares one its place."""
    leaves, treedef = jax.tree.flatten(tree)
    copies = _copies(leaves) if any(map(_again, leaves)) else None
    return None if copies is None else treedef.unflatten(copies)


def _copies(arrays: list[Any]) -> list[Any] | None:
    """Copies arrays, each apart from all that has been copied before.

    None are given where one of them would have to be stored.
    """
    again = [_again(x) for x in arrays]
    made = [None if one is None else one() for one in again]
    others = [x for x, one in zip(arrays, again, strict=True) if one is None]
    if any(x is None for x in others):
        return None
    behind = iter(_behind_barrier(others) if others else ())
    copies = [
        next(behind) if one is None else x for x, one in zip(made, again, strict=True)
    ]
    return None if any(x is None for x in copies) else copies


def _again(x: Any) -> Callable[[], jax.Array | None] | None:
    made, again = _MADE.get(id(x), (None, None))
    return again if made is not None and made() is x else None


def _behind_barrier(arrays: list[Any]) -> Any:
    return jax.lax.platform_dependent(
        arrays, cpu=jax.lax.optimization_barrier, default=_as_they_are
    )


def _as_they_are(arrays: list[Any]) -> list[Any]:
    return arrays


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)
