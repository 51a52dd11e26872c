"""Text that a network writes, byte by byte, each drawn from what it foresees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.text import CONTEXT
from experiments.training.steps import Network

PROMPT, BYTES = "\n\ndef ", 256
# Below 1 it draws what it holds for likely more often than it would.
TEMPERATURE = 0.7


def sample(network: Network, params: Any, model_state: Any, key: jax.Array) -> Any:
    """Return the bytes that follow `PROMPT`, (`BYTES`,), under `jax.jit`.

    Args:
        network: reads at most `CONTEXT` bytes at once.
        params: its parameters.
        model_state: its other state.
        key: for the draws.
    """
    prompt = np.frombuffer(PROMPT.encode(), np.uint8)
    window = jnp.zeros(CONTEXT, jnp.int32).at[: len(prompt)].set(prompt)

    def step(carry: Any, key: jax.Array) -> Any:
        window, known = carry
        logits = network.evaluate(params, model_state, window[None])[0, known - 1]
        drawn = jax.random.categorical(key, logits / TEMPERATURE)
        # A full window loses its first byte; what stands after the known is not seen.
        moved = jnp.where(known == CONTEXT, jnp.roll(window, -1), window)
        window = moved.at[jnp.minimum(known, CONTEXT - 1)].set(drawn)
        return (window, jnp.minimum(known + 1, CONTEXT)), drawn

    carry = window, jnp.asarray(len(prompt))
    return jax.lax.scan(step, carry, jax.random.split(key, BYTES))[1]


def in_words(drawn: Any) -> str:
    """Return the prompt and what follows, with a sign for what cannot be printed."""
    text = bytes(np.asarray(drawn, np.uint8)).decode(errors="replace")
    return PROMPT + "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
