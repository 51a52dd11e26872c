"""The optimizers of recorded runs, rebuilt from what a file's `meta` says of them.

A leaf is an optimizer of its own wherever the original has settings per leaf. Nothing
is read but `meta`: not the name of a file, and not its arrays.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import normopt


class NotFollowed(Exception):
    """A run that no optimizer here is to follow, and why."""


def rebuilt(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    """Builds the optimizer of a recorded run."""
    from tests import originals_of_matrices

    for system, classes, build in (*BUILDERS, *originals_of_matrices.BUILDERS):
        if meta["system"] == system and re.fullmatch(classes, meta["class"]):
            return build(meta)
    raise NotFollowed(f"nothing here follows {meta['class']} of {meta['system']}")


def settings(meta: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """What the run was given, or its constructor had."""
    return {**others, **meta.get("defaults", {}), **meta["kwargs"]}


def rate_of(meta: Mapping[str, Any], key: str = "lr_used") -> Callable[[Any], Any]:
    """The learning rate of each step, as a schedule."""
    own = settings(meta)
    rate = own.get("lr", own.get("learning_rate"))
    rates = meta.get(key) or [rate] * meta["steps"]
    return lambda count: jnp.asarray(rates)[count]


def by_leaf(meta: Mapping[str, Any], build: Callable[[str, int], Any]) -> Any:
    """Gives each leaf an optimizer: `build(its name, its number of dimensions)`."""
    leaves = meta["leaves"]
    parts = {leaf: build(leaf, len(shape)) for leaf, shape in leaves.items()}
    return optax.partition(parts, {leaf: leaf for leaf in leaves})


def grouped(
    meta: Mapping[str, Any], parts: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Gives the leaves of each of the run's groups the optimizer of its name."""
    labels = {leaf: group for group, own in meta["groups"].items() for leaf in own}
    return optax.partition(parts, labels)


def of_leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes rules of what each leaf is given, by its whole name."""
    return {f"^{re.escape(leaf)}$": value for leaf, value in values.items()}


def split(
    meta: Mapping[str, Any],
    step: optax.GradientTransformation,
    of_elements: optax.GradientTransformation,
    count: Callable[[list[int]], int],
) -> optax.GradientTransformation:
    """Steps leaves whose blocks are of one element apart: these have no direction.

    An original that takes such an element for a block turns it nowhere; the links here
    leave it to inner's step. `count` counts a block's elements, of the leaf's shape.
    """
    labels = {
        leaf: "elements" if count(shape) == 1 else "blocks"
        for leaf, shape in meta["leaves"].items()
    }
    return optax.partition({"blocks": step, "elements": of_elements}, labels)


# Rotational: epfml/REQ.


def rotational(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    inner = meta.get("inner_type")
    kind = inner or meta["class"].removeprefix("Rotational").lower()
    kind = {"sgdm": "sgd"}.get(kind, kind)
    of_inner = meta.get("defaults", {}).get(f"inner_{inner}", {})

    def build(leaf: str, ndim: int) -> optax.GradientTransformation:
        given = {"lr": 0.0, "momentum": 0.0, "nesterov": False, "eps": 1e-8, **of_inner}
        given = {**given, **settings(meta), **meta.get("per_leaf", {}).get(leaf, {})}
        is_rotational = given["weight_decay"] != 0 and ndim > 1
        if given.get("rotational") is not None:
            is_rotational = given["rotational"]
        rate = rate_of({**meta, "kwargs": given})
        if not is_rotational:
            return decaying(kind, given, rate)
        # The angle goes as the root of what a step takes off, which may be nothing.
        share = 1e-6
        angle = normopt.equilibrium(plain(kind, given, share)).angle / share**0.5
        return normopt.rotational(
            direction(kind, given),
            lambda count: angle * jnp.sqrt(rate(count) * given["weight_decay"]),
            (0,) if given["per_neuron"] else (),
            b2=given["update_norm_decay_factor"],
            eps=given["rotational_eps"],
            center=given["zero_mean"],
        )

    return by_leaf(meta, build)


def betas(given: Mapping[str, Any]) -> dict[str, float]:
    return dict(zip(("b1", "b2"), given["betas"], strict=True))


def direction(kind: str, given: Mapping[str, Any]) -> optax.GradientTransformation:
    """The complete optimizer at a learning rate of 1, without its decay."""
    if kind == "adamw":
        return optax.adam(1.0, **betas(given), eps=given["eps"])
    if kind == "lion":
        return optax.lion(1.0, **betas(given), weight_decay=0.0)
    return optax.sgd(1.0, given["momentum"] or None, given["nesterov"])


def decaying(
    kind: str, given: Mapping[str, Any], rate: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """The same with a decay: that of SGD is in its gradient."""
    scaled = optax.scale_by_schedule(rate)
    if kind == "sgd":
        decay = normopt.add_decay(given["weight_decay"])
        return optax.chain(decay, direction(kind, given), scaled)
    decay = normopt.decay_weights(given["weight_decay"])
    return optax.chain(direction(kind, given), decay, scaled)


def plain(kind: str, given: Mapping[str, Any], decay: float) -> dict[str, Any]:
    """The configuration of the run that a rotational one stands for, at a rate of 1."""
    rated = {"learning_rate": 1.0}
    if kind == "adamw":
        return {
            "name": "adamw",
            "b1": given["betas"][0],
            "weight_decay": decay,
            **rated,
        }
    if kind == "lion":
        return {"name": "lion", **betas(given), "weight_decay": decay, **rated}
    links = [
        {"name": "add_decay", "weight_decay": decay},
        {"name": "trace", "decay": given["momentum"]},
        {"name": "scale_by_learning_rate", **rated},
    ]
    return {"name": "chain", "links": links}


# Hyperball: marin's levanter, HeavyBall.


def adamh(
    meta: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    given = settings(meta)
    numbers = {
        ours: given.get(theirs, given.get(ours))
        for ours, theirs in {"b1": "beta1", "b2": "beta2", "eps": "epsilon"}.items()
    }
    adam = optax.adam(1.0, **numbers)
    step = normopt.hyperball(adam, rate_of(meta), rows_of_stacks)
    parts = {
        "adamh": split(meta, step, optax.set_to_zero(), size_in_stack),
        "adam": optax.chain(adam, optax.scale_by_schedule(adam_rate(meta))),
        **(others or {}),
    }
    if given.get("max_grad_norm"):
        # Of each group by itself.
        clip = optax.clip_by_global_norm(given["max_grad_norm"])
        parts = {group: optax.chain(clip, part) for group, part in parts.items()}
    return grouped(meta, parts)


def adam_rate(meta: Mapping[str, Any]) -> Callable[[Any], Any]:
    own = settings(meta)
    own["lr"] = own.get("adam_lr", own["learning_rate"])
    return rate_of({**meta, "kwargs": own}, "adam_lr_used")


def size_in_stack(shape: list[int]) -> int:
    """Counts the elements of a block there, where an element of a vector is one."""
    return math.prod(shape if len(shape) == 2 else shape[1:])


def rows_of_stacks(params: Any) -> Any:
    """A matrix is one block, of what has more axes the first one indexes blocks."""
    return jax.tree.map(lambda w: () if w.ndim <= 2 else (0,), params)


def adamhr(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    adam = optax.scale_by_adam(given["b1"], given["b2"], given["eps"])
    inner = optax.chain(
        normopt.project_tangent(rows_of_stacks),
        adam,
        optax.scale_by_learning_rate(given["learning_rate"]),
    )
    return normopt.retract_to_sphere(
        inner, rows_of_stacks, "present", moment="mu", stretch=False
    )


def heavyball(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    moments = normopt.scale_by_block_adam(0.0, given["betas"][1], 0.0)
    decay = normopt.decay_weights(
        given["weight_decay"], cautious=given["cautious_weight_decay"]
    )
    down = optax.scale(-1.0)

    def build(leaf: str, ndim: int) -> optax.GradientTransformation:
        if ndim < 2:
            # No first moment: caution would keep every element.
            return optax.chain(moments, down, decay, optax.scale_by_schedule(rate))
        step = optax.chain(moments, down, decay)
        return normopt.hyperball(
            normopt.cautious(step) if given["caution"] else step, rate
        )

    return by_leaf(meta, build)


# Hooks: NVIDIA-NeMo/Emerging-Optimizers.


def hooked(
    meta: Mapping[str, Any], own: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    given, hook = settings(meta), meta["hook_kwargs"]
    rate = rate_of(meta)
    average = averaged(given["momentum"], given["nesterov"])
    inner = own or optax.chain(average, optax.scale(-1.0))
    if meta["base"] == "adam":
        adam = optax.adam(1.0, **betas(given), eps=given["adam_eps"])
        inner = optax.chain(average, adam) if given["momentum"] else adam
    if meta["hook"] == "radial_brake":
        inner = optax.chain(inner, optax.scale_by_schedule(rate))
        scales = hook["outward_scale"], hook["inward_scale"]
        step = normopt.brake_radial(inner, (), *scales)
    elif meta["hook"] == "relative":
        bound = normopt.bound_relative_step((), rate, rate, min_norm=0.0)
        step = optax.chain(inner, bound)
    elif given["weight_decay"] and given["weight_decay_method"] != "l2":
        # The step is as long as the radius, the weights have been made shorter.
        step = optax.chain(
            inner,
            normopt.normalize_blocks(eps=0.0),
            optax.scale(hook["radius"]),
            optax.scale_by_schedule(rate),
        )
        step = normopt.retract_to_sphere(step, (), hook["radius"])
    else:
        step = normopt.hyperball(inner, rate)
    return after_decay(step, given, rate)


def averaged(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    share = optax.scale(1 - momentum)
    return optax.chain(share, optax.trace(momentum, nesterov))


def pull_of(
    given: Mapping[str, Any], rate: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """What is taken off the weights by each of the ways to decay, as a schedule."""
    decay = given["weight_decay"]
    return {
        "decoupled": lambda count: rate(count) * decay,
        "independent": lambda count: jnp.asarray(decay),
        "palm": lambda count: rate(count) ** 2 * decay,
        "l2": lambda count: jnp.zeros([]),
    }[given["weight_decay_method"]]


def of_gradient(given: Mapping[str, Any]) -> optax.GradientTransformation:
    """The decay of those ways that adds to the gradient."""
    is_l2 = given["weight_decay_method"] == "l2"
    return normopt.add_decay(given["weight_decay"] if is_l2 else 0.0)


def after_decay(
    step: optax.GradientTransformation,
    given: Mapping[str, Any],
    rate: Callable[[Any], Any],
) -> optax.GradientTransformation:
    """Takes a decay off before all that looks at the weights, as the original does."""
    if given["weight_decay_method"] == "l2" or not given["weight_decay"]:
        return optax.chain(of_gradient(given), step)
    pull = pull_of(given, rate)

    def init(params):
        return jnp.zeros([], jnp.int32), step.init(params)

    def update(grads, state, params):
        count, inner = state
        decayed = jax.tree.map(
            lambda w: (w * (1 - pull(count))).astype(w.dtype), params
        )
        steps, inner = step.update(grads, inner, decayed)
        whole = jax.tree.map(lambda u, new, w: u + (new - w), steps, decayed, params)
        return whole, (count + 1, inner)

    return optax.GradientTransformation(init, update)


# Caution: pytorch-image-models, levanter.


def timm(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = (
        settings(meta, corrected_weight_decay=False, caution=False),
        rate_of(meta),
    )
    kind = meta["class"].removesuffix("Legacy")
    if kind == "Lion":
        step = optax.lion(1.0, **betas(given), weight_decay=0.0)
    elif kind == "SGDW":
        momentum, share = given["momentum"], 1 - given.get("dampening", 0.0)
        # The first gradient is not dampened.
        dampened = optax.scale_by_schedule(lambda n: jnp.where(n == 0, 1.0, share))
        trace = (
            optax.trace(momentum, given["nesterov"]) if momentum else optax.identity()
        )
        step = optax.chain(dampened if momentum else trace, trace, optax.scale(-1.0))
    else:
        moments = normopt.scale_by_block_adam(
            **betas(given),
            eps=given["eps"],
            amsgrad=given.get("amsgrad", False),
            nesterov=kind == "NAdamW",
        )
        step = optax.chain(moments, optax.scale(-1.0))
    if given["caution"] and given.get("momentum", 1) != 0:
        # Without momentum there is nothing to be cautious of.
        step = normopt.cautious(step)

    def eta(count):
        now = rate(count)
        return now**2 / given["lr"] if given["corrected_weight_decay"] else now

    return optax.chain(
        step,
        optax.scale_by_schedule(rate),
        normopt.decay_weights(decays(meta, given), schedule=eta),
    )


def timm_projected(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    own = {name: given[name] for name in ("delta", "wd_ratio", "nesterov")}
    own |= {"cautious": given["caution"], "channel_axes": (0,)}
    own |= {"weight_decay": decays(meta, given)}
    if meta["class"] == "AdamP":
        return normopt.adamp(rate_of(meta), **betas(given), eps=given["eps"], **own)
    own |= {"dampening": given["dampening"]}
    return normopt.sgdp(rate_of(meta), given["momentum"], **own)


def decays(meta: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    per_leaf = meta.get("per_leaf", {})
    return of_leaves(
        {
            leaf: per_leaf.get(leaf, {}).get("weight_decay", given["weight_decay"])
            for leaf in meta["leaves"]
        }
    )


def levanter_cautious(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    adam = optax.adam(1.0, given["beta1"], given["beta2"], given["epsilon"])
    has_clip = bool(given["max_grad_norm"])
    clip = optax.clip_by_global_norm(given["max_grad_norm"] if has_clip else jnp.inf)

    def eta(count):
        follows = given["adamc_weight_decay"]
        return rate(count) * (rate(count) / given["learning_rate"] if follows else 1)

    decayed = of_leaves(dict.fromkeys(meta["decayed"], given["weight_decay"]))
    return optax.chain(
        clip if has_clip else optax.identity(),
        normopt.cautious(adam, floor=1e-8),
        optax.scale_by_schedule(rate),
        normopt.decay_weights(decayed, schedule=eta),
    )


# Spheres: nGPT, Emerging-Optimizers' oblique ones.


def ngpt(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    matrices = [leaf for leaf, shape in meta["leaves"].items() if len(shape) > 1]
    adamw = optax.chain(
        optax.scale_by_adam(**betas(given), eps=given["eps"]),
        normopt.add_decay(of_leaves(dict.fromkeys(matrices, given["weight_decay"]))),
        optax.scale_by_learning_rate(rate),
    )
    # Normalized is along an axis; the others index the blocks.
    axes = {
        leaf: tuple({*range(len(meta["leaves"][leaf]))} - {axis})
        for leaf, axis in meta["normalize_axis"].items()
    }
    return normopt.retract_to_sphere(adamw, of_leaves(axes))


def oblique(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    axes = (1 - given["dim"] % 2,)
    if meta["class"] == "ObliqueSGD":
        moments = optax.trace(given["momentum"])
    else:
        moments = adam_of_oblique(given)
    decay = normopt.decay_weights(1.0, schedule=pull_of(given, rate))
    step = optax.chain(
        moments,
        normopt.project_tangent(axes),
        of_gradient(given),
        optax.scale_by_learning_rate(rate),
        decay,
    )
    step = normopt.retract_to_sphere(step, axes)
    return split(meta, step, optax.set_to_zero(), lambda shape: shape[given["dim"]])


def adam_of_oblique(given: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam that corrects nothing, or with what it says of the second moment."""
    b1, b2 = given["betas"]

    def root(count):
        return jnp.sqrt(1 - b2 ** (count + 1))

    if given["correct_bias"]:
        # The original divides the root by the whole correction, not by its root.
        eps, factor = (lambda count: given["eps"] * root(count)), root
    else:
        eps, factor = given["eps"], lambda count: (1 - b1 ** (count + 1)) / root(count)
    adam = optax.inject_hyperparams(normopt.scale_by_block_adam)(
        b1, b2, eps, eps_hat=not given["correct_bias"]
    )
    return optax.chain(adam, optax.scale_by_schedule(factor))


BUILDERS = (
    ("F_rotational", "Rotational.*", rotational),
    ("G_hyperball", r"AdamHConfig.*|scale_by_adamh \(.*", adamh),
    ("G_hyperball", "scale_by_adamhr", adamhr),
    ("G_hyperball", r"(adam|sgd)\+hyperball", hooked),
    ("G_hyperball", "HyperBallAdamW", heavyball),
    ("J_brake_relative", r"(adam|sgd)\+(radial_brake|relative)", hooked),
    ("K_cautious", "(AdamP|SGDP)", timm_projected),
    ("K_cautious", "CautiousConfig.*", levanter_cautious),
    ("K_cautious", "(AdamW|NAdamW|Lion|SGDW)(Legacy)?", timm),
    ("L_ngpt", "AdamW.*", ngpt),
    ("N_oblique_stiefel", "Oblique(SGD|Adam)", oblique),
)
