"""Blocks that noise drives: each gradient is drawn afresh, orthogonal to the weights.

An element of a gradient is s / |w| long, with s = 1, as a loss has it that sees the
direction of a block alone. Many blocks step together, as the columns of one matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import normopt
from experiments.papers.rotational_2024.arms import ARMS, Config, chain, scale

AXES = (-1,)
BLOCKS = 16  # of each seed
# Blocks begin longer than they are to be, and this share of the steps does not count.
LONGER, REST = 1.2, 0.6


class Setting(NamedTuple):
    """Factors of an arm's rate, beside which the decay keeps the angle, and of that."""

    rate: float
    decay: float
    size: int


SETTINGS = (
    Setting(0.1, 0.5, 32),
    Setting(0.1, 2.0, 512),
    Setting(1.0, 1.0, 128),
    Setting(10.0, 0.5, 512),
    Setting(10.0, 2.0, 32),
)
# A cosine from the largest rate to 0, which is followed for three quarters of the way.
LR_MAX, FOLLOWED, STRETCHES = 0.01, 0.75, 60
# The powers of lr_t / lr_max that a decay goes by.
FORMS = {"independent": 0.0, "times the rate": 1.0, "corrected": 2.0}


def measure_noise(
    seeds: int, settings: tuple[Setting, ...], steps: int
) -> dict[str, Any]:
    """Measure every arm in all settings.

    Args:
        seeds: groups of blocks.
        settings: which.
        steps: how many.

    Returns:
        By arm, for lengths and angles: what is predicted, one a setting, and what is
        measured, settings x seeds.
    """
    return {name: _measure_arm(name, seeds, settings, steps) for name in ARMS}


def _measure_arm(
    name: str, seeds: int, settings: tuple[Setting, ...], steps: int
) -> dict[str, list[Any]]:
    arm = ARMS[name]
    found: dict[str, list[Any]] = {
        key: [] for key in ("predicted_length", "predicted_angle", "length", "angle")
    }
    for setting in settings:
        decay = arm.noise.decay * setting.decay / setting.rate**arm.power
        config = arm.build(arm.noise.rate * setting.rate, decay, AXES)
        expected = normopt.equilibrium(config, size=setting.size)
        start = LONGER * expected.length
        squares = follow(config, start, setting.size, seeds, steps)
        for key, value in expected._asdict().items():
            found[f"predicted_{key}"].append(value)
            counted = squares[key][round(REST * steps) :]
            found[key].append(np.sqrt(counted.mean(axis=0)).tolist())
    return found


def measure_schedules(seeds: int, steps: int) -> dict[str, Any]:
    """Follow Adam's blocks down a cosine of the rate, by what the decay goes with.

    Args:
        seeds: groups of blocks.
        steps: how many, a multiple of `STRETCHES`.

    Returns:
        The steps in the middle of the stretches, and by form: lengths and angles, what
        is predicted there, and what is measured, stretches x seeds.
    """
    every = steps // STRETCHES
    middles = [every * rank + every // 2 for rank in range(STRETCHES)]
    found: dict[str, Any] = {"steps": middles, "forms": {}}
    for form, power in FORMS.items():
        config = scheduled(power, round(steps / FOLLOWED))
        start = normopt.equilibrium(config, size=128, step=0).length
        squares = follow(config, start, 128, seeds, steps)
        expected = [normopt.equilibrium(config, size=128, step=k) for k in middles]
        found["forms"][form] = {
            "predicted_length": [one.length for one in expected],
            "predicted_angle": [one.angle for one in expected],
        } | {
            key: np.sqrt(square.reshape(STRETCHES, every, seeds).mean(axis=1)).tolist()
            for key, square in squares.items()
        }
    return found


def scheduled(power: float, cosine_steps: int) -> Config:
    """Return Adam on a cosine, with a decay that goes as a power of its values."""
    cosine = {"name": "cosine_decay_schedule", "decay_steps": cosine_steps}
    eta = {**cosine, "init_value": 1.0, "exponent": power}
    pull = {"name": "decay_weights", "weight_decay": 0.004, "schedule": eta}
    adam = {"name": "scale_by_adam", "b1": 0.9, "b2": 0.99}
    return chain(adam, scale({**cosine, "init_value": LR_MAX}), pull)


def follow(
    config: Config, start: float, size: int, seeds: int, steps: int
) -> dict[str, np.ndarray]:
    """Let noise drive blocks.

    Args:
        config: of the optimizer.
        start: the length that blocks begin with.
        size: elements in a block.
        seeds: groups of blocks.
        steps: how many.

    Returns:
        The squares of lengths and angles, means over each group, steps x seeds.
    """
    optimizer = normopt.make(**config)

    def means(numbers: Any) -> jax.Array:
        return jnp.mean((numbers**2).reshape(seeds, BLOCKS), axis=1)

    def step(carry: Any, key: jax.Array) -> Any:
        w, state = carry
        noise, lengths = jax.random.normal(key, w.shape), jnp.linalg.norm(w, axis=0)
        unit = w / lengths
        gradient = (noise - unit * jnp.sum(unit * noise, axis=0)) / lengths
        updates, state = optimizer.update(gradient, state, w)
        after = w + updates
        angles = normopt.block_angles(w, after, AXES)
        seen = {
            "length": means(normopt.block_norms(after, AXES)),
            "angle": means(angles),
        }
        return (after, state), seen

    first, key = jax.random.split(jax.random.key(0))
    w = jax.random.normal(first, (size, seeds * BLOCKS))
    w *= start / jnp.linalg.norm(w, axis=0)
    keys = jax.random.split(key, steps)
    run = jax.jit(lambda *carry: jax.lax.scan(step, carry, keys)[1])
    return jax.tree.map(np.asarray, run(w, optimizer.init(w)))
