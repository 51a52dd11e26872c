"""Every optimizer and link of the library, as data, and the trees they are run on.

Each test that all of them are to pass reads `CASES`, the optimizers, and `LINKS`; what
one of them is excused from is a field of its `Case`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import normopt

RATE = 0.1
PER_BLOCK, PER_ELEMENT, PER_LAYER = "per block", "per element", "per layer"
PER_OUTPUT = "per output of a matrix"
COLUMNS = {"(kernel|weight)$": (-1,)}
ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.05}
SGD = {"momentum": 0.8, "dampening": 0.2, "weight_decay": 0.05}
MOMENTUM = {"name": "sgd", "momentum": 0.9}
SIGNS = {"name": "scion", "learning_rate": 0.05, "norms": "max"}
STEADY = {**MOMENTUM, "learning_rate": 0.05}


def unchanged(build):
    return build


def link_first(link, rate):
    return optax.chain(link, rate)


def link_last(link, rate):
    return optax.chain(rate, link)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Options for optax's own suite, which trains with them until it has converged."""

    options: Mapping[str, Any]
    exempt: str = ""  # the reason why it converges to none of the targets


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """An optimizer, or a link in the smallest chain that trains with it."""

    name: str
    options: Mapping[str, Any]  # beside the learning rate
    inner: Mapping[str, Any] | None = None  # of optax; it then has the learning rate
    inner_option: str = "inner"
    wraps: Mapping[str, Any] | None = (
        None  # optimizers with rates of their own, by option
    )
    restarts: Mapping[str, Any] | None = None  # of the WarmRestarts in its state
    chain: Callable[..., Any] | None = None  # of a link and the learning rate
    needs_params: str = ""  # the link that refuses an update without params
    second_moments: str = ""  # of what its state keeps them
    dtype: str = "float32"  # of the params it is meant for
    widens: bool = False  # whether updates are in float32 at least
    # The per-leaf option that its rules are tested by, and two values that matter.
    ruled: tuple[str, Any, Any] | None = ("channel_axes", (0, 3), (-1,))
    # Whether steps grow with the gradients; the options that do so for the same steps.
    linear: bool = False
    grows: tuple[str, ...] = ()
    # Whether leaves without blocks are none of its business.
    blocks_alone: bool = False
    # Whether some blocks of a leaf have a say in what becomes of the others.
    by_leaf: bool = False
    # Whether its blocks are not those of `channel_axes`.
    axes_of_its_own: bool = False
    # Whether it multiplies gradients by lengths, which grow so fast in huge ones.
    multiplies: bool = False
    # The power of the length of scale-invariant weights that the rate has to follow.
    length_power: int = 0
    tasks: tuple[Task, ...] = (Task({"learning_rate": 1e-2}),)
    # Options in optax's `mechanize`, which looks for the learning rate itself. One of
    # each kind of moments: to train all would double the time and test the wrapper.
    mechanized: Mapping[str, Any] | None = None
    # Whose tests show what its own would, where those of all cases would take too long.
    like: str = ""

    def make(self, rate=RATE, inject=unchanged, **options):
        """The optimizer; `inject` wraps each builder of a part that has numbers."""
        build, options = inject(self.build), {**self.options, **options}
        if self.inner is not None:
            inner = dict(self.inner)
            of_optax = inject(getattr(optax, inner.pop("name")))
            options[self.inner_option] = of_optax(rate, **inner)
            return build(**self.built, **options)
        if self.chain is not None:
            scale = inject(optax.scale_by_learning_rate)(rate)
            return self.chain(build(**options), scale)
        if self.restarts is not None:
            options["schedule"] = normopt.WarmRestarts(**self.restarts)
        return build(learning_rate=rate, **self.built, **options)

    def scaled(self, axes, factor=1.0, rate=2.0**-4, **options):
        """What takes the same steps when gradients are multiplied by a power of two.

        Without `eps`, which has the unit of gradients.
        """
        parameters = inspect.signature(self.build).parameters
        plain = {"eps": 0.0, "channel_axes": axes}
        own = {name: value for name, value in plain.items() if name in parameters}
        grown = {name: factor * self.options[name] for name in self.grows}
        rate = rate / factor if self.linear else rate
        return self.make(rate, **{**own, **grown, **options})

    def alone(self):
        """The link by itself, or the optimizer."""
        return self.make() if self.chain is None else self.build(**self.options)

    def params(self, shapes=None):
        """Random params that it is meant for."""
        return tree(SMALL if shapes is None else shapes, [self.dtype])

    def assert_close(self, actual, expected):
        """Equal, but for what was rounded elsewhere in a few steps."""
        assert_close(actual, expected, 1e-5 if self.dtype == "float32" else 0.05)

    @property
    def wrapped(self) -> dict[str, Any]:
        """The optimizers that it is given, by the option."""
        return dict(self.wraps or {})

    @property
    def built(self) -> dict[str, Any]:
        """Those optimizers."""
        return {name: normopt.make(**own) for name, own in self.wrapped.items()}

    @property
    def own_rate(self) -> bool:
        """Whether the learning rate is its own, and not a link of optax."""
        return self.inner is None and self.chain is None

    @property
    def build(self) -> Callable[..., optax.GradientTransformation]:
        return getattr(normopt, self.name)

    def rules(self, first: str, second: str) -> dict[str, Any]:
        """An option with two rules, the first of which wins, if it has rules."""
        if self.ruled is None:
            return {}
        option, one, other = self.ruled
        return {option: {first: one, second: other}}

    @property
    def numbers(self) -> dict[str, float]:
        """Its own float hyper-parameters."""
        return {k: v for k, v in self.options.items() if isinstance(v, float)}

    @property
    def config(self) -> dict[str, Any]:
        given = {"learning_rate": RATE}
        if self.inner is not None:
            given = {self.inner_option: {**self.inner, **given}}
        given |= self.wrapped
        if self.restarts is not None:
            given["schedule"] = {"name": "WarmRestarts", **self.restarts}
        return {"name": self.name, **given, **self.options}


DECAYED = {"ruled": ("weight_decay", 0.2, 0.1), "needs_params": "decay_weights"}
DECAYS = {"weight_decay": 0.015, "l1": 0.01, "lr_multipliers": 0.7}

BY_MATRIX = {"matrices": ((-2,), (-1,))}
OF_MATRICES = {
    "tasks": (Task({"learning_rate": 1e-2, "rest": optax.sgd(1e-3, 0.9)}),),
    "needs_params": "add_decay",
    "ruled": ("matrices", ((-1,), (-2,)), ((-2,), (-1,))),
}

WHOLE = {"channel_axes": ()}
LENGTHS_STAY = Task(
    {"learning_rate": 1e-2, "inner": optax.sgd(1e-3, 0.9)},
    exempt="it keeps the lengths of matrices, and no optimum has them",
)
TRAINS = {"learning_rate": 1e-3, "momentum": 0.9}

CASES = [
    Case(
        "adamg",
        {**ADAM, "channel_axes": COLUMNS},
        needs_params="retract_to_sphere",
        second_moments=PER_BLOCK,
        grows=("weight_decay",),
        tasks=(
            Task({"learning_rate": 1e-2}),
            Task(
                {"learning_rate": 1e-2, **WHOLE},
                exempt="its blocks have unit length, and no leaf of the optimum has",
            ),
        ),
    ),
    Case(
        "adamp",
        {**ADAM, "delta": 1.0, "wd_ratio": 0.1},
        needs_params="project_if_invariant",
        second_moments=PER_ELEMENT,
        by_leaf=True,
    ),
    Case(
        "adams",
        {**ADAM, "channel_axes": COLUMNS},
        needs_params="add_decay",
        second_moments=PER_BLOCK,
        grows=("weight_decay",),
        length_power=1,
        # The empty pattern is found in every path. There is none in what stands in for
        # params where `optax.tree.map_params` calls init.
        tasks=(Task({"learning_rate": 1e-2, "channel_axes": {"": ()}}),),
        like="adamsrt",
    ),
    Case(
        "adamsrt",
        {**ADAM, "channel_axes": COLUMNS},
        needs_params="add_decay",
        second_moments=PER_BLOCK,
        grows=("weight_decay",),
        length_power=1,
        tasks=(Task({"learning_rate": 1e-2, **WHOLE}),),
        mechanized={"learning_rate": 1.0, **WHOLE},
    ),
    Case(
        "adamw",
        {**ADAM, **DECAYS},
        restarts={"cycle_steps": 2, "eta_min": 0.25, "t_mult": 2},
        **DECAYED,
        second_moments=PER_ELEMENT,
    ),
    Case(
        "clipped",
        {"max_norm": 0.5, "norm": "max", "channel_axes": COLUMNS, "eps": 1e-3},
        inner={**MOMENTUM, "nesterov": True},
        linear=True,
        grows=("max_norm",),
        tasks=(Task({"inner": optax.sgd(1e-3, 0.9), "max_norm": 1.0}),),
        mechanized={"inner": optax.sgd(1.0), "max_norm": 1.0},
        like="normalized",
    ),
    Case(
        "hyperball",
        {"channel_axes": COLUMNS},
        wraps={"inner": STEADY},
        needs_params="hyperball",
        blocks_alone=True,
        like="rotational",
        tasks=(LENGTHS_STAY,),
    ),
    Case(
        "muon",
        {"momentum": 0.8, "weight_decay": 0.05, "eps": 1e-3, **BY_MATRIX},
        wraps={"rest": SIGNS},
        axes_of_its_own=True,
        **OF_MATRICES,
    ),
    Case(
        "nadamw",
        {**ADAM, **DECAYS, "momentum_decay": 0.05},
        **DECAYED,
        second_moments=PER_ELEMENT,
        mechanized={"learning_rate": 1.0},
        like="adamw",
    ),
    Case(
        "normalized",
        {"channel_axes": COLUMNS, "eps": 1e-3},
        inner=MOMENTUM,
        blocks_alone=True,
        tasks=(Task({"inner": optax.sgd(1e-3)}),),
    ),
    Case(
        "normuon",
        {"momentum": 0.8, "b2": 0.9, "weight_decay": 0.05, "eps": 1e-3, **BY_MATRIX},
        wraps={"rest": SIGNS},
        second_moments=PER_OUTPUT,
        like="muon",
        axes_of_its_own=True,
        **OF_MATRICES,
    ),
    Case(
        "novograd",
        {**ADAM, "grad_averaging": True, "amsgrad": True},
        needs_params="add_decay",
        second_moments=PER_LAYER,
        ruled=("weight_decay", 0.2, 0.1),
        tasks=(Task({"learning_rate": 1e-3}),),
        mechanized={"learning_rate": 1.0},
    ),
    Case(
        "rotational",
        {"channel_axes": COLUMNS, "b2": 0.8, "eps": 1e-3},
        wraps={"inner": STEADY},
        needs_params="rotational",
        blocks_alone=True,
        tasks=(LENGTHS_STAY,),
    ),
    Case(
        "scion",
        {"momentum": 0.8, "norms": "avg_l2", "radii": 0.5, "eps": 1e-3},
        ruled=("radii", 0.2, 0.1),
        by_leaf=True,
        like="muon",
        tasks=(
            Task(
                {"learning_rate": 1e-2, "norms": "max"},
                exempt="its steps are of one length and never become shorter",
            ),
        ),
    ),
    Case(
        "sgdmrt",
        {**SGD, "channel_axes": COLUMNS},
        needs_params="add_decay",
        linear=True,
        grows=("weight_decay",),
        length_power=2,
        tasks=(Task({**TRAINS, **WHOLE}),),
    ),
    Case(
        "sgdp",
        {**SGD, "delta": 1.0, "wd_ratio": 0.1},
        needs_params="project_if_invariant",
        linear=True,
        grows=("weight_decay",),
        by_leaf=True,
        tasks=(Task(TRAINS),),
        mechanized={"learning_rate": 1.0, "momentum": 0.9},
        like="adamp",
    ),
    Case(
        "sgdw",
        {"momentum": 0.8, **DECAYS},
        **DECAYED,
        linear=True,
        tasks=(Task(TRAINS),),
    ),
]

BY_COLUMN = {"channel_axes": COLUMNS}
FIRST = {"chain": link_first}
MOMENTS = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}

LINKS = [
    Case(
        "add_decay",
        {"weight_decay": 0.05, "l1": 0.01},
        **FIRST,
        needs_params="add_decay",
        ruled=("weight_decay", 0.2, 0.1),
        linear=True,
        grows=("weight_decay", "l1"),
    ),
    Case(
        "average_gradients",
        {"b1": 0.8},
        **FIRST,
        ruled=None,
        linear=True,
    ),
    Case(
        "bound_relative_step",
        {**BY_COLUMN, "floor": 0.09, "ceiling": 0.11, "min_norm": 1.5},
        chain=link_last,
        needs_params="bound_relative_step",
        linear=True,
        like="scale_by_param_norm",
    ),
    Case(
        "brake_radial",
        {**BY_COLUMN, "outward": 0.5, "inward": 0.25},
        inner=MOMENTUM,
        needs_params="brake_radial",
        linear=True,
        like="retract_to_sphere",
    ),
    Case(
        "cautious",
        {**BY_COLUMN, "floor": 0.8},
        inner=MOMENTUM,
        linear=True,
        like="project_if_invariant",
    ),
    Case(
        "center_blocks",
        BY_COLUMN,
        **FIRST,
        linear=True,
        like="project_tangent",
    ),
    Case(
        "clip_blocks",
        {"max_norm": 0.5, **BY_COLUMN, "eps": 1e-3},
        **FIRST,
        linear=True,
        grows=("max_norm",),
        like="normalize_blocks",
    ),
    Case(
        "compensate_rounding",
        {},
        inner=MOMENTUM,
        needs_params="compensate_rounding",
        dtype="bfloat16",
        widens=True,
        ruled=None,
        linear=True,
    ),
    Case(
        "decay_weights",
        {"weight_decay": 0.05, "l1": 0.01, "schedule": 0.5, "cautious": True},
        chain=link_last,
        needs_params="decay_weights",
        ruled=("weight_decay", 0.2, 0.1),
        linear=True,
    ),
    Case(
        "decouple_length",
        BY_COLUMN,
        inner=MOMENTUM,
        inner_option="direction",
        wraps={"length": SIGNS},
        needs_params="decouple_length",
        linear=True,
    ),
    Case(
        "keep_norm",
        {"inner": optax.trace(0.8), **BY_COLUMN},
        **FIRST,
        linear=True,
        like="normalize_blocks",
    ),
    Case(
        "normalize_blocks",
        {**BY_COLUMN, "eps": 1e-3},
        **FIRST,
        blocks_alone=True,
    ),
    Case(
        "observe",
        {**BY_COLUMN, "every": 2},
        inner=MOMENTUM,
        needs_params="observe",
        linear=True,
        blocks_alone=True,
        like="keep_norm",
    ),
    Case(
        "orthogonalize",
        {**BY_MATRIX, "eps": 1e-3},
        **FIRST,
        ruled=OF_MATRICES["ruled"],
        axes_of_its_own=True,
    ),
    Case(
        "project_if_invariant",
        {"weight_decay": 0.05, "delta": 1.0, "wd_ratio": 0.1},
        inner=MOMENTUM,
        needs_params="project_if_invariant",
        linear=True,
        by_leaf=True,
    ),
    Case(
        "project_tangent",
        BY_COLUMN,
        **FIRST,
        needs_params="project_tangent",
        linear=True,
    ),
    Case(
        "retract_to_sphere",
        {**BY_COLUMN, "radius": 2.0, "moment": "trace"},
        inner=MOMENTUM,
        needs_params="retract_to_sphere",
        linear=True,
    ),
    Case(
        "retract_to_stiefel",
        {**BY_MATRIX, "scale": 2.0, "steps": 2, "eps": 1e-3},
        inner=MOMENTUM,
        needs_params="retract_to_stiefel",
        ruled=OF_MATRICES["ruled"],
        linear=True,
        axes_of_its_own=True,
        like="orthogonalize",
    ),
    Case(
        "scale_by_block_adam",
        {**MOMENTS, **BY_COLUMN, "tangent": True, "amsgrad": True, "nesterov": True},
        **FIRST,
        needs_params="scale_by_block_adam",
        second_moments=PER_BLOCK,
    ),
    Case(
        "scale_by_block_rms",
        {"b2": 0.9, "eps": 1e-3, "channel_axes": ()},
        **FIRST,
        second_moments=PER_LAYER,
    ),
    Case(
        "scale_by_block_size",
        {**BY_COLUMN, "power": 0.5},
        **FIRST,
        linear=True,
    ),
    Case(
        "scale_by_nadam",
        {**MOMENTS, "momentum_decay": 0.05},
        **FIRST,
        second_moments=PER_ELEMENT,
        ruled=None,
        like="scale_by_block_adam",
    ),
    Case(
        "scale_by_param_norm",
        {**BY_COLUMN, "min_norm": 2.0},
        **FIRST,
        needs_params="scale_by_param_norm",
        linear=True,
        multiplies=True,
    ),
    Case(
        "scale_by_path",
        {"lr_multipliers": 0.7},
        **FIRST,
        ruled=("lr_multipliers", 0.2, 0.1),
        linear=True,
        like="scale_by_block_size",
    ),
    Case(
        "steepest",
        {"norm": "avg_l2", **BY_COLUMN, "eps": 1e-3},
        **FIRST,
        like="normalize_blocks",
    ),
    Case(
        "trace_on_tangent",
        {"decay": 0.8, "dampening": 0.2, **BY_COLUMN, "nesterov": True},
        **FIRST,
        needs_params="trace_on_tangent",
        linear=True,
    ),
]


def of_each(cases, *, quick=None):
    """Runs a test of each case, those that are like another one among the slow tests.

    Args:
      cases: which.
      quick: the names of those that are not slow, if that is few.
    """

    def marks(case):
        if case.like:
            return [pytest.mark.slow(f"as {case.like}")]
        if quick is not None and case.name not in quick:
            return [pytest.mark.slow("what all share is shown by a few")]
        return []

    return pytest.mark.parametrize(
        "case",
        [pytest.param(case, marks=marks(case)) for case in cases],
        ids=[case.name for case in cases],
    )


every_case = of_each(CASES + LINKS)
# For what combinators do for all: an optimizer by block, one of both combinators with a
# lens, and links that keep something and nothing.
a_few_cases = of_each(
    CASES + LINKS,
    quick={
        "adamsrt",
        "decay_weights",
        "normalize_blocks",
        "retract_to_sphere",
        "scale_by_block_rms",
    },
)

SMALL = {
    "body": {"kernel": (3, 4), "bias": (4,)},
    "head": {"kernel": (2, 1, 4, 2)},
}
FULL = {
    "dense": {"kernel": (3, 4), "bias": (4,)},
    "convs": [{"kernel": (2, 1, 4, 2)}],
    "pair": ({"kernel": (5, 1)}, {"kernel": (1, 5)}),
    "scale": (),
    "nothing": None,
    "elsewhere": optax.MaskedNode(),
    "empty": {"kernel": (0, 3)},
}

# Where FULL has one number for a block: for columns, kernels alone, but for those whose
# columns have one element or none; for layers, all that holds numbers.
KERNELS = ("dense/kernel", "convs/0/kernel", "pair/0/kernel")
BLOCKS = {
    PER_BLOCK: {
        f"{path}@{axis}" for path, axis in zip(KERNELS, (1, 3, 1), strict=True)
    },
    PER_OUTPUT: {"dense/kernel@1", "convs/0/kernel@0,1,3", "pair/0/kernel@1"},
    PER_LAYER: {f"{p}@" for p in (*KERNELS, "dense/bias", "pair/1/kernel", "scale")},
}


def tree(shapes: Any, dtypes: Sequence[Any] = (jnp.float32,), seed: int = 0) -> Any:
    """Random leaves of these shapes, the dtypes in turn."""

    def is_shape(node):
        return type(node) is tuple and all(isinstance(n, int) for n in node)

    leaves, treedef = jax.tree.flatten(shapes, is_leaf=is_shape)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        jax.random.normal(key, shape, dtypes[index % len(dtypes)])
        for index, (key, shape) in enumerate(zip(keys, leaves, strict=True))
    )


def gradients(params: Any, steps: int = 2) -> list[Any]:
    leaves, treedef = jax.tree.flatten(params)
    return [
        treedef.unflatten(
            jax.random.normal(jax.random.fold_in(jax.random.key(7 + step), i), w.shape)
            .astype(w.dtype)
            for i, w in enumerate(leaves)
        )
        for step in range(steps)
    ]  # fmt: skip


def needs_value(seen):
    """A link that keeps the extra argument `value`, and fails without it."""

    def update(updates, state, params=None, *, value, **extra_args):
        seen.append(value)
        return updates, state

    init = optax.identity().init
    return optax.GradientTransformationExtraArgs(init, update)


def kinds(some_tree: Any) -> Any:
    """Structure and, of each leaf, all that a compiled step depends on."""
    leaves, treedef = jax.tree.flatten(some_tree)
    return treedef, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def follow(step, params, state, grads):
    """Takes a step for each tree of gradients; params and state after them."""
    for g in grads:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def run(optimizer, params, grads, state=None):
    """Follows an optimizer whose state can be the carry of a scan.

    It is traced once for that, but not compiled, which would take ten times as long.
    """
    state = optimizer.init(params) if state is None else state
    _, stepped = jax.eval_shape(optimizer.update, grads[0], state, params)
    assert kinds(stepped) == kinds(state)
    with jax.disable_jit():
        return follow(optimizer.update, params, state, grads)


@functools.cache
def expected(case, steps=2):
    """Params and state after some steps on `SMALL`, which many tests compare with."""
    params = case.params()
    return run(case.make(), params, gradients(params, steps))


def assert_close(actual, expected, tolerance=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def differs(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(bool((a != b).any()) for a, b in pairs)


def is_finite(some_tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(some_tree))


def second_moments(state):
    """What the states of block moments keep in float32 at least."""

    of_moments = normopt.ScaleByBlockAdamState | normopt.ScaleByBlockRmsState
    of_moments |= normopt.ScaleByNadamState
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, of_moments))
    return [
        [getattr(node, name, None) for name in ("nu", "nu_max")]
        for node in nodes
        if isinstance(node, of_moments)
    ]
