"""Restarts beside one cosine: what is trained, what is stored, and both rules."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normopt
from experiments.papers.decoupled_decay_2019 import anytime
from experiments.papers.decoupled_decay_2019.anytime import (
    ARMS,
    EXHIBIT,
    SMOKE,
    AnytimeOptions,
    main,
)
from experiments.papers.decoupled_decay_2019.anytime_arms import (
    PAIRS,
    WITHIN,
    Pair,
    epochs_needed,
    restarted,
)
from experiments.papers.decoupled_decay_2019.grid_training import (
    METHODS,
    TUNING_IMAGES,
    cell_curves,
    from_text,
    load_noisy_task,
    start,
    train,
    wrong_answers,
)
from tests.experiments.small_runs import in_a_plain_terminal, quiet

JUDGING = 1797 - 400 - 400
CYCLES = [1, 2]


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so small a network takes longer to compile than to train."""


@pytest.fixture(scope="module")
def task():
    return load_noisy_task(sum(CYCLES), 16, anytime.IMAGES, anytime.NOISE)


def maker(name):
    make = METHODS[PAIRS.get(name, name)].make
    return restarted(make, CYCLES, anytime.IMAGES) if name in PAIRS else make


def cell(stored, name):
    arm = stored["arms"][name]
    row, column = arm["best"]
    return arm["learning_rates"][row], arm["decays"][column]


def texts_of(runs):
    return [" ".join(map(str, run)) for run in runs]


def final_wrong(make, exponents, seeds, task):
    """How many answers are wrong at the end, of those that tune and that judge."""

    def run(start):
        rate, decay = (2.0**exponent for exponent in exponents)
        return wrong_answers(train(make, rate, decay, start, task), task)

    starts = [start(seed, task) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    return np.asarray(jax.jit(jax.vmap(run))(stacked))


@pytest.mark.slow("needs a real run")
def test_the_same_command_trains_what_is_left(folder, committed, monkeypatch):
    records, trained = folder / "anytime.json", []
    before = records.read_bytes()
    (part,) = folder.glob("anytime-*/SGDW.json")
    part.unlink()
    monkeypatch.setattr(
        anytime,
        "cell_curves",
        lambda make, *others: trained.append(make) or cell_curves(make, *others),
    )
    main(["--smoke", "--out", str(folder.parent)])
    assert trained == [METHODS["SGDW"].make]
    assert records.read_bytes() == before


@pytest.mark.slow("needs a real run")
@pytest.mark.parametrize("name", SMOKE)
def test_every_arm_is_stored_with_its_best_cell(stored, name):
    assert (stored["cycles"], stored["judging_images"]) == (CYCLES, JUDGING)
    arm, method = stored["arms"][name], METHODS[PAIRS.get(name, name)]
    assert arm["learning_rates"] == list(method.learning_rates[1:-1:5])
    assert arm["decays"] == list(method.decays[1:-1:5])
    errors = np.array(arm["mean_final_errors"])
    assert errors.shape == (2, 2) and (errors > 0).all() and (errors < 1).all()
    assert errors[*arm["best"]] == errors.min()
    assert from_text(arm["wrong"]).shape == (2, 3)
    assert ("wrong_on_one_cosine" in arm) is (name in PAIRS)


@pytest.mark.slow("needs a real run")
@pytest.mark.parametrize("name", ["SGDW", "SGDWR"])
def test_the_grid_is_tuned_on_some_seeds_and_the_curves_are_of_others(
    stored, task, name
):
    arm = stored["arms"][name]
    tuning, judging = final_wrong(maker(name), cell(stored, name), range(4), task).T
    mean = TUNING_IMAGES * np.array(arm["mean_final_errors"])[*arm["best"]]
    ends = from_text(arm["wrong"])[:, -1]
    # The seeds differ by more than rounding, which can turn answers that were close.
    assert np.ptp(judging[2:]) > 6 < abs(tuning[:2].mean() - tuning[2:].mean())
    assert abs(mean - tuning[:2].mean()) <= 3
    assert np.abs(ends - judging[2:]).max() <= 3


def test_the_cell_that_is_judged_is_the_best(tmp_path, monkeypatch):
    def grid(make, rates, decays, starts, task):
        wrong = np.full((len(starts), len(rates), len(decays), 2), 200)
        wrong[:, 3, 1, 0] = 160
        # One seed alone is better elsewhere, and all are on the images that judge.
        wrong[0, 1, 3, 0] = 120
        wrong[:, 1, 3, 1] = 0
        return wrong

    def curves(make, rate, decay, starts, task):
        judged.append((rate, decay, len(starts)))
        return np.zeros((len(starts), task.epochs), int)

    judged = []
    monkeypatch.setattr(anytime, "grid_wrong", grid)
    monkeypatch.setattr(anytime, "cell_curves", curves)
    config = AnytimeOptions(out=tmp_path, seeds=3, tuning_seeds=4, cycles=2)
    stored = anytime.measure(config, quiet())
    assert {tuple(arm["best"]) for arm in stored["arms"].values()} == {(3, 1)}
    # The ranges less their rims; one cosine is trained at the cell of restarts too.
    of_sgd, of_adam = (-10 + 4, -14 + 2, 3), (-12 + 4, -14 + 2, 3)
    assert judged == 3 * [of_sgd] + 3 * [of_adam]
    assert stored["cycles"] == [1, 2]
    assert stored["arms"]["AdamW"]["mean_final_errors"][3][1] == 0.4


@pytest.mark.slow("needs a real run")
def test_beside_the_restarts_is_one_cosine_at_their_cell(stored, task):
    counts = stored["arms"]["SGDWR"]["wrong_on_one_cosine"]
    alone = final_wrong(maker("SGDW"), cell(stored, "SGDWR"), (2, 3), task)[:, 1]
    assert np.abs(alone - from_text(counts)[:, -1]).max() <= 3
    assert counts != stored["arms"]["SGDWR"]["wrong"]


@pytest.mark.slow("trains twice")
def test_errors_are_those_of_the_run_as_it_goes(task):
    """Under a constant eta a run of fewer epochs is the beginning of a longer one."""

    def make(learning_rate, decay, _):
        return METHODS["SGDW"].make(learning_rate, decay, lambda count: 1.0)

    begin = start(0, task)
    (curve,) = cell_curves(make, -4, -8, [begin], task)
    short = begin._replace(batches=begin.batches[: anytime.IMAGES // 20])
    params = jax.jit(lambda one: train(make, 2**-4, 2**-8, one, task))(short)
    assert abs(curve[0] - wrong_answers(params, task)[1]) <= 3
    assert len(curve) == 3 and curve[0] > curve[2] + 10


def test_noise_is_drawn_anew_each_epoch_and_once_for_what_is_held_out():
    clean, noisy = (load_noisy_task(3, 16, 400, deviation) for deviation in (0, 0.5))
    noise = np.asarray(noisy.images - clean.images)
    assert noise.std() == pytest.approx(0.5, rel=0.01)
    draws, held_out = np.split(noise, [3 * 400])
    assert len(held_out) == clean.held_out == 1797 - 400
    first, second, _ = draws.reshape(3, 400, 64)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    images = np.asarray(clean.images)
    assert (images[:400] == images[400:800]).all()
    batches = np.asarray(start(0, noisy).batches).reshape(3, 400)
    for epoch, order in enumerate(batches):
        assert sorted(order) == list(range(400 * epoch, 400 * (epoch + 1)))


def weights(optimizer, gradients, begin=1.0):
    """A weight after each update, the first before any."""
    weight = jnp.asarray(begin)
    state, found = optimizer.init(weight), [begin]

    @jax.jit
    def step(gradient, state, weight):
        updates, state = optimizer.update(gradient, state, weight)
        return optax.apply_updates(weight, updates), state

    for gradient in gradients:
        weight, state = step(jnp.asarray(gradient, float), state, weight)
        found.append(float(weight))
    return np.array(found)


@pytest.mark.parametrize("name", ["SGDW", "AdamW"])
def test_one_cycle_of_the_whole_length_is_one_cosine(name):
    make, numbers = METHODS[name].make, (2**-4, jnp.float32(2**-5))
    gradients = np.random.default_rng(0).normal(size=30)
    one = weights(make(*numbers, normopt.cosine_restarts(30)), gradients)
    np.testing.assert_allclose(
        weights(restarted(make, [3], 200)(*numbers, None), gradients), one, atol=1e-6
    )
    cycles = weights(restarted(make, CYCLES, 200)(*numbers, None), gradients)
    assert np.abs(cycles - one).max() > 1e-2


@pytest.mark.parametrize("name", ["SGDW", "AdamW"])
def test_each_cycle_decays_by_its_own_length(name):
    """Without gradients a weight shrinks by eta and the decay, and nothing else."""
    decay = 2**-6
    make = restarted(METHODS[name].make, CYCLES, 200)
    left = weights(make(2**-5, decay, None), [0] * 30)
    # Written out: cycles of 10 and 20 updates, which are 1/3 and 2/3 of all.
    eta = [(1 + np.cos(np.pi * t / (n - 1))) / 2 for n in (10, 20) for t in range(n)]
    factors = np.repeat([3**0.5, 1.5**0.5], [10, 20])
    expected = 1 - decay * factors * eta
    np.testing.assert_allclose(left[1:] / left[:-1], expected, atol=1e-6)


def test_the_learning_rate_restarts_too():
    make = restarted(METHODS["AdamW"].make, CYCLES, 200)
    # Of constant gradients Adam makes steps of the rate in force.
    steps = -np.diff(weights(make(2**-5, 0.0, None), [1] * 11, begin=0.0))
    assert steps[[0, 9, 10]] == pytest.approx([2**-5, 0, 2**-5], rel=1e-4, abs=1e-8)


def test_epochs_are_counted_to_the_first_that_is_good_enough():
    curves = np.array(
        [[9.0, 5.0, 7.0, 4.0], [5.0, 9.0, 9.0, 9.0], [9.0, 8.0, 7.0, 6.0]]
    )
    assert epochs_needed(curves, np.array([5.0, 5.0, 5.0])).tolist() == [2, 1, 5]
    assert epochs_needed(curves, np.array([4.0, 8.9, 8.9])).tolist() == [4, 1, 2]


def made_up(cosine, restarts):
    """Records of runs of SGD and Adam, errors in thousandths."""
    arms = {}
    for with_restarts, name in PAIRS.items():
        arms[name] = {"wrong": texts_of(cosine)}
        arms[with_restarts] = {
            "wrong": texts_of(restarts),
            "wrong_on_one_cosine": texts_of(cosine),
        }
    return {"judging_images": 1000, "arms": arms, "cycles": [1, 3]}


# The seeds differ by far more than the arms, and come down over four epochs.
COSINE = [[400 + s, 300 + s, 200 + s, 100 + s] for s in (0, 100, 200, 300)]
FASTER, BETTER = (EXHIBIT.claims[n::2] for n in (0, 1))


def test_the_bar_is_a_point_above_what_the_seed_ends_with():
    pair = Pair.of("AdamWR", made_up(COSINE, COSINE))
    assert pair.bars == pytest.approx(np.array([0.11, 0.21, 0.31, 0.41]))
    assert WITHIN == 0.01
    reached = [[400, 109, 400, 400], [400, 211, 209, 400]]
    needed = Pair.of("AdamWR", made_up(COSINE[:2], reached)).epochs_needed()
    assert needed.cosine.tolist() == [4, 4] == needed.cosine_there.tolist()
    assert needed.restarts.tolist() == [2, 3]


def changed(epoch, *counts):
    """The runs of one cosine, but for one epoch, by so many answers in each seed."""
    runs = copy.deepcopy(COSINE)
    for run, count in zip(runs, counts, strict=True):
        run[epoch] += count
    return runs


@pytest.mark.parametrize(
    ("claims", "restarts", "verdict", "words"),
    [
        (FASTER, changed(1, -150, -151, -150, -151), "reproduced", "ahead by +"),
        (FASTER, changed(1, 50, 51, 50, 51), "not reproduced", "-1.26"),
        (FASTER, changed(1, -90, 50, -60, 50), "inconclusive", ""),
        (BETTER, changed(3, -5, -6, -5, -6), "reproduced", "+0.55"),
        (BETTER, changed(3, 5, 6, 5, 6), "not reproduced", "-0.55"),
        (BETTER, changed(3, -9, 5, -6, 5), "inconclusive", "+0.13"),
        (BETTER, changed(1, -191, -191, -191, -191), "not reproduced", "+0.00"),
    ],
)
def test_the_rules_are_decided_seed_by_seed(claims, restarts, verdict, words):
    assert len(claims) == len(PAIRS)
    for claim in claims:
        found = claim.judge(made_up(COSINE, restarts))
        assert found.verdict == verdict and words in found.ours
        assert "n = 4 paired seeds" in found.ours


def test_a_task_that_is_flat_soon_does_not_tell_what_is_faster():
    flat = [[105, 101, 101, 100]] * 4
    for claim in FASTER:
        found = claim.judge(made_up(flat, COSINE))
        assert found.verdict == "not tested here"
        assert found.ours.startswith("one cosine is within 1 point of its end after 1 ")


def test_each_claim_is_of_its_own_pair_and_not_of_the_run_beside_it():
    stored = made_up(COSINE, changed(3, -5, -6, -5, -6))
    stored["arms"]["AdamWR"] = {
        "wrong": texts_of(COSINE),
        "wrong_on_one_cosine": texts_of(changed(3, 90, 90, 90, 90)),
    }
    of_sgd, of_adam = (claim.judge(stored) for claim in BETTER)
    assert (of_sgd.verdict, of_adam.verdict) == ("reproduced", "not reproduced")
    assert of_sgd.ours.startswith("final test error: SGDWR 24.45%, SGDW 25.00%;")
    assert "AdamWR 25.00%, AdamW 25.00%" in of_adam.ours


@pytest.mark.slow("needs a real run")
def test_the_extent_is_that_of_the_run(stored):
    assert EXHIBIT.extent(stored).startswith("n = 2 seeds of each best cell, which 2 ")
    assert EXHIBIT.extent(stored).endswith(
        "; 3 epochs of 400 digits under noise, with restarts in cycles of 1, 2"
    )


@pytest.mark.slow("needs a real run")
def test_the_table_of_all_arms_fits_a_plain_terminal(stored):
    arms = stored["arms"]
    both = {**arms, "AdamW": arms["SGDW"], "AdamWR": arms["SGDWR"]}
    lines = in_a_plain_terminal(anytime.table({**stored, "arms": both}))
    for name in (*ARMS, "SGDW, same cell", "AdamW, same cell"):
        assert sum(line.startswith(f"{name}  ") for line in lines) == 1


@pytest.mark.parametrize(
    ("option", "given", "least"),
    [("seeds", 1, 2), ("tuning-seeds", 0, 1), ("first-cycle", 0, 1), ("cycles", 1, 2)],
)
def test_too_few_are_refused(tmp_path, option, given, least):
    words = f"`{option.replace('-', '_')}` must be >= {least}, got {given}"
    with pytest.raises(SystemExit, match=words):
        main([f"--{option}", str(given), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
