"""The optimizers whose equilibria are measured, for noise and for a network.

Each is a configuration of a learning rate, a decay and the channel axes; the numbers
come to a decay of about 0.002 a step, so that a block forgets within 500.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Config = dict[str, Any]
MOMENTUM = 0.9
_BETAS = {"b1": MOMENTUM, "b2": 0.99}


class Numbers(NamedTuple):
    """What an optimizer is given."""

    rate: float
    decay: float


class Arm(NamedTuple):
    """An optimizer.

    Attributes:
        build: from rate, decay and channel axes, the last two per leaf, to its
            configuration.
        noise: its numbers for blocks of about a hundred elements.
        power: the decay that leaves the angle as it is goes as the rate to minus this.
        network: its numbers for a network; None: it does not train one.
    """

    build: Callable[[Any, Any, Any], Config]
    noise: Numbers
    power: int
    network: Numbers | None = None


def chain(*links: Config) -> Config:
    """Return the configuration of links, one after another."""
    return {"name": "chain", "links": list(links)}


def scale(rate: Any) -> Config:
    """Return the link of a learning rate."""
    return {"name": "scale_by_learning_rate", "learning_rate": rate}


def _adamw(rate: Any, decay: Any, axes: Any) -> Config:
    del axes
    return {"name": "adamw", "learning_rate": rate, "weight_decay": decay, **_BETAS}


def _adam(rate: Any, decay: Any, axes: Any) -> Config:
    del axes
    l2 = {"name": "add_decay", "weight_decay": decay}
    return chain(l2, {"name": "scale_by_adam", **_BETAS}, scale(rate))


def _sgd(rate: Any, decay: Any, axes: Any) -> Config:
    del axes
    l2 = {"name": "add_decay", "weight_decay": decay}
    return chain(l2, {"name": "trace", "decay": MOMENTUM}, scale(rate))


def _sgdw(rate: Any, decay: Any, axes: Any) -> Config:
    del axes
    numbers = {"learning_rate": rate, "weight_decay": decay}
    return {"name": "sgdw", "momentum": MOMENTUM, **numbers}


def _sgdmrt(rate: Any, decay: Any, axes: Any) -> Config:
    return _sgdw(rate, decay, axes) | {"name": "sgdmrt", "channel_axes": axes}


def _lion(rate: Any, decay: Any, axes: Any) -> Config:
    del axes
    pull = {"name": "decay_weights", "weight_decay": decay}
    lion = {"name": "scale_by_lion", "b1": 0.9, "b2": 0.95}
    return chain(lion, scale(rate), pull)


def _named(name: str) -> Callable[[Any, Any, Any], Config]:
    return lambda rate, decay, axes: (
        _adamw(rate, decay, axes) | {"name": name, "channel_axes": axes}
    )


# The rates of networks follow from He's initial lengths: blocks shall stay about as
# long as they begin. With L2 in Adam's gradient that needs the size of the gradients,
# which was seen in a short run of AdamW with another seed.
ARMS = {
    "AdamW": Arm(_adamw, Numbers(0.01, 0.002), 0, Numbers(0.005, 0.002)),
    "Adam, L2": Arm(_adam, Numbers(0.01, 0.1), 2, Numbers(0.005, 0.002)),
    "AdamS": Arm(_named("adams"), Numbers(0.01, 0.1), 2),
    "AdamSRT": Arm(_named("adamsrt"), Numbers(0.02, 1.2), 2, Numbers(0.02, 0.005)),
    "SGD, L2": Arm(_sgd, Numbers(0.1, 0.002), 1, Numbers(0.1, 0.002)),
    "SGDW": Arm(_sgdw, Numbers(0.1, 0.002), 0),
    "SGD-MRT": Arm(_sgdmrt, Numbers(0.1, 0.02), 1),
    "NovoGrad": Arm(_named("novograd"), Numbers(0.01, 0.02), 1, Numbers(0.03, 0.0065)),
    "Lion": Arm(_lion, Numbers(0.001, 0.002), 0, Numbers(0.00075, 0.002)),
}
TRAINED = tuple(name for name, arm in ARMS.items() if arm.network)
