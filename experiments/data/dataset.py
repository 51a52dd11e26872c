"""What every data set looks like once loaded, and how it is cut into splits.

One shape for all of them lets the training loop put any set on the device as it is.
"""

import dataclasses
import hashlib

import jax
import numpy as np

# Splits belong to the data set: runs with different seeds stay comparable.
SPLIT_SEED = 0
VALIDATION_FRACTION = 0.05


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: (n, height, width, channels), uint8, in the units of the files.
        labels: (n,), int32.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images at `indices`, (m,), in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three splits, with the training split's statistics.

    Attributes:
        name: the name that loads it.
        num_classes: labels are in [0, num_classes).
        train: what the gradient sees.
        validation: what choices are made on.
        test: what is reported.
        mean: (channels,), float32, of the training split.
        std: (channels,), float32, of the training split.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray

    # What an example is, what a run counts, how many of them are in one, and what it is
    # judged by.
    examples, counted, in_one, scored = "images", "images", 1, "accuracy"

    @property
    def model_arguments(self) -> dict[str, int]:
        """What a model for these data is built with."""
        channels = self.train.images.shape[-1]
        return {"num_classes": self.num_classes, "channels": channels}

    def few(self, images: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first training images as they are, and their labels."""
        batch = self.train.take(np.arange(min(images, len(self.train))))
        return batch.images, batch.labels

    def score(self, loss: float, correct: int, images: int) -> dict[str, float | int]:
        """Return what is told beside the loss, of so many images."""
        return {"accuracy": correct / images, "correct": correct, "images": images}

    def merit(self, loss: jax.Array, correct: jax.Array) -> jax.Array:
        """Return what is larger for better weights: how many images are told right."""
        return correct

    @property
    def names_runs(self) -> dict[str, str | int]:
        """What of the data the folder of a run is named after."""
        return self.fingerprint()

    def first(self, images: int) -> "Dataset":
        """Return the data set with the first training images alone, and their mean.

        Raises:
            ValueError: there are not so many, or none are asked for.
        """
        if not 1 <= images <= len(self.train):
            raise ValueError(
                f"`images` must be from 1 to {len(self.train)}, got {images}"
            )
        train = self.train.take(np.arange(images))
        return normalised(
            self.name, self.num_classes, train, self.validation, self.test
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Return sizes and a digest, which tell a partial copy from the whole set."""
        splits = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        digest = hashlib.sha256()
        for split in splits.values():
            digest.update(np.ascontiguousarray(split.images))
            digest.update(np.ascontiguousarray(split.labels))
        sizes = {name: len(split) for name, split in splits.items()}
        return {**sizes, "sha256": digest.hexdigest()[:16]}


def with_validation(
    name: str, num_classes: int, train: Split, test: Split, source: str
) -> Dataset:
    """Hold a fixed random 5 % of the official training images out for validation.

    Args:
        name: the data set's name.
        num_classes: the number of classes.
        train: the official training images.
        test: the official test images.
        source: the files' folder, for the error message.

    Returns:
        The data set.

    Raises:
        ValueError: there are too few training images for two splits.
    """
    held_out = round(VALIDATION_FRACTION * len(train))
    if held_out == 0:
        raise ValueError(
            f"{source}: {len(train)} training images are too few to hold "
            f"{VALIDATION_FRACTION:.0%} out for validation; at least 10 are needed"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    return normalised(
        name,
        num_classes,
        train=train.take(np.sort(order[held_out:])),
        validation=train.take(np.sort(order[:held_out])),
        test=test,
    )


def normalised(
    name: str, num_classes: int, train: Split, validation: Split, test: Split
) -> Dataset:
    """Build a data set with the mean and deviation of its training split."""
    pixels, counts = np.arange(256.0), []
    for channel in range(train.images.shape[-1]):
        counts.append(np.bincount(train.images[..., channel].ravel(), minlength=256))
    weights = np.array(counts) / train.images[..., 0].size
    mean = weights @ pixels
    variance = (weights * (pixels - mean[:, None]) ** 2).sum(axis=1)
    # A constant channel, in a tiny set, has no spread to divide by.
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return Dataset(
        name,
        num_classes,
        train,
        validation,
        test,
        mean.astype(np.float32),
        std.astype(np.float32),
    )
