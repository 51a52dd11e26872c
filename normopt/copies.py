"""Copies of arrays that only sums read, which saves memory traffic on a CPU.

On a CPU, XLA computes a large sum without storing its input, if nothing but the sum
reads that input. In AdamS, g + wd w is read twice, by the sum of its squares and by the
moment. So XLA stores it: 45 MB in each step for the shapes of ResNet-18. If the sum
reads a copy of its own, nothing is stored, and the step takes half of the time:

    python -m experiments step_time --optimizers adams+L2 adamp

So where a link has computed its output, the step of the next link is traced twice. The
first time it gets copies, and only its sums are used. The second time it gets the
arrays themselves and these sums. The copies are computed again from arrays that are
stored in any case, behind a barrier, without which XLA would find that both are equal
and merge them. On GPUs and TPUs there is no barrier, so XLA merges them, and the
program is the same as without copies.
"""

import contextlib
import contextvars
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core

_TAKEN: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar(
    "taken", default=None
)
_GIVEN: contextvars.ContextVar[Iterator[jax.Array] | None] = contextvars.ContextVar(
    "given", default=None
)
# The elements of 128 kB. Copies of smaller arrays only cost: of 120 leaves they made
# AdamP's step take 1.4 times as long to compile (python -m experiments compile_time
# --layers 40).
LARGE = 2**15
# By the identity of an array that is traced: itself, and what copies it, if that can be
# had. All arrays are held weakly: nothing of a trace outlives it.
_MADE: dict[int, tuple[weakref.ref, Callable[[int], Any]]] = {}


def reduction(take: Callable[[], jax.Array]) -> jax.Array:
    """Takes a sum over blocks, or gives the one that was taken of a copy."""
    given, taken = _GIVEN.get(), _TAKEN.get()
    known = None if given is None else next(given, None)
    result = take() if known is None else known
    if taken is not None:
        taken.append(result)
    return result


@dataclasses.dataclass(frozen=True)
class Alone:
    """Lets a function take sums as it likes, which are of no copies.

    That may be a function of a user's, or one that sees its arrays in another way than
    the step around it. Two of one function are the same to `jax.jit`.
    """

    function: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        """Calls the function."""
        with _set(_TAKEN, None), _set(_GIVEN, None):
            return self.function(*inputs)


def with_sums_of(
    copies: Sequence[tuple[Any, ...]], step: Callable[..., Any], *inputs: Any
) -> Any:
    """Calls `step(*inputs)`, in which the sums over blocks are those of copies.

    If a step adds arrays, such as w + u, and takes two sums of the result, XLA stores
    the result, even of a copy. So each sum can have a copy to itself.

    Args:
      copies: copies of the inputs, one or several. The first sum is taken of the first
        copy, and so on. The rest are taken of the last copy.
      step: gives all sums that it took, or was given, as the last of its results.
      inputs: what it gets.
    """
    sums: tuple[jax.Array, ...] = ()
    for number, copy in enumerate(copies, 1):
        with _set(_GIVEN, iter(sums)):
            taken = step(*copy)[-1]
        sums = taken if number == len(copies) else taken[:number]
    with _set(_GIVEN, iter(sums)):
        return step(*inputs)


@contextlib.contextmanager
def sums_taken() -> Iterator[list[jax.Array]]:
    """Lists the sums over blocks that a step takes or is given."""
    with _set(_TAKEN, []) as sums:
        yield sums


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def remember(made: Any, copy: Callable[..., Any], *inputs: Any) -> None:
    """Notes that `copy(mark, *inputs)` gives a copy of an array, or None."""
    if not _is_traced(made):
        return
    leaves, treedef = jax.tree.flatten(inputs)
    held = [weakref.ref(x) if _is_traced(x) else (lambda x=x: x) for x in leaves]

    def again(mark: int) -> Any:
        # Under `jax.vmap` or `jax.grad` what was made need not refer to all of them.
        now = [hold() for hold in held]
        if any(x is None for x in now):
            return None
        return copy(mark, *treedef.unflatten(now))

    key = id(made)
    _MADE[key] = weakref.ref(made, lambda _: _MADE.pop(key, None)), again


def wants_copies(tree: Any) -> bool:
    """Tells whether a link has made one of the arrays of a tree that is worth it."""
    return any(jnp.size(x) >= LARGE and _copier(x) for x in jax.tree.leaves(tree))


def apart(tree: Any, mark: int) -> Any:
    """Copies the arrays of a tree, those that links have made from what made them.

    An array of which no copy can be had stays as it is.

    Args:
      tree: arrays.
      mark: which copy it is. XLA merges two of one mark.
    """
    leaves, treedef = jax.tree.flatten(tree)
    copiers = [_copier(x) for x in leaves]
    others = [x for x, one in zip(leaves, copiers, strict=True) if one is None]
    behind = iter(_behind_barrier(others, mark))
    copies = [next(behind) if copier is None else copier(mark) for copier in copiers]
    return treedef.unflatten(
        x if copy is None else copy for x, copy in zip(leaves, copies, strict=True)
    )


def stored(x: jax.Array, beside: jax.Array, *earlier: jax.Array) -> jax.Array:
    """Returns an array unchanged. A CPU stores it once for all sums that read it.

    What an optimizer makes of a leaf often ends with a product by the learning rate.
    XLA stores the product for the sums, and the other factor for the last pass: 89 MB
    for the shapes of ResNet-18. It stores only the result of an operation on two
    arrays, so this is one, with 45 MB. If each leaf comes after the sums of the last
    one, few leaves are stored at once, with 19 MB; and the C library keeps so little
    from step to step, where it would fetch 45 MB anew, page by page. On two cores the
    steps of `hyperball` and `rotational` take 0.55 and 0.63 of the time that they take
    without this function:

        python -m experiments step_time --optimizers hyperball rotational

    The megabytes are those that `memory_analysis` tells of the compiled step.

    It pays only for what is made in the step. An array that is an argument of the
    program is stored already.

    Args:
      x: what was made of a leaf.
      beside: another array of real numbers, which is read in any case. If it has
        another shape, dtype or place on devices, x is returned as it came.
      earlier: arrays that a CPU has before it stores x, such as sums over the last
        leaf: memory that was taken for that one can then be taken for x.
    """
    is_alike = jax.typeof(x) == jax.typeof(beside) and x.size >= LARGE
    is_real = jnp.issubdtype(x.dtype, jnp.floating)
    if not (_is_traced(x) and is_alike and is_real) or _is_manual():
        return x

    def from_all(x: jax.Array, beside: jax.Array, *earlier: jax.Array) -> jax.Array:
        held = map(jax.lax.stop_gradient, (x, *earlier))
        return _from_all(x, beside, _largest(*held))

    return jax.lax.platform_dependent(x, beside, *earlier, cpu=from_all, default=_first)


def after(x: jax.Array, first: jax.Array, *others: jax.Array) -> jax.Array:
    """Returns numbers unchanged. A CPU computes them only after others.

    What follows from x may take the place of an array, as new weights do. XLA copies
    the array first if it plans a sum of it for later.

    Args:
      x: real numbers.
      first: what a CPU has before, of a shape that broadcasts with x.
      others: more of it.
    """
    if not _is_traced(x) or _is_manual():
        return x
    return jax.lax.platform_dependent(x, first, *others, cpu=_from_all, default=_first)


def from_kept(mark: int, program: Any, kept: Any, *inputs: Any) -> Any:
    """Computes the first result of a program anew, of its other ones.

    Args:
      mark: which copy it is; see `apart`.
      program: a traced function, whose next results are kept in any case.
      kept: those.
      inputs: what it was called with, of which only numbers are used.

    Returns:
      The array, or None if it does not follow from these.
    """
    jaxpr = program.jaxpr.jaxpr
    first, *others = jaxpr.outvars
    arguments = zip(jaxpr.invars, jax.tree.leaves(inputs), strict=True)
    given = {var: x for var, x in arguments if jnp.ndim(x) == 0}
    known = jax.tree.leaves(kept)
    given |= zip(others[: len(known)], known, strict=True)

    def is_given(x: Any) -> bool:
        return isinstance(x, core.Literal) or x in given

    wanted = set() if is_given(first) else {first}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            equations.append(equation)
            wanted.update(x for x in equation.invars if not is_given(x))
    if not wanted.issubset(var for one in equations for var in one.outvars):
        return None
    # With the program's own numbers, too: one that a copy and the update had in common
    # would be stored in the shape of the leaf.
    read = [first, *(x for equation in equations for x in equation.invars)]
    leaves = {id(x): x for x in read if is_given(x)}
    own = [x.val if isinstance(x, core.Literal) else given[x] for x in leaves.values()]
    values = dict(zip(leaves, _behind_barrier(own, mark), strict=True))
    for equation in reversed(equations):
        operands = (values[id(x)] for x in equation.invars)
        results = equation.primitive.bind(*operands, **equation.params)
        if not equation.primitive.multiple_results:
            results = [results]
        values |= zip(map(id, equation.outvars), results, strict=True)
    return values[id(first)]


def _copier(x: Any) -> Callable[[int], Any] | None:
    made, again = _MADE.get(id(x), (None, None))
    return again if made is not None and made() is x else None


def _behind_barrier(arrays: list[Any], mark: int) -> Any:
    def barrier(arrays: list[Any]) -> list[Any]:
        return jax.lax.optimization_barrier((arrays, mark))[0]

    if _is_manual():
        return arrays
    return jax.lax.platform_dependent(arrays, cpu=barrier, default=_as_they_are)


def _from_all(x: jax.Array, *others: jax.Array) -> jax.Array:
    # XLA does not know that nothing is above infinity, NaN neither, nor that the
    # product is x as well.
    above = (jnp.real(other) > jnp.inf for other in others)
    is_above = functools.reduce(jnp.logical_or, above)
    return jnp.where(is_above, jnp.abs(x) * jnp.sign(x), x)


@jax.custom_batching.custom_vmap
def _largest(x: jax.Array, *arrays: jax.Array) -> jax.Array:
    """Takes the largest number of some arrays, for x."""
    del x
    largest = [jnp.max(jnp.real(one)).astype(jnp.float32) for one in arrays]
    return functools.reduce(jnp.maximum, largest, jnp.float32(0))


@_largest.def_vmap
def _largest_for_batch(
    size: int, are_batched: list[bool], x: jax.Array, *arrays: jax.Array
) -> tuple[jax.Array, bool]:
    """Leaves x alone if `jax.vmap` maps over arrays, but not over x."""
    del size
    of_x, *of_arrays = are_batched
    pairs = zip(arrays, of_arrays, strict=True)
    return _largest(x, *(one for one, has in pairs if of_x or not has)), False


def _first(x: jax.Array, *others: jax.Array) -> jax.Array:
    del others
    return x


def _as_they_are(arrays: list[Any]) -> list[Any]:
    return arrays


def _is_traced(x: Any) -> bool:
    return isinstance(x, Tracer)


def _is_manual() -> bool:
    """Tells whether this is inside `jax.shard_map`.

    There an array that is the same on all devices may not depend on one that is not.
    """
    return bool(jax.sharding.get_abstract_mesh().manual_axes)
