"""Train one network as in the paper's Table 1, by any of its seven optimizers.

Roburin et al., "Spherical Perspective on Learning with Normalization Layers", 2020,
arXiv 2006.13382, Table 1: SGD, Adam, AdamW, AdamG, SGD-MRT, AdamS and AdamSRT with the
hyper-parameters that the paper tuned for each network and data set. The learning rate
starts at the tuned value and is divided by ten after epochs 135, 225 and 315 of 405;
with `--epochs` all of it shrinks in proportion. An epoch leaves out the images that
fill no batch. The weights that are best on the 5 % held out are tested. The reference
lists per-channel mean and standard deviation under the augmentation of CIFAR and none
for SVHN; here SVHN's images are standardised too (see `Network` in
`experiments/training/steps.py`).

    python -m experiments spherical_2020.train --data-dir DIR --dataset cifar10 \
        --model resnet20 --optimizer adamsrt --epochs 405

takes half a minute on two CPU cores with `--smoke`, which needs no files; a full run
has not been made yet. It is the general `train` otherwise: the same command again
resumes a run or prints the result of a finished one, whose folder is under
`runs/spherical_2020/`.

Published, test accuracy in percent: see `table1`, which prints it beside ours.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from experiments import data
from experiments.papers.spherical_2020 import protocol
from experiments.train import command
from experiments.training import preparation, ranges
from experiments.training.loop import Plan
from experiments.training.preparation import Prepared, TrainConfig

# Networks and data of a smoke run, which needs no files.
SMOKE_MODELS = {"resnet18": "resnet8", "resnet20": "resnet8", "vgg16": "vgg6"}
SMOKE_DATASET = "digits"
SMOKE_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class SphericalTrainConfig(TrainConfig):
    """Which cell of the table to train, and how: `train` with the paper's settings."""

    dataset: Literal["cifar10", "cifar100", "svhn"] = "cifar10"
    """The data set."""
    model: Literal["resnet18", "resnet20", "vgg16"] = "resnet20"
    """The network; resnet20 is for cifar10 alone."""
    optimizer: Literal[protocol.OPTIMIZERS] = "adamsrt"  # type: ignore[valid-type]
    """The optimizer, with what the paper tuned for it."""
    channel_axes: Literal["paper", "auto"] = "paper"
    """The blocks: one per output channel of every convolution, or what the loss tells;
    for the optimizers that have blocks."""
    learning_rate: tyro.conf.Suppress[None] = None
    epochs: int = protocol.EPOCHS
    """Passes over the training images; the steps of the rate keep their fractions."""
    batch_size: int = protocol.BATCH_SIZE
    """Images in a step."""
    log_every: int = 100
    """The most steps between two records in metrics.jsonl."""
    test_best: bool = True
    """Test the weights with the best validation accuracy after an epoch, not the last;
    the first of equally good ones."""
    runs_dir: Path = Path("runs/spherical_2020")
    """Where the run's folder goes."""
    smoke: bool = False
    """A small network of the same kind on scikit-learn's digits, for three epochs, with
    the hyper-parameters of the setting named."""


def main(args: Sequence[str]) -> None:
    """Train from the command line."""
    prog = "python -m experiments spherical_2020.train"
    config = tyro.cli(SphericalTrainConfig, args=args, prog=prog)
    command(config.devices, lambda: ask(config), fresh=config.fresh)


def prepare(
    config: SphericalTrainConfig,
    images: data.Dataset | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Check a configuration and load what it names, without writing anything.

    Args:
        config: what to train.
        images: in the place of those that `config` names, of the same kind.
        say: is told what takes long.

    Returns:
        What `experiments.train.train` takes.

    Raises:
        ValueError: an option is out of range, the paper has no such setting, or a data
            file is damaged.
        FileNotFoundError: a data file is missing.
        OSError: the folder of the run is damaged.
    """
    return preparation.complete(ask(config, images), say=say)


def ask(
    config: SphericalTrainConfig, images: data.Dataset | None = None
) -> preparation.Asked:
    """Check a configuration and name the folder of its run.

    Args:
        config: what to train.
        images: as of `prepare`.

    Returns:
        What `experiments.training.preparation.complete` takes.

    Raises:
        ValueError: an option is out of range, the paper has no such setting, or a data
            file is damaged.
        FileNotFoundError: a data file is missing.
    """
    # First of all: what the paper does not have needs no data.
    protocol.tuned(config.optimizer, config.dataset, config.model)
    ranges.check(config, epochs=1, batch_size=1, log_every=1, seed=0)
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(TrainConfig)
    }
    if config.smoke:
        model = SMOKE_MODELS[config.model]
        settings |= {"dataset": SMOKE_DATASET, "data_dir": None, "model": model}
        settings |= {"epochs": SMOKE_EPOCHS, "smoke": False}
    if images is None:
        images = data.load(settings["dataset"], settings["data_dir"])
    plan = Plan(
        len(images.train), config.batch_size, settings["epochs"], config.log_every
    )
    optimizer = protocol.optimizer(
        config.optimizer,
        config.dataset,
        config.model,
        plan.total_steps,
        find_axes=config.channel_axes == "auto",
    )
    return preparation.ask(
        TrainConfig(**{**settings, "optimizer": json.dumps(optimizer)}),
        images,
        optimizer_name=config.optimizer,
    )
