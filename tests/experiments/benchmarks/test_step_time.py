"""The measurement of a step measures what it says: donated, paired, every optimizer."""

import json

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import normopt
from experiments.__main__ import discover
from experiments.benchmarks import step_time
from experiments.benchmarks.step_time import (
    CASES,
    Stepper,
    StepTimeConfig,
    main,
    measure,
)
from experiments.models.parameters import random_parameters
from tests.experiments.small_runs import quiet

PARAMS = {"conv1": {"kernel": jnp.ones((3, 3, 2, 4))}, "bias": jnp.ones(4)}
GRADIENTS = jax.tree.map(lambda leaf: leaf / 2, PARAMS)


def last_layer(model):
    """A part of the network: all of it takes long to compile, for each optimizer."""
    block = random_parameters(model)["stages"][2][0]
    return {name: block[name] for name in ("conv2", "norm2")}


@pytest.mark.slow("compiles every optimizer")
def test_command_prints_a_row_for_every_optimizer(tmp_path, capsys, monkeypatch):
    assert "step_time" in discover()
    file = tmp_path / "rows.json"
    monkeypatch.setattr(step_time, "random_parameters", last_layer)
    # A table narrower than a plain terminal is cut nowhere.
    monkeypatch.setenv("COLUMNS", "80")
    main(["--smoke", "--json", str(file), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"JAX {jax.__version__} on ")
    assert "…" not in printed
    words = [line.split() for line in printed.splitlines()]
    shown = [line for line in words if line and line[0] in CASES]
    assert [line[0] for line in shown] == list(CASES)
    stored = json.loads(file.read_text())
    assert [row["optimizer"] for row in stored["rows"]] == list(CASES)
    for row, line in zip(stored["rows"], shown, strict=True):
        case = CASES[row["optimizer"]]
        assert row["milliseconds"] > 0
        assert (row["baseline"], row["bar"]) == (case.baseline, case.bar)
        assert (row["ratio"] is None) == (case.baseline is None)
        assert (row["holds"] is None) == (case.bar is None)
        assert ("holds" in line or "missed" in line) == (case.bar is not None)


def test_bars_are_those_of_the_design():
    bars = {name: (c.baseline, c.bar) for name, c in CASES.items() if c.bar is not None}
    assert bars == {
        "adams": ("optax.adamw", 0.95),
        "adams+L2": ("optax.adamw", 1.05),
        "adamsrt": ("optax.adamw", 1.4),
        "adamsrt+L2": ("optax.adamw", 1.45),
        "adamg": ("optax.adamw", 2.5),
        "adamp": ("optax.adamw", 2.3),
        "normalized": ("optax.adamw", 1.45),
        "clipped": ("optax.adamw", 1.45),
        "hyperball": ("optax.adamw", 1.6),
        "rotational": ("optax.adamw", 2.0),
        "novograd": ("optax.novograd", 0.9),
        "sgdmrt": ("optax.sgd", 2.2),
    }
    assert {c.baseline for c in CASES.values()} - {None} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_channels_of_the_convolutions(name):
    """What the blocks save shows in the state: four numbers where Adam has 72."""
    two = ("optax.adamw", "optax.adam", "adamp", "adamw", "nadamw")
    two += ("normalized", "clipped", "hyperball", "rotational")
    state = jax.eval_shape(CASES[name].make().init, PARAMS)
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 72]
    assert len(large) == (2 if name in two else 1)


@pytest.mark.parametrize("name", ["optax.adamw", "normalized"])
def test_a_step_is_the_optimizers_own(name):
    makes = {
        "optax.adamw": CASES["optax.adamw"].make,
        "normalized": lambda: normopt.normalized(optax.sgd(0.1)),
    }
    optimizer = makes[name]()
    stepper = Stepper(optimizer, PARAMS)
    assert stepper.turn(GRADIENTS, 3) > 0
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(4):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    # Compiled whole, a step may round differently.
    chex.assert_trees_all_close(stepper.carry, (params, state), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_buffer_is_donated_and_taken(name):
    stepper = Stepper(CASES[name].make(), PARAMS)
    before = stepper.carry
    stepper.turn(GRADIENTS, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_the_callers_arrays_survive_the_donation():
    stepper = Stepper(CASES["optax.sgd"].make(), PARAMS)
    stepper.turn(GRADIENTS, 2)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((PARAMS, GRADIENTS)))


def test_a_buffer_that_cannot_be_donated_is_an_error():
    def narrowing():
        return optax.GradientTransformation(
            lambda params: jnp.zeros(100, jnp.float32),
            lambda updates, state, params: (updates, state.astype(jnp.bfloat16)),
        )

    stepper = Stepper(narrowing(), PARAMS)
    with pytest.raises(RuntimeError, match="a donated buffer was not reused"):
        stepper.turn(GRADIENTS, 1)


def test_ratios_are_paired_within_rounds_and_stay(tmp_path, monkeypatch, committed):
    """A load that comes and goes leaves the ratio of each round as it is."""
    times = {"optax.sgd": [1.0, 9.0, 3.0, 1.0, 5.0], "sgdp": [2.0, 18.0, 6.0, 3.0, 5.0]}
    left = {name: iter(values) for name, values in times.items()}

    order, names = [], iter(times)

    class Recorded:
        def __init__(self, optimizer, params):
            self.name = next(names)

        def turn(self, gradients, steps):
            order.append(self.name)
            return next(left[self.name])

    monkeypatch.setattr(step_time, "Stepper", Recorded)
    config = StepTimeConfig(optimizers=("sgdp",), rounds=5, out=tmp_path)
    params = {"conv1": {"kernel": jnp.zeros((10, 100))}}
    sgd, sgdp = measure(config, params, quiet())
    assert (sgd["optimizer"], sgdp["optimizer"]) == ("optax.sgd", "sgdp")
    assert (sgd["milliseconds"], sgdp["milliseconds"]) == (3000, 5000)
    assert (sgdp["ratio"], sgdp["quartiles"]) == (2.0, [2.0, 2.0])
    assert sgd["gigabytes_per_second"] == pytest.approx(20 * 1000 / 3 / 1e9)
    assert sgd["state_bytes"] == 4.0
    # Neither is always the first of its round.
    assert set(order[::2]) == set(times)
    # Nothing is left to be timed.
    monkeypatch.setattr(step_time, "Stepper", None)
    assert measure(config, params, quiet()) == [sgd, sgdp]


@pytest.mark.parametrize(("option", "low"), [("rounds", 2), ("repeats", 1)])
def test_too_few_are_refused(option, low):
    with pytest.raises(SystemExit, match=f"`{option}` must be >= {low}, got 0"):
        main([f"--{option}", "0"])
