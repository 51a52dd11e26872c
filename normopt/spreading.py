"""Where matrices of one shape are worked on: spread over devices, each whole on one.

Of sharded matrices a compiler gathers each on every device, or adds up pieces of each
product, and of replicated ones every device multiplies all. Spread, matrices go to
their devices once and come back once:

    (leaves, ...) as they lie  ->  (matrices, inputs, outputs), the first axis sharded
    ->  (leaves, ...) as they lay

Where the devices do not divide the matrices, some of them work on zeros.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from normopt.checks import is_sequence
from normopt.mapping import manual_axes, sharded_by_compiler
from normopt.paths import named_leaves

MeshAxes = tuple[str, ...]


def mesh_axes(spread: Any) -> MeshAxes:
    """Reads the option `spread`: no axes for None.

    Raises:
      TypeError: if it is neither None nor a name, or several.
      ValueError: if it names an axis twice.
    """
    if spread is None:
        return ()
    names = [spread] if isinstance(spread, str) else spread
    is_listed = is_sequence(names) and len(names) > 0
    if not is_listed or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "`spread` must be None or the name of an axis of the mesh such as 'data', "
            f"or several such as ('data', 'model'), got spread={spread!r}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"`spread` names an axis twice: spread={spread!r}")
    return tuple(names)


def check_mesh(link: str, axes: MeshAxes, tree: Any) -> None:
    """Raises if an array lies on a mesh that lacks one of the axes.

    Raises:
      ValueError: with the axes that the mesh has; also inside `jax.shard_map` over one
        of the axes.
    """
    for path, leaf, _ in named_leaves(tree) if axes else ():
        names = _mesh_of(leaf).axis_names
        if names and not set(axes) <= set(names):
            raise ValueError(
                f"`{link}`: `spread` must name axes of the mesh of {path!r}, "
                f"{', '.join(map(repr, names))}, got spread={_as_given(axes)!r}"
            )
    if cut := set(axes) & set(manual_axes()):
        raise ValueError(
            f"`{link}`: spread={_as_given(axes)!r}, and inside jax.shard_map over "
            f"{sorted(cut)} nothing can be moved between devices: update outside, "
            "under jax.jit"
        )


def number_of_devices(axes: MeshAxes, x: jax.Array) -> int:
    """Counts the devices along the axes; one where there is no mesh."""
    sizes = dict(_mesh_of(x).shape)
    return math.prod(sizes.get(name, 1) for name in axes)


def _mesh_of(leaf: Any) -> Any:
    """Gives the mesh of an array's type, or that of the context; empty without one."""
    sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.Array) else None
    mesh = getattr(sharding, "mesh", None)
    known = mesh is not None and mesh.axis_names
    return mesh if known else jax.sharding.get_abstract_mesh()


def _as_given(axes: MeshAxes) -> str | MeshAxes:
    return axes[0] if len(axes) == 1 else axes


def over_devices(
    step: Callable[..., jax.Array],
    inputs: Sequence[tuple[tuple[Any, ...], tuple[Any, ...]]],
    stack: tuple[int, ...],
    axes: MeshAxes,
) -> list[jax.Array]:
    """Takes the steps of all matrices of leaves of one kind, spread over devices.

    Args:
      step: `step(seen, option) -> update` of one matrix, which has its shape.
      inputs: of each leaf the arrays of one shape that the step sees, or None for one
        of them, and its numbers.
      stack: the axes of a leaf that index its matrices.
      axes: those of the mesh over which the matrices are spread.

    Returns:
      The update of each leaf. Where it lies the compiler takes from what uses it; on a
      mesh with explicit axes it lies as the last array of the leaf does.
    """
    (first, *_), _ = inputs[0]
    lead = (*(axis + 1 for axis in stack), 0)
    order = (*lead, *(a for a in range(first.ndim + 1) if a not in lead))
    sizes = tuple((len(inputs), *first.shape)[axis] for axis in order)
    number, shape = math.prod(sizes[: len(lead)]), sizes[len(lead) :]
    missing = -number % number_of_devices(axes, first)
    # From no axis of the mesh to all, one after the other: a compiler that is to change
    # several at once may gather the array on every device. The last one first, as an
    # axis of the array that is cut along several is cut along the last one at the end.
    axes = axes[::-1]
    way = [axes[:count] for count in range(len(axes))]

    def filled(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))

    def along(axes: MeshAxes, x: jax.Array, within: Any = None) -> jax.Array:
        spec = PartitionSpec(axes or None, *[within] * len(shape))
        place = NamedSharding(_mesh_of(x), spec)
        return jax.lax.with_sharding_constraint(x, place)

    def matrices(x: jax.Array) -> jax.Array:
        x = filled(x.transpose(order).reshape(number, *shape))
        for some in way:
            x = along(some, x, PartitionSpec.UNCONSTRAINED)
        return along(axes, x)

    def numbers(x: jax.Array) -> jax.Array:
        return filled(jnp.broadcast_to(x, sizes[: len(lead)]).reshape(number))

    def together(inputs: Any) -> list[jax.Array]:
        seen, option = jax.tree.map(lambda *one: jnp.stack(one), *inputs)
        updates = jax.vmap(step)(
            jax.tree.map(matrices, seen), jax.tree.map(numbers, option)
        )
        updates = along(axes, updates)
        for some in reversed(way):
            # Cut before the last move: of few matrices for many devices less is moved.
            updates = updates if some else updates[:number]
            updates = along(some, updates, PartitionSpec.UNCONSTRAINED)
        return list(updates.reshape(sizes).transpose(np.argsort(order)))

    *_, like = jax.tree.leaves(inputs[0][0])
    return sharded_by_compiler(lambda inputs, _: together(inputs), inputs, like)
