"""Train a model on real data with a normopt optimizer: the main job.

    python -m experiments train

takes 70 seconds on two CPU cores for a ResNet-20 on handwritten digits with AdamSRT and
98 % test accuracy. The channel axes of an optimizer that has none unless told are found
from the loss; a table shows first what each parameter will get. The run's folder under
`runs/` gets `metrics.jsonl`, `config.json`, `provenance.json`, `learning_curve.png` and
checkpoints; the same command again resumes an unfinished run.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from flax import nnx
from rich.console import Console

import normopt
from experiments import axes, data, devices, figures, optimizers
from experiments.augment import AUGMENTATIONS
from experiments.checkpoints import Checkpoints
from experiments.loop import Job, Loop, Plan, TrainingDiverged
from experiments.models import MODELS
from experiments.progress import TrainingProgress
from experiments.runs import Run, append_record, read_records
from experiments.skipping import skip_nonfinite
from experiments.steps import TrainState, create, initial_state


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
    runs_dir: Path = Path("runs")
    """Where the run's folder goes."""
    fresh: bool = False
    """Train again, though the run is finished or under way."""


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


def main(args: Sequence[str]) -> None:
    """Train from the command line."""
    config = tyro.cli(TrainConfig, args=args, prog="python -m experiments train")
    console = Console()
    console.print(devices.describe(), markup=False, highlight=False, soft_wrap=True)
    try:
        prepared = prepare(config)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    _say(console, prepared.table)
    try:
        train(prepared, fresh=config.fresh, console=console)
    except (OSError, TrainingDiverged) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")


def prepare(config: TrainConfig, images: data.Dataset | None = None) -> Prepared:
    """Check a configuration and load what it names, without writing anything.

    Args:
        config: what to train.
        images: in the place of those that `config.dataset` names, of the same kind:
            a part of them, or other splits.

    Returns:
        What `train` takes.

    Raises:
        ValueError: an option is out of range, or a data file is damaged.
        FileNotFoundError: a data file is missing.
    """
    for name, low in (("epochs", 1), ("batch_size", 1), ("log_every", 1), ("seed", 0)):
        if getattr(config, name) < low:
            raise ValueError(f"`{name}` must be >= {low}, got {getattr(config, name)}")
    if images is None:
        images = data.load(config.dataset, config.data_dir)
    if config.batch_size > len(images.train):
        raise ValueError(
            f"`batch_size` must be at most the {len(images.train)} training images, "
            f"got {config.batch_size}"
        )
    plan = Plan(len(images.train), config.batch_size, config.epochs, config.log_every)
    requested = optimizers.read(
        config.optimizer, config.learning_rate, plan.total_steps
    )
    network, params, model_state = create(
        lambda: MODELS[config.model](
            num_classes=images.num_classes,
            channels=images.train.images.shape[-1],
            rngs=nnx.Rngs(config.seed),
        ),
        images.mean,
        images.std,
    )
    optimizer_config = optimizers.complete(
        requested, lambda: axes.find(network, params, model_state, images.train)
    )
    optimizer = normopt.make(**optimizer_config)
    # Named only where it is chosen, so that all other folders keep their names.
    chosen = {}
    if config.skip_nonfinite:
        optimizer = skip_nonfinite(optimizer)
        chosen["skip_nonfinite"] = True
    loop = Loop(
        Job(
            network=network,
            optimizer=optimizer,
            optimizer_name=optimizer_config["name"],
            schedule=optimizers.schedule_of(optimizer_config),
            data=images,
            augmentation=AUGMENTATIONS[config.dataset],
            plan=plan,
            seed=config.seed,
            scan=jax.default_backend() != "cpu",
        )
    )
    state = initial_state(params, model_state, optimizer)
    loop.check(state)
    run = Run(
        config.runs_dir,
        f"{config.dataset}-{config.model}-{optimizer_config['name']}",
        {
            "dataset": config.dataset,
            "data": images.fingerprint(),
            "model": config.model,
            "optimizer": optimizer_config,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "log_every": config.log_every,
            **chosen,
        },
    )
    table = normopt.describe(params, **optimizers.described(optimizer_config))
    return Prepared(run, loop, plan, images, state, table)


def train(prepared: Prepared, *, fresh: bool, console: Console) -> dict[str, Any]:
    """Train to the end, from the start or from where an earlier run stopped.

    Args:
        prepared: what `prepare` returned.
        fresh: remove what an earlier run wrote.
        console: where progress goes; the last line is the test accuracy.

    Returns:
        What stands in `result.json`.

    Raises:
        TrainingDiverged: the loss or a weight is not finite.
        OSError: a file cannot be written, or no checkpoint can be read.
    """
    run, loop, total = prepared.run, prepared.loop, prepared.plan.total_steps
    if fresh:
        run.remove()
    if (result := run.result()) is not None:
        _say(console, f"{run.folder} is finished; --fresh trains again")
        _say_result(console, result)
        return result
    run.open()
    began = time.perf_counter()
    with Checkpoints(run.checkpoints_folder) as checkpoints:
        restored = checkpoints.restore(prepared.state)
        state = prepared.state if restored is None else restored
        done = int(state.step)
        run.cut_metrics(done)
        verb = f"resuming after step {done} of" if done else "training into"
        _say(console, f"{verb} {run.folder}")
        with TrainingProgress(console, total, done) as progress:
            state = loop.run(state, run, checkpoints, progress)
    test = loop.evaluate(state, prepared.data.test)
    records = read_records(run.metrics_file)
    last = records[-1]
    result = {
        "test_accuracy": test["accuracy"],
        "test_correct": test["correct"],
        "test_images": test["images"],
        "test_loss": test["loss"],
        "validation_accuracy": last["validation_accuracy"],
        "train_accuracy": last["train_accuracy"],
        "steps": total,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    if "skipped" in last:
        result["skipped"] = last["skipped"]
    name = run.folder.name.rpartition("-")[0]
    figures.learning_curve(run.figure_file, records, f"{name}: {_summary(result)}")
    seconds = round(time.perf_counter() - began, 3)
    append_record(run.timing_file, {"step": total, "seconds": seconds})
    run.finish(result)
    _say(console, f"wrote {run.folder} in {seconds:.1f} s")
    _say_result(console, result)
    return result


def _say_result(console: Console, result: dict[str, Any]) -> None:
    if "skipped" in result:
        _say(
            console,
            f"skipped {result['skipped']} of {result['steps']} steps, where the loss "
            "or a gradient was not finite",
        )
    _say(console, _summary(result))


def _summary(result: dict[str, Any]) -> str:
    return (
        f"test accuracy {result['test_accuracy']:.2%} "
        f"({result['test_correct']} of {result['test_images']})"
    )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
