"""Train a model on real data with a normopt optimizer: the main job.

    python -m experiments train

takes 70 seconds on two CPU cores for a ResNet-20 on handwritten digits with AdamSRT and
98 % test accuracy. The channel axes of an optimizer that has none unless told are found
from the loss; a table shows first what each parameter will get. The run's folder under
`runs/` gets `metrics.jsonl`, `config.json`, `provenance.json`, `learning_curve.png`,
checkpoints and, where axes were found, `axes.json`; with `--observe` also `blocks.png`,
what the blocks of each layer did. The same command again resumes an unfinished run, and
says at once what a finished one gave; while one command trains there, another one
stops. `--smoke` trains a small network for one epoch.

`--dataset stdlib --model nano` trains a transformer on the bytes of Python's own
standard library instead, is judged by bits per byte, and ends with a sample of what it
writes. That is about six minutes of two cores; after five it is at 1.96 bits per byte
of held-out text.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import tyro
from rich.console import Console

from experiments.report import figures, observed_blocks
from experiments.training import (
    board,
    devices,
    locking,
    observing,
    preparation,
    processes,
)
from experiments.training.checkpoints import Checkpoints, newest_step
from experiments.training.interrupting import Interrupted
from experiments.training.loop import TrainingDiverged
from experiments.training.placement import PlacementConfig
from experiments.training.preparation import Prepared, TrainConfig
from experiments.training.preparation import prepare as prepare
from experiments.training.progress import TrainingProgress
from experiments.training.runs import Run, append_record, read_records
from experiments.training.selection import chosen
from experiments.training.steps import TrainState


def main(args: Sequence[str]) -> None:
    """Train from the command line."""
    config = tyro.cli(TrainConfig, args=args, prog="python -m experiments train")
    command(config.devices, lambda: preparation.ask(config), fresh=config.fresh)


def command(
    where: PlacementConfig, ask: Callable[[], preparation.Asked], *, fresh: bool
) -> None:
    """Train as a command does: say what on, and end an error with a line.

    Args:
        where: the devices, of which other processes may have some.
        ask: gives the run, or raises what is wrong with its settings.
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
            asked = ask()
            if not fresh and _finished(asked.run, console) is not None:
                return
            # What is asked first, for the search for axes takes long.
            locking.check_free(asked.run.folder)
            prepared = preparation.complete(asked, say=functools.partial(_say, console))
        except (OSError, TypeError, ValueError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            raise Interrupted("interrupted before the first step") from None
        _say(console, prepared.table)
        try:
            train(prepared, fresh=fresh, console=console)
        except (OSError, TrainingDiverged) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            raise Interrupted(_what_is_left(prepared.run)) from None


def train(prepared: Prepared, *, fresh: bool, console: Console) -> dict[str, Any]:
    """Train to the end, from the start or from where an earlier run stopped.

    Args:
        prepared: what `prepare` returned.
        fresh: remove what an earlier run wrote.
        console: where progress goes; the last line is how the test went.

    Returns:
        What stands in `result.json`; of several processes the first one alone knows.

    Raises:
        TrainingDiverged: the loss or a weight is not finite.
        OSError: a file cannot be written, no checkpoint can be read, or another command
            is training there.
    """
    run = prepared.run
    if not fresh and (result := _finished(run, console)) is not None:
        return result
    with locking.alone_in(run.folder):
        if fresh:
            run.remove()
        # Another command may have come to its end since.
        elif (result := _finished(run, console)) is not None:
            return result
        return _train(prepared, console)


def _train(prepared: Prepared, console: Console) -> dict[str, Any]:
    run, loop, total = prepared.run, prepared.loop, prepared.plan.total_steps
    was_begun = processes.first_says(run.was_begun)
    if prepared.found_axes is not None:
        run.check_config()
    run.open()
    if prepared.found_axes is not None:
        run.keep_axes(prepared.found_axes)
    began = time.perf_counter()
    with Checkpoints(run.checkpoints_folder) as checkpoints:
        restored = checkpoints.restore(prepared.state)
        state = prepared.state if restored is None else restored
        done = int(state.step)
        run.cut_metrics(done)
        if done:
            _say(console, f"resuming after step {done} of {run.folder}")
        else:
            why = "; what was begun there left no checkpoint, so it starts anew"
            _say(console, f"training into {run.folder}{why if was_begun else ''}")
        data = prepared.data
        size, counted = prepared.plan.batch_size * data.in_one, data.counted
        with (
            TrainingProgress(console, total, done, size, counted) as progress,
            board.told(run.folder, done, prepared.tensorboard) as tell,
        ):
            state = loop.run(state, run, checkpoints, progress, tell)
    test = loop.evaluate(state, data.test)
    sample = loop.sample(state)
    if not processes.is_first():
        return {}
    records = read_records(run.metrics_file)
    step = int(chosen(state).step)
    (ours,) = [record for record in records if record["step"] == step]
    result = {
        **{f"test_{name}": value for name, value in test.items() if name != "loss"},
        "test_loss": test["loss"],
        **{
            f"{split}_{data.scored}": ours[f"{split}_{data.scored}"]
            for split in ("validation", "train")
        },
        "tested": "the last weights"
        if state.best is None
        else "the best on validation",
        "tested_step": step,
        "steps": total,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    if sample is not None:
        result |= {**data.origin, "sample": sample}
    if "skipped" in records[-1]:
        result["skipped"] = records[-1]["skipped"]
    name = run.folder.name.rpartition("-")[0]
    figures.learning_curve(run.figure_file, records, f"{name}: {_summary(result)}")
    if loop.job.observes:
        _draw_blocks(prepared, state, records, name)
    seconds = round(time.perf_counter() - began, 3)
    append_record(run.timing_file, {"step": total, "seconds": seconds})
    run.finish(result)
    speed = progress.counted_per_second()
    rate = "" if speed is None else f", {speed:,.0f} {counted}/s"
    _say(console, f"wrote {run.folder} in {seconds:.1f} s{rate}")
    _say_result(console, result)
    return result


def _draw_blocks(
    prepared: Prepared, state: TrainState, records: list[dict[str, Any]], name: str
) -> None:
    run, config = prepared.run, prepared.run.config["optimizer"]
    sizes = observing.sizes_of(state.params, state.opt_state)
    predicted = observing.predicted(config, state.params, sizes, records)
    title = f"{name}: what the blocks of each layer do"
    observed_blocks.draw(run.blocks_file, records, [*sizes], predicted, title)


def _finished(run: Run, console: Console) -> dict[str, Any] | None:
    """Return and say the result of a run that has one."""
    if not processes.first_says(run.is_finished):
        return None
    result = run.result()
    _say(console, f"{run.folder} is finished; --fresh trains again")
    _say_result(console, result)
    return result


def _what_is_left(run: Run) -> str:
    """Say from where the same command will go on."""
    step = newest_step(run.checkpoints_folder)
    if step is None:
        return (
            "interrupted before the first checkpoint, which follows the first epoch; "
            "the same command starts anew"
        )
    return (
        "interrupted; the same command, without --fresh, goes on from the last "
        f"checkpoint, that of step {step}"
    )


def _say_result(console: Console, result: dict[str, Any]) -> None:
    if "skipped" in result:
        _say(
            console,
            f"skipped {result['skipped']} of {result['steps']} steps, where the loss "
            "or a gradient was not finite",
        )
    if "sample" in result:
        _say(console, f"a sample of what it writes:\n{result['sample']}\n")
    _say(console, _summary(result))


def _summary(result: dict[str, Any]) -> str:
    if "test_accuracy" in result:
        test = (
            f"test accuracy {result['test_accuracy']:.2%} "
            f"({result['test_correct']} of {result['test_images']})"
        )
    else:
        test = f"test {result['test_bits_per_byte']:.3f} bits per byte"
    return (
        f"{test}, {result['tested']}, after step {result['tested_step']} of "
        f"{result['steps']}"
    )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
