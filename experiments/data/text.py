"""A text as one array of bytes, and the windows that a model reads of it."""

import dataclasses
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONTEXT = 128  # bytes that a model reads at once
# An epoch is a crop at a random place of each stretch of so many bytes: the data are
# seen about once in 32 epochs, and a run has checkpoints long before that.
STRETCH = 32 * CONTEXT
VALIDATION_WINDOWS = 512  # spread evenly: an epoch is too short to be judged by all


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("text",),
    meta_fields=("stride", "length"),
)
@dataclasses.dataclass(frozen=True)
class Text:
    """Windows of a text, which is kept once, on the host or on a device.

    Attributes:
        text: (bytes,), uint8.
        stride: bytes from the start of a window to that of the next one.
        length: bytes in a window.
    """

    text: Any
    stride: int
    length: int

    def __len__(self) -> int:
        """Return the number of whole windows."""
        return max(0, len(self.text) - self.length + self.stride) // self.stride

    def take(
        self, indices: jax.Array, augment: Any = lambda windows: windows
    ) -> tuple[jax.Array, jax.Array]:
        """Return windows at `indices`, (m,), and the byte that follows each byte.

        Args:
            indices: of windows.
            augment: from the windows, (m, length), to what is read of them.

        Returns:
            Two arrays of integers (m, length - 1).
        """
        starts = jnp.asarray(indices)[:, None] * self.stride
        windows = augment(jnp.asarray(self.text)[starts + jnp.arange(self.length)])
        windows = windows.astype(jnp.int32)
        return windows[:, :-1], windows[:, 1:]


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """A text in three splits.

    Attributes:
        name: the name that loads it.
        train: what the gradient sees: stretches, to be cropped.
        validation: what choices are made on.
        test: what is reported.
        origin: what it depends on beside its name.
    """

    name: str
    train: Text
    validation: Text
    test: Text
    origin: dict[str, str]

    # A network for bytes reads them as they are.
    mean = std = None
    # What an example is, what a run counts, how many of them are in one, and what it is
    # judged by.
    examples, counted, in_one, scored = "stretches", "bytes", CONTEXT, "bits_per_byte"

    @property
    def model_arguments(self) -> dict[str, int]:
        """What a model for these data is built with."""
        return {"num_classes": 256}

    def few(self, windows: int) -> tuple[jax.Array, jax.Array]:
        """Return the first windows of the training text, and what follows each byte."""
        whole = dataclasses.replace(self.train, stride=CONTEXT, length=CONTEXT + 1)
        return whole.take(jnp.arange(min(windows, len(whole))))

    def score(self, loss: float, correct: int, windows: int) -> dict[str, float | int]:
        """Return what is told beside the loss, in nats a byte, of so many windows."""
        return {"bits_per_byte": loss / math.log(2)}

    def merit(self, loss: jax.Array, correct: jax.Array) -> jax.Array:
        """Return what is larger for better weights: minus the loss, of equal bytes."""
        return -loss

    @property
    def names_runs(self) -> dict[str, str | int]:
        """What of the data the folder of a run is named after: nothing.

        The text that comes with a Python changes with it, unasked. So the same command
        finds the same folder, which tells that its bytes were others.
        """
        return {}

    def fingerprint(self) -> dict[str, str | int]:
        """Return sizes and a digest, which tell two texts apart, and their origin."""
        splits = {
            "train": self.train.text,
            "validation": self.validation.text,
            "test": self.test.text,
        }
        digest = hashlib.sha256()
        for text in splits.values():
            digest.update(np.ascontiguousarray(text))
        sizes = {name: len(text) for name, text in splits.items()}
        return {**sizes, "sha256": digest.hexdigest()[:16], **self.origin}


def cut(
    name: str,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    origin: dict[str, str],
) -> TextDataset:
    """Build a data set from the bytes, (n,), of its splits, each of a window at least.

    Stretches of the training text overlap by a crop, so that each place is as likely as
    any other. The windows of the test text lie side by side.
    """
    spread = max(CONTEXT, math.ceil(len(validation) / VALIDATION_WINDOWS))
    return TextDataset(
        name,
        Text(train, STRETCH, STRETCH + CONTEXT),
        Text(validation, spread, CONTEXT + 1),
        Text(test, CONTEXT, CONTEXT + 1),
        origin,
    )
