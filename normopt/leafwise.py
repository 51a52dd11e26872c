"""From what is done to one leaf to a transformation of the whole tree.

A link says what it does to one leaf, in a function that reads like its paper:

    step(g, w, axes, option, kept, shared) -> direction, kept

`leafwise` makes an `optax.GradientTransformation` of it, and `around` one that wraps
an optimizer, whose step also sees what the optimizer made of the leaf:

    step(g, u, w, axes, option, kept, shared) -> update, kept

All the rest is here, once: flattening, dtypes, leaves without numbers, options by path,
states that were made with other options, the count, and one trace for all leaves of one
shape. What a step gets:

- `g`, `u`, `w`: the leaf of the updates, of what inner made of them, and of the params,
  in float32 at least; `w` is None unless `reads_weights` says that it is read.
- `axes`: what `resolve` gave for the leaf: its channel axes, or None where there is
  nothing to do by block. A link may have other facts there that its program depends on.
- `option`: the leaf's own numbers, in the order of `options`.
- `kept`: what the state keeps for the leaf, in the order of `keeps`; numbers per block
  have the shape of the channel axes, which `across_block` lays over the leaf.
- `shared`: the numbers that `share` makes of the state, the same for all leaves.
- `static`: keywords, what the program itself depends on.
"""

import contextvars
import dataclasses
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normopt.blocks import check_channel_axes, has_numbers, resolve_axes
from normopt.checks import check_inner, is_zero
from normopt.copies import (
    LARGE,
    apart,
    from_kept,
    remember,
    stored,
    sums_taken,
    wants_copies,
    with_sums_of,
)
from normopt.keeping import MADE_FOR_OTHERS, OfBlocks, PerBlock, PerElement
from normopt.numerics import narrowed, real_dtype, wide_dtype, wider_dtype
from normopt.paths import named_leaves, params_like
from normopt.rules import PerLeaf, check_per_leaf, per_leaf
from normopt.spreading import MeshAxes, check_mesh, number_of_devices, over_devices

Kept = tuple[jax.Array | None, ...]
Step = Callable[..., tuple[jax.Array, Kept]]
Stepped = tuple[jax.Array, Kept, tuple[jax.Array, ...]]  # with the sums over blocks
Lens = Callable[[Any, Any], tuple[Any, Callable[[Any], Any]]]


# What the links of one optimizer have to say at init, while `say_once` listens.
_HEARD: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "heard", default=None
)


class NoBlocksWarning(UserWarning):
    """No leaf has blocks with the given `channel_axes`, such as an empty mapping."""


class Option(NamedTuple):
    """A number that can differ between leaves."""

    value: PerLeaf
    neutral: float  # of leaves that no pattern of a mapping matches
    check: Callable[[str, Any, str], None]
    skips_zero: bool = False  # a plain 0 is None to the step: nothing is computed of it


class Leaf(NamedTuple):
    """What the options say of a leaf."""

    axes: Any
    option: tuple[Any, ...]

    @property
    def has_blocks(self) -> bool:
        """Whether there are channel axes."""
        return self.axes is not None


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done to each leaf; see the head of this file.

    Attributes:
      link: its name, for messages.
      step: what is done to one leaf.
      channel_axes: the option of that name, per leaf.
      resolve: reads it for a tree: from both to one entry for each leaf.
      options: the other options that can differ between leaves, by name.
      acts: whether the step does anything to a leaf; else the update stays as it is.
      reads_weights: whether the step reads the weights of a leaf that it acts on.
      keeps: what the state keeps for each leaf, by the names of its fields.
      state: the class of the state.
      optional: the fields that are None unless an option wants them, with its name.
      start: makes the fields that are not kept for each leaf, before the first step.
      advance: from the state, its count already that of this step, to those other
        fields of it that are not kept for each leaf and change at a step.
      share: from the state after that to the numbers that all leaves share.
      static: keywords of the step that are no numbers, hashable.
      batched: whether leaves of one kind are stacked, and the step mapped over them by
        `jax.vmap`. So Muon steps a hundred matrices, from 16 x 16 to 64 x 64, in half
        of the time that it takes one by one (experiments muon_time --smaller 4).
      stores: whether several sums of a step, which reads the weights, read what an
        inner optimizer made of the leaf; see `copies.stored`.
      separates: whether several sums of a step read one array that it makes of that
        cheaply; see `copies.with_sums_of`.
      spread: the axes of the mesh over whose devices the step spreads matrices; it
        keeps nothing then, and the axes of leaves are `Matrices` or have their `alone`.
      also_integers: whether integer updates are stepped, too, and become real numbers;
        else they stay as they are, as do the gradients of integer params (float0).
    """

    link: str
    step: Step
    channel_axes: PerLeaf = None
    resolve: Callable[[PerLeaf, Any], list[Any]] = resolve_axes
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    acts: Callable[[Leaf], bool] = lambda leaf: True
    reads_weights: Callable[[Leaf], bool] = lambda leaf: False
    keeps: Mapping[str, PerElement | PerBlock | OfBlocks] = dataclasses.field(
        default_factory=dict
    )
    state: Any = optax.EmptyState
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start: Callable[[], Mapping[str, Any]] = dict
    advance: Callable[[Any], Mapping[str, Any]] = lambda state: {}
    share: Callable[[Any], tuple[Any, ...]] = lambda state: ()
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batched: bool = False
    stores: bool = False
    separates: bool = False
    spread: MeshAxes = ()
    also_integers: bool = False

    def __post_init__(self) -> None:
        """Refuses options that are bad whatever the params."""
        check_channel_axes(self.channel_axes)
        for name, option in self.options.items():
            check_per_leaf(name, option.value, option.check)

    def read(self, tree: Any) -> list[Leaf]:
        """Reads the options for each leaf of the params, or of updates like them."""
        axes = self.resolve(self.channel_axes, tree)
        options = [
            per_leaf(name, option.value, tree, option.neutral, option.check)
            for name, option in self.options.items()
        ]
        return [
            Leaf(one, tuple(rest)) for one, *rest in zip(axes, *options, strict=True)
        ]

    def read_at_init(self, params: Any) -> list[Leaf]:
        """Reads the options, and says what is wrong with them for these params."""
        for path, leaf, _ in named_leaves(params):
            if has_numbers(leaf) and jnp.finfo(leaf.dtype).bits < 16:
                raise ValueError(
                    f"`{self.link}` cannot train {path!r} of {leaf.dtype}: nothing is "
                    "computed with floats of 8 bits. Keep the weights in 16 bits or "
                    "more, and cast them in the loss"
                )
        check_mesh(self.link, self.spread, params)
        leaves = self.read(params)
        self._warn_without_blocks(params, leaves)
        return leaves

    def started(self, leaves: Sequence[Leaf], params: Any, **others: Any) -> Any:
        """Makes the state before the first step."""
        axes = [leaf.axes for leaf in leaves]
        kept = {name: keep.zeros(params, axes) for name, keep in self.keeps.items()}
        return self.state(**self.start(), **kept, **others)

    def read_at_update(
        self, updates: Any, state: Any, params: Any
    ) -> tuple[list[Leaf], list[Any]]:
        """Reads the options, and lists the leaves of the params, or None for each."""
        self._check_state(state)
        check_mesh(self.link, self.spread, updates)
        leaves = self.read(updates if params is None else params)
        reads = any(self.acts(leaf) and self.reads_weights(leaf) for leaf in leaves)
        return leaves, params_like(updates, params, self.link, needed=reads)

    def _warn_without_blocks(self, params: Any, leaves: Sequence[Leaf]) -> None:
        if self.channel_axes is None or any(leaf.has_blocks for leaf in leaves):
            return
        could = [p for p, w, _ in named_leaves(params) if has_numbers(w) and w.ndim > 1]
        if not could:
            return
        text = (
            f"`channel_axes`={self.channel_axes!r} gives no parameter blocks, though "
            f"{could[0]!r} could have some: nothing is done by block. "
            "normopt.describe(params, channel_axes=...) shows who gets what"
        )
        heard = _HEARD.get()
        if heard is None:
            warnings.warn(text, NoBlocksWarning, stacklevel=4)
        else:
            heard.append(text)

    def _check_state(self, state: Any) -> None:
        """Raises unless the state is of this link, made with the same options."""
        if not isinstance(state, self.state):
            if not self.state._fields and not jax.tree.leaves(state):
                return
            got = type(state).__name__
            why = f"{MADE_FOR_OTHERS}; call init again"
            if isinstance(state, Mapping):
                got += f" of {', '.join(map(repr, state))}"
                why = (
                    "a checkpoint restored without a target comes as dictionaries; "
                    "restore it into jax.eval_shape(optimizer.init, params)"
                )
            raise TypeError(
                f"`{self.link}` needs its {self.state.__name__}, got {got}: {why}"
            )
        for name, option in self.optional.items():
            wanted, has = name in self.keeps, getattr(state, name) is not None
            if wanted != has:
                raise ValueError(
                    f"`{self.link}`: {MADE_FOR_OTHERS}: it was made "
                    f"{'with' if has else 'without'} `{option}`, and has "
                    f"{'a' if has else 'no'} {name!r}; call init again"
                )

    def count(self, state: Any) -> tuple[Any, Any]:
        """Counts the step; returns the state so far and what the leaves share."""
        if "count" in self.state._fields:
            state = state._replace(count=optax.safe_increment(state.count))
            state = state._replace(**self.advance(state))
        return state, self.share(state)

    def unpack(self, state: Any, updates: Any, leaves: Sequence[Leaf]) -> list[Kept]:
        """Lists what the state keeps for each leaf."""
        axes = [leaf.axes for leaf in leaves]
        try:
            kept = [
                keep.unpack(getattr(state, name), updates, axes)
                for name, keep in self.keeps.items()
            ]
        except ValueError as error:
            raise ValueError(f"`{self.link}`: {error}") from error
        return list(zip(*kept, strict=True)) if kept else [()] * len(leaves)

    def pack(
        self, kept: Sequence[Kept], state: Any, updates: Any, leaves: Sequence[Leaf]
    ) -> Any:
        """Undoes `unpack`: the state with what is kept from now on."""
        if not self.keeps or not leaves:
            return state
        axes = [leaf.axes for leaf in leaves]
        columns = dict(zip(self.keeps, zip(*kept, strict=True), strict=True))
        return state._replace(
            **{
                name: keep.pack(columns[name], getattr(state, name), updates, axes)
                for name, keep in self.keeps.items()
            }
        )

    def go(
        self,
        arrays: Sequence[tuple[Any, ...]],
        weights: Sequence[Any],
        leaves: Sequence[Leaf],
        kept: Sequence[Kept],
        shared: tuple[Any, ...],
    ) -> tuple[list[Any], list[Kept]]:
        """Takes the step of every leaf.

        Args:
          arrays: of each leaf what the step sees before the weights; the last of them
            is what becomes of the leaf where the step does not act.
          weights: the leaves of the params, or None for each.
          leaves: what the options say.
          kept: what the state keeps.
          shared: what the leaves share.
        """

        @functools.cache
        def shared_in(real: Any) -> Any:
            return jax.tree.map(lambda number: _number(number, real), shared)

        updates, kept = [seen[-1] for seen in arrays], list(kept)
        batches: dict[Any, list[int]] = {}
        inputs: dict[int, Any] = {}
        for position, (seen, w, leaf) in enumerate(
            zip(arrays, weights, leaves, strict=True)
        ):
            u = seen[-1]
            if self.also_integers and jnp.issubdtype(u.dtype, jnp.integer):
                dtype = jnp.dtype(jnp.float32)
            elif has_numbers(u) and (w is None or has_numbers(w)):
                dtype = u.dtype if w is None else wider_dtype(u.dtype, w.dtype)
            else:
                continue
            if not self.acts(leaf):
                updates[position] = u.astype(dtype)
                continue
            option = tuple(
                None
                if rule.skips_zero and is_zero(one)
                else _number(one, real_dtype(dtype))
                for rule, one in zip(self.options.values(), leaf.option, strict=True)
            )
            seen = (*seen, w if self.reads_weights(leaf) else None)
            inputs[position] = (seen, option, kept[position])
            kind = (position,) if not self.batched else _kind(seen, kept[position])
            batches.setdefault((*kind, leaf.axes, dtype), []).append(position)
        earlier: tuple[jax.Array, ...] = ()
        for (*_, axes, dtype), positions in batches.items():
            together = [inputs[position] for position in positions]
            if self.stores:
                together = [_stored(one, earlier) for one in together]
            results = _step_together(
                together,
                shared_in(real_dtype(dtype)),
                self.spread,
                self.separates,
                step=self.step,
                axes=axes,
                static=tuple(self.static.items()),
                number_kept=len(self.keeps),
                dtype=dtype,
            )
            for position, (update, held, sums) in zip(positions, results, strict=True):
                updates[position], kept[position] = update, held
                earlier = sums if update.size >= LARGE else earlier
        return updates, kept


def _as_it_is(x: jax.Array, leaf: Leaf, kept: Kept | None) -> jax.Array:
    del leaf, kept
    return x


def _entered(enter: Any, tree: Any, leaves: Sequence[Leaf], kept: Any) -> Any:
    """Gives inner's view of the updates or the params."""
    old, treedef = jax.tree.flatten(tree)
    held = [None] * len(old) if kept is None else kept
    return treedef.unflatten(map(enter, old, leaves, held))


def leafwise(
    link: str, step: Step, **work: Any
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of what is done to each leaf.

    Args:
      link: its name, for messages.
      step: `step(g, w, axes, option, kept, shared) -> direction, kept`.
      **work: the other fields of `Work`.
    """
    plan = Work(link, step, **work)

    def init_fn(params: optax.Params) -> Any:
        return plan.started(plan.read_at_init(params), params)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        leaves, weights = plan.read_at_update(updates, state, params)
        state, shared = plan.count(state)
        kept = plan.unpack(state, updates, leaves)
        gradients, treedef = jax.tree.flatten(updates)
        seen = [(g,) for g in gradients]
        directions, kept = plan.go(seen, weights, leaves, kept, shared)
        return treedef.unflatten(directions), plan.pack(kept, state, updates, leaves)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def around(
    link: str,
    inner: optax.GradientTransformation,
    step: Step,
    *,
    lens: Lens | None = None,
    enter: Callable[[jax.Array, Leaf, Kept | None], jax.Array] = _as_it_is,
    **work: Any,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of what is done to each leaf after `inner`.

    Args:
      link: its name, for messages.
      inner: an optimizer or a link.
      step: `step(g, u, w, axes, option, kept, shared) -> update, kept`.
      lens: from inner's state and the params to a tree in it that is like the params,
        whole or in part, and a function that puts another one in its place. The step
        finds its leaves at the end of what is kept, None for those that are not there.
      enter: what inner sees of a leaf of the params, with what is kept for it, and of
        the updates and at init, where that is None.
      **work: the other fields of `Work`. Without keeps the state is that of inner; else
        `state` has a field `inner` for it.
    """
    check_inner(link, inner)
    plan = Work(link, step, **work)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> Any:
        leaves = plan.read_at_init(params)
        inner_state = inner.init(_entered(enter, params, leaves, None))
        if lens is not None:
            lens(inner_state, params)
        if not plan.keeps:
            return inner_state
        return plan.started(leaves, params, inner=inner_state)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        outer = state if plan.keeps else optax.EmptyState()
        leaves, weights = plan.read_at_update(updates, outer, params)
        outer, shared = plan.count(outer)
        kept = plan.unpack(outer, updates, leaves)
        steps, inner_state = inner.update(
            _entered(enter, updates, leaves, None),
            state.inner if plan.keeps else state,
            None if params is None else _entered(enter, params, leaves, kept),
            **extra_args,
        )
        kept, put_back = _look(lens, inner_state, params, updates, kept)
        made, treedef = jax.tree.flatten(steps)
        seen = list(zip(jax.tree.leaves(updates), made, strict=True))
        made, kept = plan.go(seen, weights, leaves, kept, shared)
        inner_state, kept = put_back(kept)
        if plan.keeps:
            outer = plan.pack(kept, outer, updates, leaves)
            inner_state = outer._replace(inner=inner_state)
        return treedef.unflatten(made), inner_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _look(
    lens: Lens | None, state: Any, params: Any, updates: Any, kept: list[Kept]
) -> tuple[list[Kept], Callable[[list[Kept]], tuple[Any, list[Kept]]]]:
    """Adds what a lens finds to what is kept, and gives the way back into the state."""
    if lens is None:
        return kept, lambda kept: (state, kept)
    tree, put = lens(state, params)
    found = {place.path: place.leaf for place in named_leaves(tree)}
    paths = [place.path for place in named_leaves(updates)]

    def put_back(kept: list[Kept]) -> tuple[Any, list[Kept]]:
        after = {path: one[-1] for path, one in zip(paths, kept, strict=True)}
        leaves = [after.get(path, leaf) for path, leaf in found.items()]
        new = jax.tree.structure(tree).unflatten(leaves)
        return put(new), [one[:-1] for one in kept]

    seen = [(*one, found.get(path)) for one, path in zip(kept, paths, strict=True)]
    return seen, put_back


def say_once(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets several links of one optimizer warn once of what they all see at init."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> Any:
        heard: list[str] = []
        token = _HEARD.set(heard)
        try:
            state = optimizer.init(params)
        finally:
            _HEARD.reset(token)
        for text in dict.fromkeys(heard):
            warnings.warn(text, NoBlocksWarning, stacklevel=2)
        return state

    return optax.GradientTransformationExtraArgs(init_fn, optimizer.update)


def _step_leaf(
    seen: tuple[Any, ...],
    option: tuple[Any, ...],
    kept: Kept,
    shared: tuple[Any, ...],
    copies: Any = None,
    *,
    step: Step,
    axes: Any,
    static: tuple[tuple[str, Any], ...],
    number_kept: int,
    dtype: Any,
) -> Stepped:
    """Takes the step of one leaf in float32 at least, its sums of copies if given."""
    if copies is not None:
        once = functools.partial(
            _step_leaf,
            step=step,
            axes=axes,
            static=static,
            number_kept=number_kept,
            dtype=dtype,
        )
        return with_sums_of(copies, once, seen, option, kept, shared)

    def wide(x: jax.Array) -> jax.Array:
        is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
        return x.astype(wide_dtype(dtype) if is_complex else real_dtype(dtype))

    # What a lens found stays as it is: it is to be kept within the range of its dtype.
    held = (*jax.tree.map(wide, kept[:number_kept]), *kept[number_kept:])
    with sums_taken() as sums:
        update, held = step(
            *jax.tree.map(wide, seen), axes, option, held, shared, **dict(static)
        )
    narrow = jax.tree.map(lambda new, old: narrowed(new, old.dtype), held, kept)
    return narrowed(update, dtype), narrow, tuple(sums)


# Jitted, so that leaves of one shape are traced once. Short steps, which keep nothing
# and take no sums, are then written out where they stand: as calls they made 2,774
# equations of AdamW's 2,414 (compile_time --layers 40). Steps with sums written out
# made AdamP's 9,699 at 1,002 leaves 107,895, traced in 2.3 times as long.
_PROGRAM = ("step", "axes", "static", "number_kept", "dtype")
_call_step = jax.jit(_step_leaf, static_argnames=_PROGRAM)
_inline_step = jax.jit(_step_leaf, static_argnames=_PROGRAM, inline=True)


def _spread_steps(
    inputs: Sequence[Any],
    shared: tuple[Any, ...],
    *,
    stack: tuple[int, ...],
    spread: MeshAxes,
    **program: Any,
) -> list[jax.Array]:
    """Takes the step of each matrix of leaves of one kind on one device."""

    def step_matrix(seen: tuple[Any, ...], option: tuple[Any, ...]) -> jax.Array:
        return _step_leaf(seen, option, (), shared, **program)[0]

    return over_devices(step_matrix, [one[:2] for one in inputs], stack, spread)


# Jitted also for who calls a link without: what is open in a sharding has to be.
_call_spread = jax.jit(_spread_steps, static_argnames=(*_PROGRAM, "stack", "spread"))


def _step_together(
    inputs: Sequence[Any],
    shared: tuple[Any, ...],
    spread: MeshAxes,
    separates: bool,
    **program: Any,
) -> list[Stepped]:
    """Takes the step of leaves of one kind, of several as one batch."""
    (u, *_), *_ = inputs[0]
    if spread and (found := program["axes"].alone(u.ndim)):
        stack, axes = found
        several = len(inputs) * math.prod(u.shape[axis] for axis in stack) > 1
        if several and number_of_devices(spread, u) > 1:
            call = {**program, "axes": axes, "stack": stack, "spread": spread}
            return [(u, (), ()) for u in _call_spread(inputs, shared, **call)]
    call = (*inputs[0], shared)
    number_of_sums = _count_sums(program, call)
    jitted = _call_step if program["number_kept"] or number_of_sums else _inline_step
    step_leaf = functools.partial(jitted, **program)
    if len(inputs) == 1:
        if number_of_sums and wants_copies(call):
            seen, option, kept = inputs[0]
            marks = range(number_of_sums if separates else 1)
            copies = [apart((seen, kept), mark) for mark in marks]
            call = (*call, tuple((seen, option, kept, shared) for seen, kept in copies))
        update, held, sums = step_leaf(*call)

        def copy(mark: int, held: Kept, *call: Any) -> Any:
            if program["number_kept"]:
                return from_kept(mark, jitted.trace(*call, **program), held, *call)
            if program["axes"] is None:
                return step_leaf(*apart(call, mark))[0]
            return None

        remember(update, copy, held, *call)
        return [(update, held, sums)]
    stacked = jax.tree.map(lambda *one: jnp.stack(one), *inputs)
    results = jax.vmap(step_leaf, in_axes=(0, 0, 0, None))(*stacked, shared)
    return [
        jax.tree.map(lambda x, index=index: x[index], results)
        for index in range(len(inputs))
    ]


# How many sums over blocks are taken by the steps that are known.
_SUMMING: weakref.WeakKeyDictionary[Step, dict[Any, int]]
_SUMMING = weakref.WeakKeyDictionary()


def _count_sums(program: Mapping[str, Any], call: tuple[Any, ...]) -> int:
    step = program["step"]
    if program["axes"] is None:
        return 0
    known = _SUMMING.setdefault(step, {})
    # A wrong number would do no harm: what is not taken of a copy is taken of the leaf.
    kind = program["axes"], program["static"], jax.tree.structure(call)
    if kind not in known:
        step_leaf = functools.partial(_step_leaf, **program)
        known[kind] = len(jax.eval_shape(step_leaf, *call)[-1])
    return known[kind]


def _stored(inputs: Any, earlier: Sequence[jax.Array]) -> Any:
    """Has a CPU store what inner made of a leaf, after the sums of the last leaf."""
    (*first, u, w), *rest = inputs
    return (*first, u if w is None else stored(u, w, *earlier), w), *rest


def _kind(*trees: Any) -> tuple[Any, ...]:
    """Tells arrays apart by structure, shape, dtype and, where known, sharding."""
    leaves, treedef = jax.tree.flatten(trees)
    return treedef, *map(jax.typeof, leaves)


def _number(value: Any, dtype: Any) -> Any:
    """Gives a number a leaf's real dtype, for another one could raise the leaf's."""
    of = np if isinstance(value, int | float) else jnp
    return of.asarray(value, dtype)
