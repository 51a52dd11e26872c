"""A language model from end to end: its records, its sample, resumed, on a mesh."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from experiments import data
from experiments.data import text
from experiments.train import TrainConfig, prepare, train
from experiments.training import generating, preparation
from experiments.training.runs import read_records
from tests.experiments.small_runs import ROOT, assert_same_run, copy_of, quiet

FSDP = """
import sys
from pathlib import Path
from experiments.training.placement import PlacementConfig
from tests.experiments.test_train_text import run
run(Path(sys.argv[1]), devices=PlacementConfig(mesh="data=4", fsdp=True))
"""


def small_text():
    """Few enough stretches for epochs of three steps."""
    whole = data.load("stdlib")
    return text.cut(
        "stdlib",
        train=whole.train.text[: 13 * text.STRETCH],
        validation=whole.validation.text[:2000],
        test=whole.test.text[:1000],
        origin=whole.origin,
    )


def asked(folder, text=None, **changes):
    return preparation.ask(settings(folder, **changes), text or small_text())


def settings(folder, **changes):
    settings = {
        "dataset": "stdlib",
        "model": "nano",
        "optimizer": '{"name": "adamsrt", "channel_axes": {"query/kernel": [1]}}',
        "epochs": 3,
        "batch_size": 4,
        "log_every": 2,
        "runs_dir": folder,
        **changes,
    }
    return TrainConfig(**settings)


def run(folder, console=None, **changes):
    prepared = prepare(settings(folder, **changes), small_text())
    result = train(prepared, fresh=False, console=console or quiet())
    return prepared.run.folder, result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.slow("trains a transformer")
def test_it_is_judged_by_bits_per_byte_and_writes_a_sample(finished):
    folder, result = finished
    records = read_records(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 3, 4, 6, 7, 9]
    for record in records:
        bits, nats = record["train_bits_per_byte"], record["train_loss"]
        assert bits == pytest.approx(nats / np.log(2))
        assert not any("accuracy" in name for name in record)
    assert records[-1]["train_loss"] < records[0]["train_loss"] < 7
    assert result["python"] == data.load("stdlib").origin["python"]
    assert result["test_bits_per_byte"] == result["test_loss"] / np.log(2)
    assert result["sample"].startswith(generating.PROMPT)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["data"]["train"] == 13 * text.STRETCH
    assert (folder / "learning_curve.png").exists()


@pytest.mark.slow("trains a transformer")
def test_it_goes_on_bit_for_bit(tmp_path, finished, capsys):
    folder = copy_of(finished[0], tmp_path, steps=3)
    assert run(tmp_path, Console())[0] == folder
    said = capsys.readouterr().out
    assert "resuming after step 3 of" in said and generating.PROMPT in said
    assert "bytes/s" in said and " bits per byte, the last weights" in said
    assert_same_run(folder, finished[0])


@pytest.mark.slow("trains a transformer on four devices")
def test_split_over_devices_it_is_the_same_run(tmp_path, finished):
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", FSDP, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    (folder,) = tmp_path.iterdir()
    assert folder.name == finished[0].name
    split, whole = (
        read_records(one / "metrics.jsonl") for one in (folder, finished[0])
    )
    for one, other in zip(split, whole, strict=True):
        for name, value in one.items():
            # Other orders of summation, which Adam's first steps make larger.
            assert value == (other[name] and pytest.approx(other[name], rel=1e-3))


@pytest.mark.slow("trains a transformer")
def test_it_computes_in_bfloat16(tmp_path, finished):
    folder, result = run(tmp_path, dtype="bfloat16")
    assert folder.name != finished[0].name
    one, other = (r["test_bits_per_byte"] for r in (result, finished[1]))
    assert one != other and one == pytest.approx(other, rel=2e-2)


@pytest.mark.slow("trains a transformer")
def test_the_best_weights_are_those_of_the_fewest_bits(tmp_path):
    # The rate is so large in the last epoch that it spoils the weights.
    rate = {
        "name": "piecewise_constant_schedule",
        "init_value": 0.01,
        "boundaries_and_scales": {"6": 30.0},
    }
    optimizer = json.dumps({"name": "adam", "learning_rate": rate})
    folder, result = run(tmp_path, optimizer=optimizer, test_best=True)
    records = read_records(folder / "metrics.jsonl")
    by_step = {r["step"]: r["validation_bits_per_byte"] for r in records}
    known = {step: bits for step, bits in by_step.items() if bits is not None}
    assert result["tested_step"] == min(known, key=known.get) == 6
    assert result["validation_bits_per_byte"] == known[6]


def test_other_bytes_are_refused(tmp_path):
    begun = asked(tmp_path)
    begun.run.open()
    assert asked(tmp_path).run.folder == begun.run.folder
    text = small_text()
    one_more = np.append(text.train.text, text.train.text[:1])
    other = dataclasses.replace(
        text, train=dataclasses.replace(text.train, text=one_more)
    )
    words = "begun with other data, train 53248, .*; these are train 53249, .*--fresh"
    with pytest.raises(OSError, match=words):
        asked(tmp_path, other)
    assert asked(tmp_path, other, fresh=True).run.folder == begun.run.folder
    # Nor are they trained on where the run is finished.
    begun.run.finish({})
    with pytest.raises(OSError, match=words):
        asked(tmp_path, other)


def test_a_smoke_run_of_a_text_is_of_a_text(tmp_path):
    large = {"dataset": "stdlib", "model": "small", "epochs": 9, "smoke": True}
    small = preparation.ask(TrainConfig(**large, runs_dir=tmp_path))
    assert small.run.folder.name.startswith("stdlib-nano-adamsrt-")
    assert small.plan.epochs == 1


def test_a_sample_is_what_the_network_foresees():
    class Next:
        """Foresees the byte that follows by one, or at its last place, an A."""

        def evaluate(self, params, model_state, tokens):
            after = np.arange(256)[None, None] == (tokens + 1)[..., None]
            return 1e3 * after

    drawn = generating.sample(Next(), None, None, generating.jax.random.key(0))
    first = ord(generating.PROMPT[-1]) + 1
    expected = (first + np.arange(generating.BYTES)) % 256
    # Past the last byte none is foreseen: whatever is drawn then goes on by one.
    known = 256 - first
    np.testing.assert_array_equal(drawn[:known], expected[:known])
    steps = np.diff(np.asarray(drawn[known:]))
    assert np.mean(steps == 1) > 0.8


def test_what_cannot_be_printed_has_a_sign():
    assert generating.in_words([65, 10, 27, 200]) == generating.PROMPT + "A\n��"


@pytest.mark.parametrize(
    ("dataset", "model", "fitting"),
    [("stdlib", "resnet8", "nano, micro, small"), ("digits", "nano", "resnet8")],
)
def test_a_model_must_fit_the_data(tmp_path, dataset, model, fitting):
    asked = TrainConfig(dataset=dataset, model=model, runs_dir=tmp_path)
    with pytest.raises(
        ValueError, match=f"`model` must be one of .*{fitting}.*{model}"
    ):
        prepare(asked)
