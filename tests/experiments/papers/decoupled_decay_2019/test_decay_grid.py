"""The grid: a cell is a run of its own, and its numbers measure what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.papers.decoupled_decay_2019 import decay_grid
from experiments.papers.decoupled_decay_2019.decay_grid import MARGIN, alignment, main
from experiments.papers.decoupled_decay_2019.grid_training import (
    METHODS,
    TUNING_IMAGES,
    as_text,
    from_text,
    grid_wrong,
    load_task,
    start,
    train,
    wrong_answers,
)

HELD_OUT = 1797 - 200
RATES, DECAYS = range(-7, 0), range(-12, -3)


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small a network takes longer to compile than to train."""


@pytest.fixture(scope="module")
def task():
    return load_task(epochs=3, hidden=16, batch_norm=True)


def trained(name, learning_rate, decay, seed, task):
    def run(*numbers):
        return train(METHODS[name].make, *numbers, task)

    return jax.jit(run)(learning_rate, decay, start(seed, task))


def test_the_same_command_trains_what_is_left(folder, committed, monkeypatch):
    records, trained = folder / "decay_grid.json", []
    before = records.read_bytes()
    (part,) = folder.glob("decay_grid-*/SGDW.json")
    part.unlink()
    monkeypatch.setattr(
        decay_grid,
        "grid_wrong",
        lambda make, *others: trained.append(make) or grid_wrong(make, *others),
    )
    main(["--smoke", "--out", str(folder.parent)])
    assert trained == [METHODS["SGDW"].make]
    assert records.read_bytes() == before


def test_every_cell_of_every_method_is_stored(stored):
    assert list(stored["grids"]) == list(METHODS)
    assert (stored["batch_norm"], stored["epochs"], stored["hidden"]) == (True, 3, 16)
    for name, grid in stored["grids"].items():
        assert grid["learning_rates"] == list(METHODS[name].learning_rates[::5])
        assert grid["decays"] == list(METHODS[name].decays[::5])
        for errors in decay_grid.errors_of(stored, name):
            assert errors.shape == (2, 3, 3)
            assert (errors > 0).all() and (errors <= 1).all()


@pytest.mark.parametrize("name", ["SGDW", "Adam, L2"])
def test_a_cell_of_the_grid_is_that_run_alone(stored, task, name):
    grid = stored["grids"][name]
    wrong = from_text(grid["wrong_judging"])
    # The cell differs from its mirror image and between seeds: a swap would show.
    seed, row, column = 1, 2, 0
    others = [wrong[0, row, column], wrong[seed, column, row]]
    assert np.abs(wrong[seed, row, column] - others).min() > 10
    rate, decay = 2.0 ** grid["learning_rates"][row], 2.0 ** grid["decays"][column]
    params = trained(name, rate, decay, decay_grid.FIRST_SEED + seed, task)
    alone = wrong_answers(params, task)
    # Batched sums round differently, which can turn an answer that was close.
    assert abs(wrong[seed, row, column] - int(alone[1])) <= 3
    assert abs(from_text(grid["wrong_tuning"])[seed, row, column] - int(alone[0])) <= 3


@pytest.mark.parametrize(
    ("coupled", "decoupled"),
    [
        ("Adam, L2", "AdamW"),
        pytest.param("SGD, L2", "SGDW", marks=pytest.mark.slow("four more runs")),
    ],
)
def test_the_two_forms_differ_by_the_decay_alone(coupled, decoupled):
    # Under batch norm a pixel that never changes has a gradient of rounding alone,
    # from which Adam makes full steps.
    task = load_task(epochs=3, hidden=16, batch_norm=False)
    runs = {
        (name, decay): np.concatenate(
            [
                np.ravel(leaf)
                for leaf in jax.tree.leaves(trained(name, 2**-8, decay, 0, task))
            ]
        )
        for name in (coupled, decoupled)
        for decay in (0.0, 2**-5)
    }
    same = runs[coupled, 0.0] - runs[decoupled, 0.0]
    other = runs[coupled, 2**-5] - runs[decoupled, 2**-5]
    assert np.abs(same).max() < 1e-4
    assert np.abs(other).max() > 1e-2
    # Half a decay a step, on average, is gone of every weight: 30 steps of 1/64.
    lengths = {key: np.linalg.norm(values) for key, values in runs.items()}
    assert lengths[decoupled, 2**-5] < 0.8 * lengths[decoupled, 0.0]


@pytest.mark.slow("trains for twenty epochs")
def test_training_teaches():
    task = load_task(epochs=20, hidden=32, batch_norm=True)
    wrong = wrong_answers(trained("AdamW", 2**-6, 2**-8, 0, task), task)
    assert 0.01 < float(wrong.sum()) / HELD_OUT < 0.12


def test_batch_norm_makes_the_length_of_the_weights_irrelevant(task):
    params = trained("SGDW", 2**-4, 0.0, 0, task)
    longer = [{**layer, "kernel": 4 * layer["kernel"]} for layer in params[:-1]]
    longer.append(params[-1])
    before, after = (wrong_answers(one, task) for one in (params, longer))
    assert abs(before - after).sum() <= 3
    plain = load_task(epochs=3, hidden=16, batch_norm=False)
    assert not any("scale" in layer for layer in trained("SGDW", 2**-4, 0, 0, plain))


def test_the_held_out_images_are_answered_one_by_one(task):
    """Their own statistics would make the answers depend on who else is asked."""
    params = trained("SGDW", 2**-4, 0.0, 0, task)
    wrong = 0
    for chosen in (np.r_[0:200, 200:300], np.r_[0:200, 300:1797]):
        images, labels = task.images[chosen], task.labels[chosen]
        part = dataclasses.replace(task, images=images, labels=labels)
        wrong += int(wrong_answers(params, part).sum())
    tuning, judging = wrong_answers(params, task)
    assert wrong == tuning + judging
    first = slice(200 + TUNING_IMAGES)
    images, labels = task.images[first], task.labels[first]
    part = dataclasses.replace(task, images=images, labels=labels)
    assert wrong_answers(params, part).tolist() == [tuning, 0] and 0 < tuning < judging


def test_a_run_that_diverged_is_wrong_on_nine_in_ten(task):
    params = trained("SGDW", 2**-4, 0.0, 0, task)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    assert 0.85 < float(wrong_answers(broken, task).sum()) / HELD_OUT < 0.95


def test_counts_are_lists_of_texts():
    counts = np.arange(12).reshape(2, 2, 3)
    assert as_text(counts)[1] == ["6 7 8", "9 10 11"]
    np.testing.assert_array_equal(from_text(as_text(counts)), counts)


def test_a_cell_is_chosen_by_other_seeds_on_other_images():
    tuning, judging = np.full((2, 3, 1, 2), 100)
    # Two seeds are a little better at the first cell, one at the second.
    tuning[:, 0] = [[50, 100], [50, 100], [100, 70]]
    judging[:, 0] = [[11, 12], [21, 22], [31, 32]]
    grid = {"wrong_tuning": as_text(tuning), "wrong_judging": as_text(judging)}
    stored = {"grids": {"AdamW": grid}, "tuning_images": 1000, "judging_images": 100}
    assert decay_grid._errors(stored, "AdamW").tolist() == [0.11, 0.21, 0.31]
    tuning[1, 0, 1] = 10
    grid["wrong_tuning"] = as_text(tuning)
    assert decay_grid._errors(stored, "AdamW").tolist() == [0.12, 0.21, 0.31]
    of_all = decay_grid.errors_of(stored, "AdamW").all
    assert of_all[0, 0].tolist() == [61 / 1100, 112 / 1100]


def bowl(of):
    rate, decay = np.meshgrid(RATES, DECAYS, indexing="ij")
    return 0.05 + MARGIN * of(rate + 4.0, decay + 8.0)


def test_alignment_of_known_valleys():
    falling = alignment(bowl(lambda r, d: 4 * (r + d) ** 2 + r**2 / 5), RATES, DECAYS)
    assert (falling.rho, falling.slope) == (pytest.approx(-1), pytest.approx(-1))
    assert falling.cells == 5
    rising = alignment(bowl(lambda r, d: 4 * (r - d) ** 2 + r**2 / 5), RATES, DECAYS)
    assert (rising.rho, rising.slope) == (pytest.approx(1), pytest.approx(1))
    straight = alignment(bowl(lambda r, d: d**2 + r**2 / 5), RATES, DECAYS)
    assert (straight.rho, straight.slope) == (pytest.approx(0), pytest.approx(0))
    assert straight.cells == 7


def test_alignment_of_a_single_row_and_a_single_cell_is_unknown():
    row = alignment(bowl(lambda r, d: 2 * r**2 + d**2 / 5), RATES, DECAYS)
    assert (row.rho, row.slope, row.cells) == (None, None, 5)
    cell = alignment(bowl(lambda r, d: 2 * r**2 + 2 * d**2), RATES, DECAYS)
    assert (cell.rho, cell.slope, cell.cells) == (None, None, 1)


def test_the_marked_cells_are_those_that_are_measured():
    errors = bowl(lambda r, d: 4 * (r + d) ** 2 + r**2 / 5)
    axes = Figure().subplots()
    grid = {"learning_rates": RATES, "decays": DECAYS}
    above = 100 * (errors - errors.min())
    decay_grid._draw_map(axes, grid, above, LogNorm(0.1, above.max()))
    dots, star = (marked.get_offsets() for marked in axes.collections)
    assert len(dots) == alignment(errors, RATES, DECAYS).cells == 5
    # Columns are decays, rows are rates: along the falling diagonal, -8 and -4 inside.
    places = {(x, y) for x, y in dots}
    assert places == {(-8 - step, -4 + step) for step in range(-2, 3)}
    assert [tuple(place) for place in star] == [(-8, -4)]


def test_one_seed_has_no_spread_and_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path)])


def test_nothing_stored_is_nothing_to_draw(tmp_path):
    with pytest.raises(SystemExit, match="--redraw needs .*decay_grid.json"):
        main(["--redraw", "--out", str(tmp_path / "absent")])
    assert not (tmp_path / "absent").exists()
