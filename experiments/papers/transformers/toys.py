"""Problems of seconds whose answers are known, each grid under one `jax.vmap`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normopt

Make = Callable[[Any], optax.GradientTransformation]

# Of the network whose middle layer has other units, and of the quotient.
WIDTH, EXAMPLES, SIZE = 16, 64, 50
KEPT = {"w": ()}

OPTIMIZERS: Mapping[str, Make] = {
    "adamw": optax.adamw,
    "normalized adam": lambda rate: normopt.normalized(optax.adam(rate)),
    "novograd": normopt.novograd,
    "muon": lambda rate: normopt.muon(rate, scale="rms"),
    "hyperball": lambda rate: normopt.hyperball(optax.adam(rate), rate),
    "rotational": lambda rate: normopt.rotational(optax.adam(rate), rate, center=False),
    "sgd": optax.sgd,
}
ON_THE_SPHERE: Mapping[str, Make] = {
    "adam": optax.adam,
    "adams": functools.partial(normopt.adams, channel_axes=KEPT),
    "adamsrt": functools.partial(normopt.adamsrt, channel_axes=KEPT),
    "hyperball": lambda rate: normopt.hyperball(optax.adam(rate), rate, KEPT),
    "sgd": optax.sgd,
}


def scaled_layer(
    make: Make, rates: np.ndarray, factors: np.ndarray, steps: int, seeds: int
) -> np.ndarray:
    """Train a network whose middle layer has its weights in other units.

    They are multiplied by a factor, and what the layer gives is divided by it, so that
    each network is the same function; the gradient is divided by the factor as well.

    Args:
        make: from a rate to the optimizer.
        rates: of learning.
        factors: on the weights of the middle layer.
        steps: of each run.
        seeds: how many.

    Returns:
        The losses at the end over that at the start, seeds x rates x factors.
    """

    def loss(params: Any, data: Any, factor: jax.Array) -> jax.Array:
        inputs, targets = data
        hidden = jnp.tanh(inputs @ params["first"])
        hidden = jnp.tanh(hidden @ params["middle"] / factor)
        return jnp.mean((hidden @ params["last"] - targets) ** 2)

    def run(seed: jax.Array, rate: jax.Array, factor: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), 5)
        names, kernels = ("first", "middle", "last"), []
        for key in keys[:3]:
            kernels.append(jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5)
        params = dict(zip(names, kernels, strict=True))
        params["middle"] = params["middle"] * factor
        inputs = jax.random.normal(keys[3], (EXAMPLES, WIDTH))
        teacher = jax.random.normal(keys[4], (WIDTH, WIDTH)) / WIDTH**0.5
        data = inputs, jnp.tanh(inputs @ teacher)

        def of(params: Any) -> jax.Array:
            return loss(params, data, factor)

        return of(_descend(make(rate), of, params, steps)[0]) / of(params)

    return _over(run, seeds, rates, factors)


def quotient(
    make: Make, rates: np.ndarray, noises: np.ndarray, steps: int, seeds: int
) -> tuple[np.ndarray, ...]:
    """Look for the smallest eigenvalue as the minimum of a Rayleigh quotient.

    `x A x / x x` ignores the length of x, which is one block. A is diagonal, with
    `SIZE` eigenvalues from 1 to 100. Noise is normal and, as the gradient, orthogonal
    to x and divided by its length.

    Args:
        make: from a rate to the optimizer.
        rates: of learning.
        noises: the length of the noise on the gradient, for an x of length 1.
        steps: of each run.
        seeds: how many.

    Returns:
        Each seeds x rates x noises: the distance of the quotient to the smallest
        eigenvalue at the end; the length of x over that at the start; and the mean
        angle of the last tenth of the steps, in radians.
    """
    eigenvalues = jnp.logspace(0, 2, SIZE)

    def of(params: Any) -> jax.Array:
        x = params["w"]
        return jnp.sum(eigenvalues * x**2) / jnp.sum(x**2)

    def run(seed: jax.Array, rate: jax.Array, noise: jax.Array) -> Any:
        start_key, noise_key = jax.random.split(jax.random.key(seed))
        start = {"w": jax.random.normal(start_key, (SIZE,))}

        def noisy(gradients: Any, params: Any, count: jax.Array) -> Any:
            x = params["w"]
            drawn = jax.random.normal(jax.random.fold_in(noise_key, count), x.shape)
            tangent = drawn - x * jnp.sum(drawn * x) / jnp.sum(x**2)
            unit = jnp.linalg.norm(x) * SIZE**0.5
            return {"w": gradients["w"] + noise * tangent / unit}

        params, angles = _descend(make(rate), of, start, steps, noisy)
        grown = jnp.linalg.norm(params["w"]) / jnp.linalg.norm(start["w"])
        return of(params) - 1, grown, angles[-(steps // 10) :].mean()

    return _over(run, seeds, rates, noises)


def decayed(steps: int, decays: np.ndarray) -> dict[str, list[float]]:
    """Return what is left of bfloat16 weights of 1 that only decay, one a decay.

    Args:
        steps: how many.
        decays: the share of a weight that each takes.
    """

    def left(wrap: Callable[[Any], Any], decay: jax.Array) -> jax.Array:
        optimizer = wrap(normopt.decay_weights(decay))
        params = {"w": jnp.ones(8, jnp.bfloat16)}

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            nothing = jax.tree.map(jnp.zeros_like, params)
            updates, state = optimizer.update(nothing, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        params, _ = jax.lax.scan(step, carry, length=steps)[0]
        return params["w"].astype(jnp.float32).mean()

    ways = {
        "as it is": lambda inner: inner,
        "compensated": normopt.compensate_rounding,
    }
    found = {"exact": ((1 - decays) ** steps).tolist()}
    for name, wrap in ways.items():
        over = jax.jit(jax.vmap(functools.partial(left, wrap)))
        found[name] = np.asarray(over(jnp.asarray(decays)), float).tolist()
    return found


def _descend(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any], jax.Array],
    params: Any,
    steps: int,
    change: Callable[[Any, Any, jax.Array], Any] = lambda gradients, *_: gradients,
) -> tuple[Any, jax.Array]:
    """Return the parameters after some steps, and the angle of the first leaf at each.

    Args:
        optimizer: what steps.
        loss: of the parameters.
        params: initial ones.
        steps: how many.
        change: of gradients, from these, the parameters and the count.
    """

    def step(carry: Any, count: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        gradients = change(jax.grad(loss)(params), params, count)
        updates, state = optimizer.update(gradients, state, params)
        after = optax.apply_updates(params, updates)
        angles = normopt.block_angles(params, after)
        return (after, state), jax.tree.leaves(angles)[0]

    carry = params, optimizer.init(params)
    (params, _), angles = jax.lax.scan(step, carry, jnp.arange(steps))
    return params, angles


def _over(
    run: Callable[..., Any], seeds: int, rates: np.ndarray, others: np.ndarray
) -> Any:
    """Return what all runs come to, seeds x rates x others."""
    over = run
    for axes in ((None, None, 0), (None, 0, None), (0, None, None)):
        over = jax.vmap(over, axes)
    values = (jnp.asarray(one, jnp.float32) for one in (rates, others))
    found = jax.jit(over)(jnp.arange(seeds, dtype=jnp.uint32), *values)
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), found)
