"""Restart the cosine of an LSTM's AdamW, by itself and by hand; draw eta_t and rates.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv 1711.05101,
Algorithm 2 and appendix B, as in the example of the Keras implementation: an LSTM of 60
ReLU units on random sequences (120, 4), batches of 10, random labels, AdamW with L1 and
L2 decays per matrix, half the rate for the LSTM, cycles of 24 updates.

    python -m experiments decoupled_decay_2019.warm_restarts

takes ten seconds on two CPU cores. It prints a line for each cycle and writes
`warm_restarts.json`, `warm_restarts.png` and what is finished, from where the same
command goes on; `--redraw` draws the stored records again.

No value is published; the visible claim is the shape of eta_t: three equal cosines from
1 to 0, each begun without a word from the training loop. The second column is restarted
by that loop: a cycle of 24, one of 36, and the rest of one of 36 from t_cur = 18 on.
Seen: eta_t is 1 at updates 1, 25 and 49 and 0 at 24, 48 and 72; by hand it is 1 at 1
and 25, 0.478 at 61, and 0 at 24, 60 and 78. The loss stays at log 2, as it has to where
labels are random.

The rate in force is multiplier x lr x eta_t, and the dense layer's multiplier is 1. The
example's `lr_t` is another number, lr sqrt(1 - b2^t) / (1 - b1^t): it belongs before
moments whose bias is not corrected. With corrected ones, as here, `lr` does, and the
two give the same update.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import normopt
from experiments.config import Options, Stored, run
from experiments.report import figures
from experiments.report.claims import Exhibit, Picture
from experiments.report.tables import Table
from experiments.training.measuring import measure_parts

NAME = "decoupled_decay_2019.warm_restarts"
LEARNING_RATE = 1e-4
B1, B2 = 0.9, 0.999
UNITS, FEATURES, BATCH = 60, 4, 10
CYCLE, EPOCHS = 24, 3

# The factor of a layer's rate; a layer that is not named here would have 1.
MULTIPLIERS = {"lstm_1": 0.5, "dense_1": 1.0}
# The kernel of the inputs is dense_i's, that of the recurrence dense_h's.
L1 = {"^lstm_1/cell/dense_i/kernel$": 1e-4, "^dense_1/kernel$": 1e-4}
L2 = {"^lstm_1/cell/dense_h/kernel$": 2e-4, "^dense_1/kernel$": 2e-4}


class Course(NamedTuple):
    """How a run goes.

    Attributes:
        steps: how many updates.
        restarts: before which of them, counted from 0, the loop restarts, and what it
            asks for; none: eta_t restarts by itself.
    """

    steps: int
    restarts: Mapping[int, Mapping[str, int]]


RUNS = {
    "automatic": Course(EPOCHS * CYCLE, {}),
    "by_hand": Course(78, {24: {"cycle_steps": 36}, 60: {"t_cur": 18}}),
}

_COLOURS = {"lstm_1": figures.BLUE, "dense_1": figures.ORANGE}

Records = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class WarmRestartsOptions(Options):
    """Where to write, and how much to compute."""

    seed: int = 0
    """For weights, data and labels."""


class Network(nnx.Module):
    """An LSTM whose last output a dense layer turns into one logit."""

    def __init__(self, *, rngs: nnx.Rngs):
        """Initialise both layers."""
        cell = nnx.OptimizedLSTMCell(FEATURES, UNITS, activation_fn=nnx.relu, rngs=rngs)
        self.lstm_1 = nnx.RNN(cell)
        self.dense_1 = nnx.Linear(UNITS, 1, rngs=rngs)

    def __call__(self, sequences: jax.Array) -> jax.Array:
        """Return logits (n, 1) for sequences (n, length, 4)."""
        return self.dense_1(self.lstm_1(sequences)[:, -1])


def main(args: Sequence[str]) -> None:
    """Train twice, print the cycles, and write records and figure."""
    run(args, NAME, WarmRestartsOptions, measure, draw, table, least={"seed": 0})


def measure(config: WarmRestartsOptions, console: Console) -> dict[str, Any]:
    """Train twice, restarted by itself and by hand, or read what is finished.

    Args:
        config: how much of it.
        console: gets a bar, and a line for each run.

    Returns:
        The settings, and the records of the two runs.
    """
    settings = {"length": 8 if config.smoke else 120, "seed": config.seed}

    def records_of(name: str) -> dict[str, Any]:
        return {"records": train(RUNS[name], **settings)}

    runs = measure_parts(config, "warm_restarts", settings, RUNS, records_of, console)
    return {**settings, **{name: run["records"] for name, run in runs.items()}}


def make_optimizer(schedule: normopt.WarmRestarts) -> optax.GradientTransformation:
    """Return the example's AdamW, whose decays are normalized over one cycle."""
    return normopt.adamw(
        LEARNING_RATE,
        B1,
        B2,
        weight_decay=normopt.normalized_decay(L2, CYCLE),
        l1=normopt.normalized_decay(L1, CYCLE),
        lr_multipliers={f"^{layer}/": c for layer, c in MULTIPLIERS.items()},
        schedule=schedule,
    )


def train(course: Course, length: int, seed: int) -> Records:
    """Train on random sequences and labels.

    Args:
        course: its updates and restarts.
        length: of the sequences.
        seed: for weights, data and labels.

    Returns:
        One record an update, counted from 1: the loss before it, what it was restarted
        with, eta_t, the layers' rates in force and lr_t.
    """
    restarts = course.restarts
    schedule = normopt.WarmRestarts(CYCLE, autorestart=not restarts)
    model = Network(rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, make_optimizer(schedule), wrt=nnx.Param)
    random, records = np.random.default_rng(seed), []
    for step in range(course.steps):
        if step in restarts:
            state = normopt.restart(optimizer.opt_state, **restarts[step])
            optimizer.opt_state = state
        sequences = random.random((BATCH, length, FEATURES), np.float32)
        labels = random.integers(0, 2, (BATCH, 1)).astype(np.float32)
        loss = _update(model, optimizer, sequences, labels)
        eta = float(normopt.current_eta(optimizer.opt_state))
        rates = {layer: c * LEARNING_RATE * eta for layer, c in MULTIPLIERS.items()}
        record = {"step": step + 1, "loss": float(loss), "eta": eta, "rates": rates}
        record |= {"lr_t": uncorrected_rate(step + 1)}
        records.append(record | {"restart": dict(restarts.get(step, {}))})
    return records


@nnx.jit
def _update(
    model: Network, optimizer: nnx.Optimizer, sequences: jax.Array, labels: jax.Array
) -> jax.Array:
    def loss_of(model: Network) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(model(sequences), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def uncorrected_rate(step: int) -> float:
    """Return lr_t: what stands for `lr` before moments with their bias.

    Args:
        step: of the update, counted from 1.
    """
    return LEARNING_RATE * (1 - B2**step) ** 0.5 / (1 - B1**step)


def draw(path: Path, stored: Stored) -> None:
    """Draw eta_t and the rates in force of both runs.

    Args:
        path: the PNG to write.
        stored: what `warm_restarts.json` holds.
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        titles = {"automatic": "restarts by itself", "by_hand": "restarted by hand"}
        for (above, below), (name, title) in zip(axes.T, titles.items(), strict=True):
            _draw_run(above, below, stored[name])
            above.set_title(title)
            below.set_xlabel("update")
        axes[0, 0].set(ylabel=r"$\eta_t$", ylim=(-0.04, 1.3))
        axes[1, 0].set_ylabel("learning rate")
        axes[1, 0].ticklabel_format(axis="y", scilimits=(-4, -4), useMathText=True)
        figure.legend(
            *axes[1, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        figures.save(figure, path)


def _draw_run(above: Any, below: Any, records: Records) -> None:
    steps = [record["step"] for record in records]
    line = {"marker": "o", "markersize": 2.5, "linewidth": 1.2}
    above.plot(steps, [record["eta"] for record in records], color="#333333", **line)
    for layer, colour in _COLOURS.items():
        rates = [record["rates"][layer] for record in records]
        label = rf"{layer}: {MULTIPLIERS[layer]:g} $\times$ lr $\times\ \eta_t$"
        below.plot(steps, rates, color=colour, label=label, **line)
    below.plot(
        steps,
        [record["lr_t"] for record in records],
        color="#888888",
        linestyle="--",
        label=r"lr$_t$ = lr $\sqrt{1 - b_2^t}\,/\,(1 - b_1^t)$",
    )
    for record in records:
        if record["restart"]:
            for axes in (above, below):
                axes.axvline(record["step"], color="#b03060", linestyle=":")
            asked = ", ".join(f"{k}={v}" for k, v in record["restart"].items())
            # Two lines: one is too long for the last cycle.
            text = f"restart with\n{asked}"
            above.text(record["step"] + 1, 1.27, text, va="top", size=9)


def table(stored: Stored) -> Table:
    """Return the ends of eta_t and the mean loss of each cycle."""
    return Table(
        f"lr = {LEARNING_RATE:g}, LSTM at half of it",
        ("run", "updates", "first eta_t", "last eta_t", "mean loss"),
        (
            (
                name.replace("_", " "),
                f"{cycle[0]['step']}-{cycle[-1]['step']}",
                f"{cycle[0]['eta']:.3f}",
                f"{cycle[-1]['eta']:.3f}",
                f"{statistics.mean(record['loss'] for record in cycle):.3f}",
            )
            for name in ("automatic", "by_hand")
            for cycle in _cycles(stored[name])
        ),
    )


def _cycles(records: Records) -> list[Records]:
    """Cut a run where it was restarted and where eta_t jumps up."""
    cycles = [records[:1]]
    for before, record in zip(records, records[1:], strict=False):
        if record["restart"] or record["eta"] > before["eta"]:
            cycles.append([])
        cycles[-1].append(record)
    return cycles


def _extent(stored: Stored) -> str:
    updates = " and ".join(str(len(stored[run])) for run in ("automatic", "by_hand"))
    return f"n = 1 (seed {stored['seed']}), {updates} updates"


EXHIBIT = Exhibit(
    extent=_extent,
    note="That eta_t is the cosine, restarted by itself or by hand, is arithmetic, "
    "which the tests of the schedules check; no claim is counted for it.",
    tables=(table,),
    pictures=(
        Picture(
            "warm_restarts",
            "eta_t and the learning rates in force over the updates: on the "
            "left three equal cosines, on the right cosines begun by hand.",
            draw,
        ),
    ),
)
