"""From the settings of a training run to all that it needs, checked."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import normopt
from experiments import axes, data, optimizers
from experiments.augment import AUGMENTATIONS
from experiments.loop import Job, Loop, Plan
from experiments.models import MODELS
from experiments.placement import PlacementConfig
from experiments.runs import Run
from experiments.selection import keep_best
from experiments.skipping import skip_nonfinite
from experiments.steps import (
    Network,
    TrainState,
    arrays_of,
    compiled_quickly,
    initial_state,
    network_of,
)

# What a smoke run trains, which needs no files.
SMOKE = {"dataset": "digits", "data_dir": None, "model": "resnet8", "epochs": 1}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how."""

    dataset: Literal[data.names()] = "digits"  # type: ignore[valid-type]
    """The data set; `digits` comes with scikit-learn."""
    data_dir: Path | None = None
    """The folder with the data set's official files, or its parent."""
    model: Literal[tuple(MODELS)] = "resnet20"  # type: ignore[valid-type]
    """The model."""
    optimizer: str = "adamsrt"
    """A name, a JSON configuration or a .json file, as `normopt.make` takes it; where
    `channel_axes` is left out and null by default, the loss tells which they are."""
    learning_rate: float | None = None
    """Where the cosine decay starts, if the optimizer has no learning rate itself; left
    out, it depends on the optimizer."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a step."""
    seed: int = 0
    """For the initial weights, the order of the images and the augmentation."""
    log_every: int = 50
    """The most steps between two records in metrics.jsonl."""
    skip_nonfinite: bool = False
    """Leave out a step whose loss or gradient is not finite, instead of stopping."""
    test_best: bool = False
    """Test the weights with the best validation accuracy after an epoch, not the last;
    the first of equally good ones."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; weights, optimizer state and batch statistics are
    float32 either way."""
    devices: Annotated[PlacementConfig, tyro.conf.OmitArgPrefixes] = PlacementConfig()
    """Which devices train."""
    runs_dir: Path = Path("runs")
    """Where the run's folder goes."""
    fresh: bool = False
    """Train again, though the run is finished or under way."""
    smoke: bool = False
    """A ResNet-8 on the digits for one epoch, whatever model, data and epochs are."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that has been checked and of which nothing is written yet.

    Attributes:
        run: the folder that it will have.
        loop: what trains and evaluates.
        plan: its length.
        data: the images.
        state: where it begins.
        table: what each parameter will get from the optimizer, one line each.
    """

    run: Run
    loop: Loop
    plan: Plan
    data: data.Dataset
    state: TrainState
    table: str


def prepare(
    config: TrainConfig,
    images: data.Dataset | None = None,
    *,
    optimizer_name: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Check a configuration and load what it names, without writing anything.

    Args:
        config: what to train.
        images: in the place of those that `config.dataset` names, of the same kind:
            a part of them, or other splits.
        optimizer_name: what the folder and messages call the optimizer, if not as its
            configuration does.
        say: is told what takes long.

    Returns:
        What `train` takes.

    Raises:
        ValueError: an option is out of range, or a data file is damaged.
        FileNotFoundError: a data file is missing.
    """
    _check_numbers(config)
    if config.smoke:
        config = dataclasses.replace(config, **SMOKE)
    if images is None:
        images = data.load(config.dataset, config.data_dir)
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    placement = config.devices.placement(dtype)
    _check_batch_size(config.batch_size, len(images.train), placement.devices)
    plan = Plan(len(images.train), config.batch_size, config.epochs, config.log_every)
    requested = optimizers.read(
        config.optimizer, config.learning_rate, plan.total_steps
    )
    network = _network(config.model, images)
    params, model_state = initial_weights(config.model, images, config.seed)

    def find_axes() -> dict[str, Any]:
        say("looking for the weights whose length the loss ignores")
        return axes.find(network, params, model_state, images.train)

    optimizer_config = optimizers.complete(requested, find_axes)
    optimizer = normopt.make(**optimizer_config)
    name = optimizer_name or optimizer_config["name"]
    if config.skip_nonfinite:
        optimizer = skip_nonfinite(optimizer)
    # The axes are found before, from losses that are not rounded to eight bits.
    if dtype is not None:
        network = _network(config.model, images, dtype)
    loop = Loop(
        Job(
            network=network,
            optimizer=optimizer,
            optimizer_name=name,
            schedule=optimizers.schedule_of(optimizer_config),
            data=images,
            augmentation=AUGMENTATIONS[config.dataset],
            plan=plan,
            seed=config.seed,
            scan=jax.default_backend() != "cpu",
            placement=placement,
        )
    )
    state = initial_state(params, model_state, optimizer)
    if config.test_best:
        state = keep_best(state)
    state = placement.put_state(state, optimizer)
    loop.check(state)
    run = _run(config, images, name, optimizer_config)
    table = normopt.describe(params, **optimizers.described(optimizer_config))
    table += optimizers.coupled_decay(optimizer_config)
    return Prepared(run, loop, plan, images, state, table)


def initial_weights(model: str, images: data.Dataset, seed: int) -> tuple[Any, Any]:
    """Return the parameters and the other state that a model begins with.

    Args:
        model: its name.
        images: whose classes and channels it is for.
        seed: of the weights.
    """
    return _initialiser(MODELS[model], *_shape(images))(jax.random.key(seed))


def _check_numbers(config: TrainConfig) -> None:
    for name, low in (("epochs", 1), ("batch_size", 1), ("log_every", 1), ("seed", 0)):
        if getattr(config, name) < low:
            raise ValueError(f"`{name}` must be >= {low}, got {getattr(config, name)}")


def _check_batch_size(batch_size: int, images: int, devices: int) -> None:
    if batch_size > images:
        raise ValueError(
            f"`batch_size` must be at most the {images} training images, "
            f"got {batch_size}"
        )
    if batch_size % devices:
        raise ValueError(
            f"`batch_size` must be a multiple of the {devices} devices of "
            f"the mesh, got {batch_size}"
        )


def _run(
    config: TrainConfig,
    images: data.Dataset,
    name: str,
    optimizer_config: dict[str, Any],
) -> Run:
    """Name the run's folder after all that its numbers depend on."""
    settings: dict[str, Any] = {
        "dataset": config.dataset,
        "data": images.fingerprint(),
        "model": config.model,
        "optimizer": optimizer_config,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "log_every": config.log_every,
    }
    # Named only where it is chosen, so that all other folders keep their names.
    if config.skip_nonfinite:
        settings["skip_nonfinite"] = True
    if config.test_best:
        settings["test_best"] = True
    if config.dtype != "float32":
        settings["dtype"] = config.dtype
    folder = f"{config.dataset}-{config.model}-{name}"
    return Run(config.runs_dir, folder, settings)


def _network(model: str, images: data.Dataset, dtype: Any = None) -> Network:
    build = _builder(MODELS[model], *_shape(images))
    key = jax.random.key(0)  # of arrays that are never made
    return network_of(lambda: build(key), images.mean, images.std, dtype)


@functools.cache
def _initialiser(
    model: Callable[..., nnx.Module], num_classes: int, channels: int
) -> Callable[[jax.Array], tuple[Any, Any]]:
    """Compile initial weights once for all seeds."""
    build = _builder(model, num_classes, channels)
    return compiled_quickly(lambda key: arrays_of(lambda: build(key)))


def _builder(
    model: Callable[..., nnx.Module], num_classes: int, channels: int
) -> Callable[[jax.Array], nnx.Module]:
    return lambda key: model(
        num_classes=num_classes, channels=channels, rngs=nnx.Rngs(key)
    )


def _shape(images: data.Dataset) -> tuple[int, int]:
    return images.num_classes, images.train.images.shape[-1]
