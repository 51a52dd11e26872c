"""From the settings of a training run to all that it needs, checked."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import normopt
from experiments import data
from experiments.data.augment import AUGMENTATIONS
from experiments.models import LANGUAGE_MODELS, MODELS
from experiments.training import axes, board, observing, optimizers, ranges
from experiments.training.loop import Job, Loop, Plan
from experiments.training.placement import Placement, PlacementConfig
from experiments.training.runs import Run
from experiments.training.selection import keep_best
from experiments.training.skipping import skip_nonfinite
from experiments.training.steps import (
    Network,
    TrainState,
    arrays_of,
    compiled_quickly,
    initial_state,
    network_of,
    scans,
)

# What a smoke run trains, which needs no files.
SMOKE = {"dataset": "digits", "data_dir": None, "model": "resnet8", "epochs": 1}
SMOKE_OF_A_TEXT = {**SMOKE, "dataset": "stdlib", "model": "nano"}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how."""

    dataset: Literal[data.names()] = "digits"  # type: ignore[valid-type]
    """The data set; `digits` comes with scikit-learn, `stdlib`, a text, with Python."""
    data_dir: Path | None = None
    """The folder with the data set's official files, or its parent."""
    model: Literal[(*MODELS, *LANGUAGE_MODELS)] = "resnet20"  # type: ignore[valid-type]
    """The model; for `stdlib` it is `nano`, `micro` or `small`, a transformer."""
    optimizer: str = "adamsrt"
    """A name, a JSON configuration or a .json file, as `normopt.make` takes it; where
    `channel_axes` is left out and null by default, the loss tells which they are. Where
    nothing else is named, what it wraps is SGD, or Adam if the wrapper has a learning
    rate, too, and what takes the `rest` of Muon's leaves is Adam."""
    learning_rate: float | None = None
    """Where the cosine decay starts, if the optimizer has no learning rate itself; left
    out, it depends on the optimizer."""
    epochs: int = 30
    """Passes over the training images; of a text, over its stretches of 4,096 bytes,
    out of which each takes 128 at a random place."""
    batch_size: int = 64
    """Images, or stretches, in a step."""
    seed: int = 0
    """For the initial weights, the order of the images and the augmentation."""
    log_every: int = 50
    """The most steps between two records in metrics.jsonl."""
    skip_nonfinite: bool = False
    """Leave out a step whose loss or gradient is not finite, instead of stopping."""
    test_best: bool = False
    """Test the weights with the best validation accuracy after an epoch, or of a text
    the fewest bits per byte, not the last; the first of equally good ones."""
    observe: bool = False
    """Write to metrics.jsonl how long gradients, weights and steps of each layer are
    and how far they turn; draw it at the end, beside what they should come to."""
    tensorboard: bool = False
    """Write the records for TensorBoard, too; needs tensorboardX."""
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
    """A ResNet-8 on the digits for one epoch, whatever model, data and epochs are; for
    `stdlib`, a nano on that."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A run as it was asked for, of which all is checked that takes no search.

    Attributes:
        config: its settings.
        run: the folder that it will have.
        plan: its length.
        data: the examples.
        optimizer: its configuration, perhaps without axes.
        optimizer_name: what the folder and messages call it.
        placement: the devices.
    """

    config: TrainConfig
    run: Run
    plan: Plan
    data: data.Data
    optimizer: optimizers.Config
    optimizer_name: str
    placement: Placement


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that has been checked and of which nothing is written yet.

    Attributes:
        run: the folder that it will have.
        loop: what trains and evaluates.
        plan: its length.
        data: the examples.
        state: where it begins.
        table: what each parameter will get from the optimizer, one line each.
        found_axes: the channel axes, where nobody named them.
        tensorboard: whether the records are written for TensorBoard, too.
    """

    run: Run
    loop: Loop
    plan: Plan
    data: data.Data
    state: TrainState
    table: str
    found_axes: dict[str, Any] | None = None
    tensorboard: bool = False


def prepare(
    config: TrainConfig,
    images: data.Data | None = None,
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
        OSError: the folder of the run is damaged.
    """
    return complete(ask(config, images, optimizer_name=optimizer_name), say=say)


def ask(
    config: TrainConfig,
    images: data.Data | None = None,
    *,
    optimizer_name: str | None = None,
) -> Asked:
    """Check a configuration and name the folder of its run, in a second or two.

    Args:
        config: what to train.
        images: as of `prepare`.
        optimizer_name: as of `prepare`.

    Returns:
        What `complete` takes.

    Raises:
        ValueError: an option is out of range, or a data file is damaged.
        FileNotFoundError: a data file is missing.
        OSError: the folder of the run was begun with other data.
    """
    ranges.check(config, epochs=1, batch_size=1, log_every=1, seed=0)
    if config.tensorboard:
        board.check()
    if config.smoke:
        is_text = config.dataset == SMOKE_OF_A_TEXT["dataset"]
        config = dataclasses.replace(config, **(SMOKE_OF_A_TEXT if is_text else SMOKE))
    if images is None:
        images = data.load(config.dataset, config.data_dir)
    _check_model(config, images)
    placement = config.devices.placement(_dtype(config))
    _check_batch_size(config.batch_size, images, placement.devices)
    plan = Plan(len(images.train), config.batch_size, config.epochs, config.log_every)
    if plan.total_steps > ranges.MOST:
        raise ValueError(
            f"`epochs` must make at most {ranges.MOST} steps, got {config.epochs} of "
            f"{plan.steps_per_epoch} steps each"
        )
    optimizer = optimizers.read(
        config.optimizer, config.learning_rate, plan.total_steps
    )
    name = optimizer_name or optimizer["name"]
    run = _run(config, images, name, optimizer, normopt.config(**optimizer))
    if not config.fresh:
        run.check_data()
    return Asked(config, run, plan, images, optimizer, name, placement)


def complete(
    asked: Asked, *, say: Callable[[str], None] = lambda line: None
) -> Prepared:
    """Make all that a run needs, without writing anything.

    The channel axes that nobody named are those that an earlier start of the run has
    found; before it they are looked for.

    Args:
        asked: what `ask` returned.
        say: is told what takes long.

    Returns:
        What `train` takes.

    Raises:
        ValueError: an option does not fit the network.
        OSError: the folder of the run is damaged.
    """
    config, images, found = asked.config, asked.data, None
    network = network_for(config.model, images)
    params, model_state = initial_weights(config.model, images, config.seed)

    def find_axes() -> dict[str, Any]:
        nonlocal found
        found = None if config.fresh else asked.run.found_axes()
        if found is None:
            say("looking for the weights whose length the loss ignores")
            found = axes.find(network, params, model_state, images)
        return found

    optimizer_config = optimizers.complete(asked.optimizer, find_axes)
    name = asked.optimizer_name
    run = _run(config, images, name, asked.optimizer, optimizer_config)
    if found is not None and not config.fresh:
        run.check_config()
    optimizer = normopt.make(**optimizer_config)
    if config.observe:
        optimizer = observing.observed(optimizer, optimizer_config)
    if config.skip_nonfinite:
        optimizer = skip_nonfinite(optimizer)
    # The axes are found before, from losses that are not rounded to eight bits.
    dtype = _dtype(config)
    if dtype is not None:
        network = network_for(config.model, images, dtype)
    loop = Loop(
        Job(
            network=network,
            optimizer=optimizer,
            optimizer_name=name,
            schedule=optimizers.schedule_of(optimizer_config),
            data=images,
            augmentation=AUGMENTATIONS[config.dataset],
            plan=asked.plan,
            seed=config.seed,
            scan=scans(),
            placement=asked.placement,
            observes=config.observe,
        )
    )
    state = initial_state(params, model_state, optimizer)
    if config.test_best:
        state = keep_best(state)
    state = asked.placement.put_state(state, optimizer)
    loop.check(state)
    table = normopt.describe(params, optimizer_config)
    return Prepared(
        run, loop, asked.plan, images, state, table, found, config.tensorboard
    )


def initial_weights(model: str, images: data.Data, seed: int) -> tuple[Any, Any]:
    """Return the parameters and the other state that a model begins with.

    Args:
        model: its name.
        images: that it is for.
        seed: of the weights.
    """
    arguments = tuple(images.model_arguments.items())
    return _initialiser(_models(images)[model], arguments)(jax.random.key(seed))


def network_for(model: str, images: data.Data, dtype: Any = None) -> Network:
    """Return the functions of a model, without an optimizer.

    Args:
        model: its name.
        images: that it is for, standardised before it.
        dtype: what it computes in; None for that of the weights.
    """
    build = _builder(_models(images)[model], images.model_arguments)
    key = jax.random.key(0)  # of arrays that are never made
    return network_of(lambda: build(key), images.mean, images.std, dtype)


def _dtype(config: TrainConfig) -> Any:
    return None if config.dtype == "float32" else jnp.dtype(config.dtype)


def _check_model(config: TrainConfig, images: data.Data) -> None:
    fitting = _models(images)
    if config.model not in fitting:
        raise ValueError(
            f"`model` must be one of {', '.join(fitting)} for the data set "
            f"{config.dataset!r}, got {config.model!r}"
        )


def _models(images: data.Data) -> dict[str, Callable[..., nnx.Module]]:
    return LANGUAGE_MODELS if isinstance(images, data.TextDataset) else MODELS


def _check_batch_size(batch_size: int, images: data.Data, devices: int) -> None:
    if batch_size > len(images.train):
        raise ValueError(
            f"`batch_size` must be at most the {len(images.train)} training "
            f"{images.examples}, got {batch_size}"
        )
    if batch_size % devices:
        raise ValueError(
            f"`batch_size` must be a multiple of the {devices} devices of "
            f"the mesh, got {batch_size}"
        )


def _run(
    config: TrainConfig,
    images: data.Data,
    name: str,
    requested: optimizers.Config,
    optimizer_config: optimizers.Config,
) -> Run:
    """Name the run's folder after all that its numbers depend on.

    Axes that are found follow from the rest: in the name it stands who asks for them.
    """
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
    if config.observe:
        settings["observe"] = True
    if config.dtype != "float32":
        settings["dtype"] = config.dtype
    asked = {**settings, "data": images.names_runs}
    asked["optimizer"] = normopt.config(**requested)
    if searching := optimizers.without_axes(requested):
        asked["axes_found_for"] = searching
    folder = f"{config.dataset}-{config.model}-{name}"
    return Run(config.runs_dir, folder, settings, asked)


@functools.cache
def _initialiser(
    model: Callable[..., nnx.Module], arguments: tuple[tuple[str, int], ...]
) -> Callable[[jax.Array], tuple[Any, Any]]:
    """Compile initial weights once for all seeds."""
    build = _builder(model, dict(arguments))
    return compiled_quickly(lambda key: arrays_of(lambda: build(key)))


def _builder(
    model: Callable[..., nnx.Module], arguments: Mapping[str, int]
) -> Callable[[jax.Array], nnx.Module]:
    return lambda key: model(**arguments, rngs=nnx.Rngs(key))
