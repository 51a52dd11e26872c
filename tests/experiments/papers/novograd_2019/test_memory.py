import json

import jax
import jax.numpy as jnp
import pytest

import normopt
from experiments.models.parameters import random_parameters
from experiments.papers.novograd_2019 import memory
from experiments.report.report import FOLDER
from tests.experiments.small_runs import calls_until_it_goes_on, quiet

PARAMS = {"conv1": {"kernel": jnp.ones((3, 3, 2, 4))}, "bias": jnp.ones(4)}


def last_layer(model):
    """A part of the network: all of it takes long to compile, for each optimizer."""
    block = random_parameters(model)["stages"][2][0]
    return {name: block[name] for name in ("conv2", "norm2")}


@pytest.mark.slow("compiles every optimizer")
def test_every_optimizer_has_a_row(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(memory, "random_parameters", last_layer)
    memory.main(["--smoke", "--json", str(file), "--out", str(tmp_path)])
    rows = json.loads(file.read_text())["rows"]
    theirs = ["optax.adamw", "optax.sgd", "optax.novograd"]
    assert [row["optimizer"] for row in rows] == theirs + normopt.names()
    printed = capsys.readouterr().out
    for row in rows:
        assert any(
            line.split()[:1] == [row["optimizer"]] for line in printed.split("\n")
        )
    by_name = {row["optimizer"]: row for row in rows}
    adam = by_name["optax.adamw"]["float32"]
    # The claim: half of Adam's, but for a number a layer or a channel.
    for name in ("novograd", "adamsrt", "adams"):
        assert by_name[name]["float32"] == pytest.approx(0.5 * adam, rel=0.04)
    assert by_name["adamw"]["float32"] == pytest.approx(adam, rel=0.001)


@pytest.mark.slow("compiles every optimizer")
def test_bytes_are_those_of_the_arrays(tmp_path):
    measured = memory.measure(memory.MemoryConfig(out=tmp_path), PARAMS, quiet())
    rows = {row["optimizer"]: row for row in measured}
    elements, layers = 72 + 4, 2
    # The momentum and a float a layer.
    assert rows["novograd"]["float32"] == 4 + 4 * layers / elements
    assert rows["novograd"]["bfloat16"] == 2 + 4 * layers / elements
    assert rows["optax.adamw"]["float32"] == 8 + 4 / elements


@pytest.mark.usefixtures("committed")
def test_a_stopped_command_goes_on_with_the_next_optimizer(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(memory, "random_parameters", lambda model: PARAMS)
    monkeypatch.setattr(memory, "_bytes_a_parameter", lambda optimizer, params: 4.0)
    first, second = calls_until_it_goes_on(
        monkeypatch,
        memory,
        "_bytes_a_parameter",
        lambda: memory.main(["--json", str(file), "--out", str(tmp_path)]),
    )
    assert len(first) == 2
    assert len(first) + len(second) == 2 * len(memory.optimizers())
    rows = json.loads(file.read_text())["rows"]
    assert [row["optimizer"] for row in rows] == list(memory.optimizers())


def test_optimizers_are_built_with_blocks_and_momentum():
    for name, build in memory.optimizers().items():
        large = [s for s in jax.tree.leaves(build().init(PARAMS)) if s.size >= 72]
        two = ("optax.adamw", "adamp", "adamw", "nadamw")
        assert len(large) == (2 if name in two else 1), name


def test_each_dtype_has_its_own_ratio():
    rows = [
        {"optimizer": "optax.adamw", "float32": 8.0, "bfloat16": 4.0},
        {"optimizer": "adamw", "float32": 8.0, "bfloat16": 6.0},
    ]
    grid = memory.table({"model": "m", "parameters": 1, "rows": rows})
    names = ["float32", "float32 ratio", "bfloat16", "bfloat16 ratio"]
    assert grid.header == ("optimizer", *names)
    assert grid.rows[0] == ("adamw", "8.00", "1.00", "6.00", "1.50")


def test_the_stored_state_of_novograd_is_half_of_adam_s():
    """The one number that the paper has."""
    rows = json.loads((FOLDER / "novograd_2019/memory.json").read_text())["rows"]
    held = {row["optimizer"]: row for row in rows}
    for dtype in ("float32", "bfloat16"):
        ratio = held["novograd"][dtype] / held[memory.BASELINE][dtype]
        assert ratio == pytest.approx(0.5, abs=0.01)
