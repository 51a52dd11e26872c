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
from typing import Annotated, Literal

import tyro

from experiments import data
from experiments.papers.spherical_2020 import protocol
from experiments.train import command
from experiments.training import preparation
from experiments.training.loop import Plan
from experiments.training.measuring import check_least
from experiments.training.placement import PlacementConfig
from experiments.training.preparation import Prepared, TrainConfig

# Networks and data of a smoke run, which needs no files.
SMOKE_MODELS = {"resnet18": "resnet8", "resnet20": "resnet8", "vgg16": "vgg6"}
SMOKE_DATASET = "digits"
SMOKE_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class SphericalTrainConfig:
    """Which cell of the table to train, and how."""

    dataset: Literal["cifar10", "cifar100", "svhn"] = "cifar10"
    """The data set."""
    model: Literal["resnet18", "resnet20", "vgg16"] = "resnet20"
    """The network; resnet20 is for cifar10 alone."""
    optimizer: Literal[protocol.OPTIMIZERS] = "adamsrt"  # type: ignore[valid-type]
    """The optimizer, with what the paper tuned for it."""
    data_dir: Path | None = None
    """The folder with the data set's official files, or its parent."""
    channel_axes: Literal["paper", "auto"] = "paper"
    """The blocks: one per output channel of every convolution, or what the loss tells;
    for the optimizers that have blocks."""
    epochs: int = protocol.EPOCHS
    """Passes over the training images; the steps of the rate keep their fractions."""
    seed: int = 0
    """For the initial weights, the order of the images and the augmentation."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in."""
    devices: Annotated[PlacementConfig, tyro.conf.OmitArgPrefixes] = PlacementConfig()
    """Which devices train."""
    log_every: int = 100
    """The most steps between two records in metrics.jsonl."""
    skip_nonfinite: bool = False
    """Leave out a step whose loss or gradient is not finite, instead of stopping."""
    runs_dir: Path = Path("runs/spherical_2020")
    """Where the run's folder goes."""
    fresh: bool = False
    """Train again, though the run is finished or under way."""
    smoke: bool = False
    """A small network of the same kind on scikit-learn's digits, for three epochs, with
    the hyper-parameters of the setting named."""


def main(args: Sequence[str]) -> None:
    """Train from the command line."""
    prog = "python -m experiments spherical_2020.train"
    config = tyro.cli(SphericalTrainConfig, args=args, prog=prog)
    check_least(config, epochs=1, seed=0, log_every=1)
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
    dataset, model, epochs = config.dataset, config.model, config.epochs
    if config.smoke:
        dataset, model, epochs = SMOKE_DATASET, SMOKE_MODELS[model], SMOKE_EPOCHS
    if images is None:
        images = data.load(dataset, None if config.smoke else config.data_dir)
    plan = Plan(len(images.train), protocol.BATCH_SIZE, epochs, config.log_every)
    optimizer = protocol.optimizer(
        config.optimizer,
        config.dataset,
        config.model,
        plan.total_steps,
        find_axes=config.channel_axes == "auto",
    )
    return preparation.ask(
        TrainConfig(
            dataset=dataset,
            model=model,
            optimizer=json.dumps(optimizer),
            epochs=epochs,
            batch_size=protocol.BATCH_SIZE,
            seed=config.seed,
            log_every=config.log_every,
            skip_nonfinite=config.skip_nonfinite,
            test_best=True,
            dtype=config.dtype,
            devices=config.devices,
            runs_dir=config.runs_dir,
            fresh=config.fresh,
        ),
        images,
        optimizer_name=config.optimizer,
    )
