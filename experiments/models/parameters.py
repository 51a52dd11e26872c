"""A model's parameters without the model, for what only their shapes matter to."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.models import MODELS


def random_parameters(model: str) -> Any:
    """Return float32 parameters of the model for ten classes of colour images."""
    shapes = nnx.eval_shape(
        lambda: MODELS[model](num_classes=10, channels=3, rngs=nnx.Rngs(0))
    )
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    # By numpy, as JAX would compile a program for each shape.
    random = np.random.default_rng(0)

    def normal(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(random.standard_normal(leaf.shape, leaf.dtype))

    return jax.tree.map(normal, params)
