"""The loss as a compiled function of the numeric leaves, and what is asked of it.

What a user may have got wrong about it is said in the user's terms, without a tracer.
"""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normopt.blocks import has_numbers
from normopt.numerics import widened
from normopt.paths import NamedLeaf, named_leaves

Weights = list[jax.Array]
Value = Callable[[Weights], jax.Array]
Gradient = Callable[[Weights, float], tuple[jax.Array, Weights]]

# Code between a user's loss and here, which is no place to look for a mistake.
_LIBRARIES = {str(Path(m.__file__ or "").parent) for m in (jax,)} | {
    str(Path(__file__).parent)
}


def numeric_leaves(params: Any) -> list[tuple[int, NamedLeaf]]:
    """Lists the leaves that a loss can be differentiated by, with their positions.

    Python numbers are not among them: a module's `eps` or its rate of dropout is no
    weight, and the loss may choose by it.

    Raises:
      TypeError: if a leaf is the shape of an array and not an array.
    """
    found = []
    for position, place in enumerate(named_leaves(params)):
        if isinstance(place.leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                "`find_scale_invariance` takes gradients at `params` and needs arrays, "
                f"got {place.leaf} at {place.path!r}"
            )
        if isinstance(place.leaf, jax.Array | np.ndarray | np.generic) and has_numbers(
            place.leaf
        ):
            found.append((position, place))
    return found


def compiled_loss(
    loss_fn: Callable[..., Any], params: Any, args: tuple[Any, ...], has_aux: bool
) -> tuple[Value, Gradient]:
    """Compiles the loss, and its gradient, as functions of the numeric leaves.

    Arrays among `args` are passed as arguments of the compiled functions; everything
    else there may be anything, and is closed over.

    Returns:
      `weights -> loss`, and `(weights, factor) -> (loss, gradient of factor times the
      loss)`.
    """
    leaves, structure = jax.tree.flatten(params)
    positions = [position for position, _ in numeric_leaves(params)]
    given, arg_structure = jax.tree.flatten(args)
    is_array = [_is_argument(leaf) for leaf in given]
    arrays = [leaf for leaf, yes in zip(given, is_array, strict=True) if yes]

    def loss_of(weights: Weights, arrays: list[Any]) -> jax.Array:
        moved, rest = list(leaves), iter(arrays)
        for position, weight in zip(positions, weights, strict=True):
            moved[position] = weight
        all_args = [
            next(rest) if yes else leaf
            for leaf, yes in zip(given, is_array, strict=True)
        ]
        return widened(
            _called(
                loss_fn,
                (structure.unflatten(moved), *arg_structure.unflatten(all_args)),
                has_aux,
            )
        )

    @jax.jit
    def gradient(
        weights: Weights, factor: jax.Array, arrays: list[Any]
    ) -> tuple[jax.Array, Weights]:
        def scaled(weights: Weights) -> tuple[jax.Array, jax.Array]:
            loss = loss_of(weights, arrays)
            return loss * factor.astype(loss.dtype), loss

        grads, loss = jax.grad(scaled, has_aux=True)(weights)
        return loss, grads

    value = jax.jit(loss_of)
    return (
        lambda weights: value(weights, arrays),
        lambda weights, factor: gradient(weights, jnp.float32(factor), arrays),
    )


def _called(
    loss_fn: Callable[..., Any], args: tuple[Any, ...], has_aux: bool
) -> jax.Array:
    """Calls the loss, and takes the number out of what it returns."""
    try:
        result = loss_fn(*args)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        where = _place_of(error)
        raise TypeError(
            "`loss_fn` is compiled by jax.jit, so its parameters and arrays have no "
            f"values while it runs, but it needs one{where}: no `if`, `while`, float() "
            "or NumPy on them; jnp.where and jax.lax.cond choose by value, and plain "
            "Python numbers among `args` keep theirs"
        ) from None
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "with has_aux=True `loss_fn` must return a pair (loss, aux), got "
            f"{_described(result)}"
        )
    loss = result[0] if has_aux else result
    is_array = isinstance(loss, jax.Array | np.ndarray | np.generic)
    if isinstance(loss, float) or (
        is_array and loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
    ):
        return jnp.asarray(loss)
    hint = ""
    if isinstance(loss, tuple):
        hint = "; one that returns (loss, aux) needs has_aux=True"
    elif isinstance(loss, Mapping):
        hint = (
            "; return the entry that is the loss, the others as aux with has_aux=True"
        )
    elif is_array and loss.ndim:
        hint = "; take its mean, or the one element of a (1,)-array"
    raise TypeError(
        f"`loss_fn` must return one real number, got {_described(loss)}{hint}"
    )


def _described(value: Any) -> str:
    """Says what something is, without the tracers that may be in it."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"an array {value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(_described, value))
        return f"a {type(value).__name__} of {len(value)}: {inner}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    return f"an object of type {type(value).__name__}"


def _place_of(error: Exception) -> str:
    """Says in which line of the user's code an error was raised, if it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not any(frame.filename.startswith(folder) for folder in _LIBRARIES)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _is_argument(leaf: Any) -> bool:
    # Arrays of strings and objects are no arguments of a compiled function.
    is_numpy = isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMmT"
    return is_numpy or isinstance(leaf, jax.Array)
