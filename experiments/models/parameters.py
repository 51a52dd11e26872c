"""A model's parameters without the model, for what only their shapes matter to."""

from typing import Any

import jax
import optax
from flax import nnx

from experiments.models import MODELS


def random_parameters(model: str) -> Any:
    """Return float32 parameters of the model for ten classes of colour images."""
    shapes = nnx.eval_shape(
        lambda: MODELS[model](num_classes=10, channels=3, rngs=nnx.Rngs(0))
    )
    params = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    return optax.tree.random_like(jax.random.key(0), params)
