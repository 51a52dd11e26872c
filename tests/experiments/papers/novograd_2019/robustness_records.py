"""Records of `novograd_2019.robustness` as wide and as good as a test wants them."""

import numpy as np

from experiments.papers.novograd_2019.robustness_training import METHODS
from experiments.papers.novograd_2019.valleys import MARGIN


def results(ours, theirs, seeds=6):
    """Records where all modes find the same, and all others.

    What one finds: the decades and the octaves.
    """
    scales, units = np.linspace(-3, 3, 13), np.arange(-20, 21, 4)
    # Seeds that differ, by far more than the optimizers.
    level = 0.05 + 0.05 * np.arange(seeds)[:, None]

    def found(decades, octaves):
        errors = {
            "errors": level,
            "weights": level + MARGIN * abs(scales) / (decades / 2),
            "float16": level + MARGIN * abs(units) / (octaves / 2),
        }
        return {name: e.tolist() for name, e in errors.items()}

    return {
        "epochs": 30,
        "training_images": 400,
        "scales": scales.tolist(),
        "units": units.tolist(),
        "optimizers": {
            name: found(*(ours if name.startswith("NovoGrad") else theirs))
            for name in METHODS
        },
    }
