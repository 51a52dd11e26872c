"""The handwritten digits inside scikit-learn: 1,797 real 8x8 images, no download.

They let the main job run on any machine, in a minute, on real data. Scikit-learn is
imported where they are loaded: otherwise each command would start with it, which takes
1.3 seconds.
"""

from pathlib import Path

import numpy as np

from experiments.data.dataset import SPLIT_SEED, Dataset, Split, normalised

TEST_IMAGES = 360
VALIDATION_IMAGES = 180


def load(data_dir: Path | None = None) -> Dataset:
    """Load the digits, cut into 1,257 / 180 / 360 images with equal class shares.

    Args:
        data_dir: must be None; the images come with scikit-learn.

    Returns:
        Images (n, 8, 8, 1) with values 0 to 16.

    Raises:
        ValueError: a `data_dir` is given.
    """
    if data_dir is not None:
        raise ValueError(
            "the data set 'digits' comes with scikit-learn and reads no files; "
            f"leave data_dir out (got {data_dir})"
        )
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = Split(images.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int32))
    rest, test = _hold_out(np.arange(len(whole)), whole.labels, TEST_IMAGES)
    train, validation = _hold_out(rest, whole.labels, VALIDATION_IMAGES)
    return normalised(
        "digits", 10, whole.take(train), whole.take(validation), whole.take(test)
    )


def _hold_out(
    indices: np.ndarray, labels: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        indices,
        test_size=count,
        random_state=SPLIT_SEED,
        stratify=labels[indices],
    )
    return kept, held_out
