"""Train a model on real data with a normopt optimizer: the main job.

    python -m experiments train

takes 70 seconds on two CPU cores for a ResNet-20 on handwritten digits with AdamSRT and
98 % test accuracy. The channel axes of an optimizer that has none unless told are found
from the loss; a table shows first what each parameter will get. The run's folder under
`runs/` gets `metrics.jsonl`, `config.json`, `provenance.json`, `learning_curve.png` and
checkpoints; the same command again resumes an unfinished run. `--smoke` trains a small
network for one epoch.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import tyro
from rich.console import Console

from experiments import devices, figures, processes
from experiments.checkpoints import Checkpoints
from experiments.loop import TrainingDiverged
from experiments.placement import PlacementConfig
from experiments.preparation import Prepared, TrainConfig, prepare
from experiments.progress import TrainingProgress
from experiments.runs import append_record, read_records
from experiments.selection import chosen


def main(args: Sequence[str]) -> None:
    """Train from the command line."""
    config = tyro.cli(TrainConfig, args=args, prog="python -m experiments train")
    command(config.devices, lambda say: prepare(config, say=say), fresh=config.fresh)


def command(
    where: PlacementConfig,
    prepare: Callable[[Callable[[str], None]], Prepared],
    *,
    fresh: bool,
) -> None:
    """Train as a command does: say what on, and end an error with a line.

    Args:
        where: the devices, of which other processes may have some.
        prepare: gives what `train` takes, or raises what is wrong with the settings; is
            given what prints a line.
        fresh: remove what an earlier run wrote.
    """
    try:
        where.initialize()
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"error: --distributed: {error}; where no cluster tells, it needs "
            "--coordinator-address, --num-processes and --process-id"
        )
    console = Console(quiet=not processes.is_first())
    _say(console, devices.describe())
    with processes.failing_at_once():
        try:
            prepared = prepare(functools.partial(_say, console))
        except (OSError, TypeError, ValueError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted before the first step")
        _say(console, prepared.table)
        try:
            train(prepared, fresh=fresh, console=console)
        except (OSError, TrainingDiverged) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from the last checkpoint")


def train(prepared: Prepared, *, fresh: bool, console: Console) -> dict[str, Any]:
    """Train to the end, from the start or from where an earlier run stopped.

    Args:
        prepared: what `prepare` returned.
        fresh: remove what an earlier run wrote.
        console: where progress goes; the last line is the test accuracy.

    Returns:
        What stands in `result.json`; of several processes the first one alone knows.

    Raises:
        TrainingDiverged: the loss or a weight is not finite.
        OSError: a file cannot be written, or no checkpoint can be read.
    """
    run, loop, total = prepared.run, prepared.loop, prepared.plan.total_steps
    if fresh:
        run.remove()
    if processes.first_says(run.is_finished):
        result = run.result()
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
        images = prepared.plan.batch_size
        with TrainingProgress(console, total, done, images) as progress:
            state = loop.run(state, run, checkpoints, progress)
    test = loop.evaluate(state, prepared.data.test)
    if not processes.is_first():
        return {}
    records = read_records(run.metrics_file)
    step = int(chosen(state).step)
    (ours,) = [record for record in records if record["step"] == step]
    result = {
        "test_accuracy": test["accuracy"],
        "test_correct": test["correct"],
        "test_images": test["images"],
        "test_loss": test["loss"],
        "validation_accuracy": ours["validation_accuracy"],
        "train_accuracy": ours["train_accuracy"],
        "tested": "the last weights"
        if state.best is None
        else "the best on validation",
        "tested_step": step,
        "steps": total,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    if "skipped" in records[-1]:
        result["skipped"] = records[-1]["skipped"]
    name = run.folder.name.rpartition("-")[0]
    figures.learning_curve(run.figure_file, records, f"{name}: {_summary(result)}")
    seconds = round(time.perf_counter() - began, 3)
    append_record(run.timing_file, {"step": total, "seconds": seconds})
    run.finish(result)
    speed = progress.images_per_second()
    rate = "" if speed is None else f", {speed:,.0f} images/s"
    _say(console, f"wrote {run.folder} in {seconds:.1f} s{rate}")
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
        f"({result['test_correct']} of {result['test_images']}), {result['tested']}, "
        f"after step {result['tested_step']} of {result['steps']}"
    )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
