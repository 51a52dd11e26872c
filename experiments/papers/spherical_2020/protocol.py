"""The paper's protocol, tuned hyper-parameters and table, from `paper.json`.

Roburin et al., "Spherical Perspective on Learning with Normalization Layers", 2020,
arXiv 2006.13382. The baselines `sgd`, `adam` and `adamw` are torch's: decay is L2 in
the gradient for the first two, and times the learning rate, 0.01 unless given, for the
third. AdamG keeps the convolutions on the sphere, as its paper and this one mean it.
"""

import json
from pathlib import Path
from typing import Any

Config = dict[str, Any]

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())
OPTIMIZERS = tuple(PAPER["test_accuracy_percent_mean_std"])
COLUMNS = tuple(PAPER["test_accuracy_percent_mean_std"]["sgd"])
EPOCHS = PAPER["protocol"]["epochs"]
BATCH_SIZE = PAPER["protocol"]["batch_size"]

# The published script put AdamG's convolutions on its plain-Adam branch.
ADAMG_NOTE = (
    "adamg: the paper's numbers are those of a script whose flag was inverted, so that "
    "its convolutions were not on the sphere; here they are, as the paper means it"
)

# One block per output channel of every convolution, those of the shortcuts included;
# nothing else has blocks.
CHANNEL_AXES = {r"conv\d*/kernel$": [-1]}

_TORCH_ADAMW_DECAY = 0.01
# Where blocks of one element are all there is, the classic optimizer is left.
_CLASSIC = {"sgd": "sgdmrt", "adam": "adams"}


def steps(total_steps: int, init_value: float = 1.0) -> Config:
    """Return the paper's steps of the rate, at the same fractions of any run.

    Args:
        total_steps: of the run.
        init_value: what the first part has.

    Returns:
        The configuration of a schedule.

    Raises:
        ValueError: the run is too short to have all its parts.
    """
    protocol = PAPER["protocol"]
    fractions = [epoch / protocol["epochs"] for epoch in protocol["lr_step_epochs"]]
    bounds = [round(total_steps * fraction) for fraction in fractions]
    if not 0 < bounds[0] < bounds[1] < bounds[2] < total_steps:
        raise ValueError(
            f"{total_steps} steps are too few for the three steps of the learning "
            "rate; take more epochs"
        )
    return {
        "name": "piecewise_constant_schedule",
        "init_value": init_value,
        "boundaries_and_scales": {str(at): protocol["lr_factor"] for at in bounds},
    }


def tuned(name: str, dataset: str, model: str) -> Config:
    """Return the paper's hyper-parameters, in torch's words.

    Args:
        name: one of `OPTIMIZERS`.
        dataset: of the paper.
        model: of the paper.

    Raises:
        ValueError: the paper has no such setting.
    """
    try:
        return PAPER["hyperparameters"][dataset][model][name]
    except KeyError:
        raise ValueError(
            f"the paper has no {name} for {model} on {dataset}; it has "
            f"{', '.join(OPTIMIZERS)} for {', '.join(COLUMNS)}"
        ) from None


def optimizer(
    name: str, dataset: str, model: str, total_steps: int, *, find_axes: bool = False
) -> Config:
    """Return one of the paper's optimizers with what it tuned for a setting.

    Args:
        name: one of `OPTIMIZERS`.
        dataset: of the paper.
        model: of the paper.
        total_steps: of the run.
        find_axes: whether the channel axes are left out, to be found from the loss;
            else they follow the paper's rule.

    Returns:
        A configuration for `normopt.make`.
    """
    numbers = tuned(name, dataset, model)
    if name == "adamw":
        return _adamw(numbers, total_steps)
    config = {
        "name": _CLASSIC.get(name, name),
        "learning_rate": steps(total_steps, numbers["lr"]),
        "weight_decay": numbers["weight_decay"],
    }
    if "betas" in numbers:
        config["b1"], config["b2"] = numbers["betas"]
    else:
        config["momentum"] = numbers["momentum"]
    if name in _CLASSIC:
        return {**config, "channel_axes": None}
    return config if find_axes else {**config, "channel_axes": CHANNEL_AXES}


def _adamw(numbers: Config, total_steps: int) -> Config:
    decay = numbers.get("weight_decay", _TORCH_ADAMW_DECAY)
    b1, b2 = numbers["betas"]
    return {
        "name": "adamw",
        "learning_rate": numbers["lr"],
        "b1": b1,
        "b2": b2,
        # Times the rate, and with the steps of the rate: the decay of torch's AdamW.
        "weight_decay": numbers["lr"] * decay,
        "schedule": steps(total_steps),
    }
