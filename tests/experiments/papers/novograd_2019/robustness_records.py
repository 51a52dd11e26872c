"""Records of `novograd_2019.robustness` as wide and as good as a test wants them."""

import numpy as np

from experiments.papers.novograd_2019.robustness_training import METHODS
from experiments.papers.novograd_2019.valleys import MARGIN


def results(ours, theirs, seeds=6):
    """Records where all modes find the same, and all others.

    What one finds: the error with all images in a step, the decades and the octaves.
    """
    scales, units = np.linspace(-3, 3, 13), np.arange(-20, 21, 4)
    # Seeds that differ, by far more than the optimizers.
    level = 0.05 + 0.05 * np.arange(seeds)[:, None]

    def found(error, decades, octaves):
        errors = {
            "weights": level + MARGIN * abs(scales) / (decades / 2),
            "float16": level + MARGIN * abs(units) / (octaves / 2),
        }
        batches = {"20": level.tolist(), "400": (level + error).tolist()}
        return {name: e.tolist() for name, e in errors.items()} | {"batches": batches}

    return {
        "epochs": 500,
        "training_images": 400,
        "batches": [20, 400],
        "scales": scales.tolist(),
        "units": units.tolist(),
        "optimizers": {
            name: found(*(ours if name.startswith("NovoGrad") else theirs))
            for name in METHODS
        },
    }
