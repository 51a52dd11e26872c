"""The recorded runs of Muon and its kin, rebuilt from a file's `meta`.

Each leaf has one matrix there: what it has beyond two axes is flattened into its
inputs. An eps beside the norm of an averaged momentum is the eps beside that of a sum
over 1 - momentum.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt
from tests import originals
from tests.originals import (
    NotFollowed,
    after_decay,
    betas,
    by_leaf,
    grouped,
    of_leaves,
    rate_of,
    settings,
    split,
)

OUTPUTS_FIRST = normopt.output_matrices(0)
SIMPLE = (3.4445, -4.775, 2.0315)
LAST_REPEATS = ("polar_express", "cans", "deepseekv4")


def triples(meta: Mapping[str, Any], name: str, steps: int) -> list[Sequence[float]]:
    """The coefficients of each step: some sets repeat their last, others begin anew.

    In levanter, whose classes are configurations, all of them begin anew.
    """
    given = meta["ns_coefficients"][name]
    last = len(given) - 1
    repeats = name in LAST_REPEATS and "Config" not in meta["class"]
    return [given[min(n, last) if repeats else n % len(given)] for n in range(steps)]


def factor(mode: str | None, shape: Sequence[int]) -> float:
    """What a step is multiplied by, of outputs first and inputs after them."""
    outputs, inputs = shape[0], int(np.prod(shape[1:]))
    return {
        None: 1.0,
        "spectral": max(outputs, inputs) ** 0.5,
        "shape_scaling": max(1, outputs / inputs) ** 0.5,
        "unit_rms_norm": (outputs / inputs) ** 0.5,
        "spectral_norm": (outputs / inputs) ** 0.5,
        "rms_norm": 0.2 * max(outputs, inputs) ** 0.5,
    }[mode]


def factors(meta: Mapping[str, Any], mode: str | None, extra: float = 1.0) -> Any:
    return of_leaves({k: extra * factor(mode, v) for k, v in meta["leaves"].items()})


# NVIDIA-NeMo/Emerging-Optimizers.


def emerging_direction(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    """The averaged and orthogonalized gradient, downhill."""
    given = settings(meta)
    coefficients = triples(meta, given["coefficient_type"], given["num_ns_steps"])
    return optax.chain(
        originals.averaged(given["momentum"], given.get("nesterov", False)),
        normopt.orthogonalize(
            OUTPUTS_FIRST,
            steps=len(coefficients),
            coefficients=coefficients,
            eps=0.0,
        ),
        optax.scale(-1.0),
    )


def emerging_step(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    scale = factors(meta, given["scale_mode"], given["extra_scale_factor"])
    return optax.chain(emerging_direction(meta), normopt.scale_by_path(scale))


def emerging_muon(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    rate = rate_of(meta)
    step = optax.chain(emerging_step(meta), optax.scale_by_schedule(rate))
    return after_decay(step, settings(meta), rate)


def emerging_hooked(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    return originals.hooked(meta, emerging_step(meta))


def spel(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    coefficients = triples(meta, given["coefficient_type"], given["num_ns_steps"])
    step = normopt.retract_to_stiefel(
        optax.chain(emerging_direction(meta), optax.scale_by_schedule(rate)),
        OUTPUTS_FIRST,
        steps=len(coefficients),
        coefficients=coefficients,
        eps=0.0,
    )
    return after_decay(step, given, rate)


def muown(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    wd = given["weight_decay"]
    length = optax.chain(
        optax.scale_by_adam(**betas(given), eps=given["adam_eps"]),
        # The decay comes after the step.
        optax.scale_by_schedule(lambda count: -rate(count) * (1 - rate(count) * wd)),
        normopt.decay_weights(wd, schedule=rate),
    )
    direction = optax.chain(emerging_step(meta), optax.scale_by_schedule(rate))
    step = normopt.decouple_length(direction, length, (0,))
    return split(meta, step, length, lambda shape: shape[1])


def emerging_scion(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    coefficients = triples(meta, given["coefficient_type"], given["num_ns_steps"])
    norm = normopt.spectral(
        OUTPUTS_FIRST, steps=len(coefficients), coefficients=coefficients
    )
    return normopt.scion(
        rate_of(meta),
        given["momentum"],
        norms=norm,
        radii=factors(meta, "unit_rms_norm", given["spectral_radius"]),
        eps=0.0,
        constrained=True,
    )


# Muon elsewhere: KellerJordan, dion, optax, levanter.


def keller_jordan(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    muon, adam = (
        {**meta["defaults"][group], **meta["kwargs"].get(group, {})}
        for group in ("muon", "adam")
    )
    # A quirk that is followed: of a convolution, height and width.
    shapes = {leaf: meta["leaves"][leaf] for leaf in meta["groups"]["muon"]}
    scale = {k: max(1, shape[-2] / shape[-1]) ** 0.5 for k, shape in shapes.items()}
    by_muon = normopt.muon(
        muon["lr"],
        muon["momentum"],
        weight_decay=muon["weight_decay"],
        # Kernels of convolutions alone are flattened, of others the first axes stack.
        matrices=of_leaves(
            {
                leaf: ((1, 2, 3), (0,)) if len(shape) == 4 else ((-1,), (-2,))
                for leaf, shape in shapes.items()
            }
        ),
        coefficients=SIMPLE,
        eps=1e-7 / (1 - muon["momentum"]),
        scale=of_leaves(scale),
    )
    by_adam = optax.adamw(
        adam["lr"], **betas(adam), eps=adam["eps"], weight_decay=adam["weight_decay"]
    )
    return grouped(meta, {"muon": by_muon, "adam": by_adam})


def dion_muon(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    muon = normopt.muon(
        rate_of(meta),
        given["mu"],
        nesterov=given["nesterov"],
        weight_decay=given["weight_decay"],
        matrices=OUTPUTS_FIRST,
        coefficients=SIMPLE,
        steps=given["ns_steps"],
        eps=given["epsilon"],
        scale=factors(meta, given["adjust_lr"]),
    )
    return beside_adamw(meta, muon)


def beside_adamw(
    meta: Mapping[str, Any], step: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Gives the leaves of the group that is named for it dion's AdamW."""
    if not meta.get("groups"):
        return step
    given = settings(meta)
    # Its eps is added to the root before the correction.
    moments = normopt.scale_by_block_adam(
        **betas(given), eps=given["epsilon"], eps_hat=True
    )
    decay = normopt.add_decay(given["weight_decay"])
    adamw = optax.chain(moments, decay, optax.scale_by_learning_rate(rate_of(meta)))
    return grouped(meta, {**dict.fromkeys(meta["groups"], step), "adamw": adamw})


def dion_normuon(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta) | meta.get("hyper_values_used", {})
    (first, *others) = meta["ns_coefficients"]["polar_express_dion"]
    # The safety factor on the norm goes into the first triple.
    safe = [a / 1.02**n for a, n in zip(first, (1, 3, 5), strict=True)]
    wd, rate = given["weight_decay"], rate_of(meta)
    own = {
        "nesterov": given["nesterov"],
        "matrices": OUTPUTS_FIRST,
        "coefficients": [safe, *others],
        "eps": given["epsilon"] / 1.02,
        "scale": factors(meta, given["adjust_lr"]),
    }
    decays = {} if given["cautious_wd"] else {"weight_decay": wd}
    step = normopt.normuon(rate, given["mu"], given["muon_beta2"], **own, **decays)
    if given["cautious_wd"]:
        decay = normopt.decay_weights(wd, schedule=rate, cautious=True)
        step = optax.chain(step, decay)
    return beside_adamw(meta, step)


def of_optax(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, rate = settings(meta), rate_of(meta)
    if given["adaptive"] or given["preconditioning"] != "frobenius":
        raise NotFollowed("of optax.contrib.muon only the plain iteration is here")
    axes = {
        leaf: ((0,), (1,)) for leaf, shape in meta["leaves"].items() if len(shape) == 2
    } | {
        leaf: (numbers["reduction_axis"], numbers["output_axis"])
        for leaf, numbers in meta.get("dimension_numbers", {}).items()
    }
    rms = given["consistent_rms"]
    scale = {}
    for leaf, sides in axes.items():
        shape = meta["leaves"][leaf]
        inputs, outputs = (math.prod(shape[axis] for axis in side) for side in sides)
        scale[leaf] = max(1, outputs / inputs) ** 0.5
        if rms is not None:
            scale[leaf] = rms * max(inputs, outputs) ** 0.5
    muon = optax.chain(
        corrected_average(given["beta"], given["nesterov"]),
        normopt.orthogonalize(
            of_leaves(axes),
            steps=given["ns_steps"],
            coefficients=given["ns_coeffs"],
            eps=given["eps"],
        ),
        normopt.scale_by_path(of_leaves(scale)),
        normopt.add_decay(given["weight_decay"]),
        optax.scale_by_learning_rate(rate),
    )
    adamw = optax.adamw(
        rate,
        given["adam_b1"],
        given["adam_b2"],
        given["eps"],
        given["adam_eps_root"],
        weight_decay=given["adam_weight_decay"],
        nesterov=given["nesterov"],
    )
    labels = {leaf: "muon" if leaf in axes else "adam" for leaf in meta["leaves"]}
    return optax.partition({"muon": muon, "adam": adamw}, labels)


def corrected_average(decay: float, nesterov: bool) -> optax.GradientTransformation:
    """Averages gradients, each part of what looks ahead corrected for itself."""

    def init(params):
        return jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        count, old = state[0] + 1, state[1]
        m = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, old, grads)
        now, ahead = 1 - decay**count, 1 - decay ** (count + 1)
        seen = jax.tree.map(lambda m: m / now, m)
        if nesterov:
            seen = jax.tree.map(
                lambda m, g: decay * m / ahead + (1 - decay) * g / now, m, grads
            )
        return seen, (count, m)

    return optax.GradientTransformation(init, update)


def muonh(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given = settings(meta)
    name, steps = given["coefficient_type"], given["backend_steps"]
    direction = optax.chain(
        optax.trace(given["momentum"], given["nesterov"]),
        normopt.orthogonalize(
            # The first axis of a stack indexes its layers.
            lambda params: jax.tree.map(lambda w: ((-1,), (-2,)), params),
            steps=steps,
            coefficients=triples(meta, name, steps),
            eps=given["muon_epsilon"],
        ),
        optax.scale(-1.0),
    )
    return originals.adamh(
        meta,
        {
            "muonh": normopt.hyperball(
                direction, rate_of(meta), originals.rows_of_stacks
            )
        },
    )


# Scion of its authors.


def scion(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, defaults = settings(meta), meta["defaults"]
    groups = {leaf: group for group in meta["groups"] for leaf in group["leaves"]}

    def build(leaf: str, ndim: int) -> optax.GradientTransformation:
        group = groups[leaf]
        shape = meta["leaves"][leaf]
        name = group.get("norm", given["norm"])
        if name == "Auto":
            kinds = {2: "Spectral", 3: "SpectralConv", 4: "SpectralConv"}
            name = kinds.get(ndim, "BiasRMS")
        own = {**defaults.get(name, {}), **group.get("norm_kwargs", {})}
        norm, radius, eps = NORMS[name](shape, own)
        scale = group.get("scale", given["scale"])
        return normopt.scion(
            group.get("lr", rate_of(meta)),
            1 - group.get("momentum", given["momentum"]),
            norms=norm,
            radii=scale * radius,
            eps=eps,
            constrained=not group.get("unconstrained", given["unconstrained"]),
        )

    return by_leaf(meta, build)


def simple_spectral(steps: int) -> Any:
    return normopt.spectral(OUTPUTS_FIRST, steps=steps, coefficients=SIMPLE)


def of_spectral(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    root = (shape[0] / shape[1] if own["normalized"] else shape[0]) ** 0.5
    radius = max(1, root) if own["max"] else root
    return simple_spectral(own["steps"]), radius, 1e-7


def of_convolution(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    kernel = shape[2] ** (len(shape) - 2)
    radius = (shape[0] / shape[1]) ** 0.5 / kernel
    return simple_spectral(own["steps"]), radius, 1e-7


def of_columns(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    axis = 0 if own["transpose"] else 1
    # Of what is transposed, the columns are the rows.
    share = shape[axis] if own["normalized"] else 1
    return ("avg_l2", (axis,)), 1 / share, 1e-8 / share


def of_rows(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    axis = 1 if own["transpose"] else 0
    share = shape[1 - axis] ** 0.5 if own["normalized"] else 1
    return ("l2", (axis,)), 1 / share, 1e-8 / share


def of_signs(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    return "max", 1 / shape[1] if own["normalized"] else 1.0, 0.0


def of_bias(shape: Sequence[int], own: Mapping[str, Any]) -> Any:
    return "avg_l2", 1.0, 1e-8


NORMS: dict[str, Callable[[Sequence[int], Mapping[str, Any]], Any]] = {
    "Spectral": of_spectral,
    "SpectralConv": of_convolution,
    "ColNorm": of_columns,
    "RowNorm": of_rows,
    "Sign": of_signs,
    "BiasRMS": of_bias,
}


# modula-systems/modula.


def modula(meta: Mapping[str, Any]) -> optax.GradientTransformation:
    given, coefficients = settings(meta), meta["ns_coefficients"]["six"]
    iteration = {"steps": len(coefficients), "coefficients": coefficients}

    def build(leaf: str, ndim: int) -> optax.GradientTransformation:
        rows = leaf.startswith("emb")
        shape, target = meta["leaves"][leaf], given["target_norm"]
        root = 1.0 if rows else (shape[0] / shape[1]) ** 0.5
        spectral = normopt.spectral(OUTPUTS_FIRST, **iteration)
        step = normopt.scion(
            rate_of(meta),
            given["mu"],
            norms=("avg_l2", (0,)) if rows else spectral,
            radii=target * root,
            eps=0.0,
        )
        if not given["project"]:
            return step
        if rows:
            return normopt.retract_to_sphere(step, (0,), shape[1] ** 0.5)
        return normopt.retract_to_stiefel(
            step, OUTPUTS_FIRST, scale="spectral", eps=0.0, **iteration
        )

    return by_leaf(meta, build)


BUILDERS = (
    ("G_hyperball", "MuonHyperball", emerging_hooked),
    ("G_hyperball", "MuonHConfig.*", muonh),
    ("H_muon", "Muon", emerging_muon),
    ("H_muon", r"Muon \(muon_reference\)", dion_muon),
    ("H_muon", "NorMuon", dion_normuon),
    ("H_muon", "SingleDeviceMuonWithAuxAdam", keller_jordan),
    ("H_muon", r"optax\.contrib\.muon", of_optax),
    ("I_scion", r"Scion \(Emerging\)", emerging_scion),
    ("I_scion", "Scion", scion),
    ("J_brake_relative", r"muon\+(radial_brake|relative)", emerging_hooked),
    ("N_oblique_stiefel", "Spel", spel),
    ("O_muown", "Muown", muown),
    ("P_modula", "Linear/Embed.*", modula),
)
