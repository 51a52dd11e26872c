"""Larger batches: what is tuned on what, what is judged, and when nothing is."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers.novograd_2019 import large_batches
from experiments.papers.novograd_2019.large_batches import (
    ARMS,
    EXHIBIT,
    LargeBatchesOptions,
    main,
    part,
    table,
)
from experiments.papers.novograd_2019.modes_training import start, train
from tests.experiments.report.test_claims import large_batches as good_and_bad
from tests.experiments.small_runs import in_a_plain_terminal, quiet

(CLAIM,) = EXHIBIT.claims


def test_a_batch_of_another_size_has_the_same_images_and_weights():
    one, other = start(0, epochs=2), start(0, epochs=2, batch=400)
    assert other.batches.shape == (2, 400)
    assert (one.batches.reshape(2, 400) == other.batches).all()
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_rates_rise_for_a_twentieth_of_the_steps_and_fall_to_zero(monkeypatch):
    def rates(optimizer, loss, params, batches):
        one, found = jnp.ones(()), []
        state = optimizer.init(one)
        for _ in batches:
            update, state = optimizer.update(one, state)
            found.append(float(-update))
        return found

    monkeypatch.setattr("experiments.training.many_runs.train", rates)
    begin = start(0, epochs=100, batch=400)
    warmed = train(optax.sgd, 2.0, begin, None, warm_up=large_batches.WARM_UP)
    assert warmed[:6] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
    assert np.argmax(warmed) == 5 and 0 < warmed[-1] < 0.01
    assert train(optax.sgd, 2.0, begin, None)[0] == 2.0


def test_the_rate_is_chosen_by_some_seeds_and_images_and_judged_on_others(
    tmp_path, monkeypatch
):
    seen = []

    def errors_at(make, rates, starts, task):
        seen.append((len(starts[0].batches), len(starts), np.log10(rates)))
        tuning = np.zeros((len(starts), len(rates))) + abs(np.arange(len(rates)) - 2)
        # On the images that judge, another rate would be the best.
        return tuning, 10 + abs(np.arange(len(rates)) - 4) + np.zeros_like(tuning)

    monkeypatch.setattr(large_batches, "errors_at", errors_at)
    config = LargeBatchesOptions(out=tmp_path, seeds=3, tuning_seeds=2, epochs=4)
    stored = large_batches.measure(config, quiet())
    assert [(steps, seeds) for steps, seeds, _ in seen] == [
        (steps, seeds) for steps in (4, 16, 80) for _ in ARMS for seeds in (2, 3)
    ]
    for (*_, tried), (*_, judged) in zip(seen[::2], seen[1::2], strict=True):
        assert len(tried) == 7 and judged.tolist() == [tried[2]]
    found = stored["found"][part("SGD", 400)]
    assert found["best"] == found["exponents"][2] == pytest.approx(-2.0)
    # The only rate of the fresh seeds is the first of what they are told.
    assert found["errors"] == [14.0] * 3


def test_each_seed_is_trained_by_its_own_batches():
    """A run that no step changes is wrong where its own first weights are."""
    task = large_batches.load_task()
    starts = [start(seed, epochs=1, batch=400) for seed in (0, 1)]
    tuning, judging = large_batches.errors_at(
        optax.sgd, np.array([0.0, 1e-9]), starts, task
    )
    assert tuning.shape == judging.shape == (2, 2)
    for seed, begin in enumerate(starts):
        wrong = np.asarray(large_batches.wrong_answers(begin.params, task))
        assert len(wrong) == 1797 - 400
        assert tuning[seed] == pytest.approx(wrong[:400].mean())
        assert judging[seed] == pytest.approx(wrong[400:].mean())
    assert abs(tuning - judging).min() > 0.001


def test_short_runs_and_rates_at_an_end_tell_nothing():
    good, bad = good_and_bad()
    assert CLAIM.judge(good).verdict == "reproduced"
    assert CLAIM.judge(bad).verdict == "not reproduced"
    found = CLAIM.judge(good | {"epochs": 499})
    assert found.verdict == "not tested here"
    assert found.ours == "499 steps of the largest batch; it takes 500"
    for name in ARMS:
        cut = copy.deepcopy(good)
        cut["found"][part(name, 400)]["best"] = -1.0
        found = CLAIM.judge(cut)
        assert found.verdict == "not tested here"
        assert found.ours.startswith(f"the best rate of {name} is at an end")


@pytest.mark.parametrize(
    ("batches", "words"),
    [((20, 30), "divisors of 400, got 30"), ((400, 20), "must rise"), ((), "rise")],
)
def test_sizes_that_cannot_be_trained_are_refused(batches, words, tmp_path):
    config = LargeBatchesOptions(out=tmp_path, batches=batches)
    with pytest.raises(ValueError, match=words):
        large_batches.measure(config, quiet())
    assert not list(tmp_path.iterdir())


def test_too_few_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path)])


def test_the_table_has_a_row_for_each_size_and_fits_a_plain_terminal():
    good, _ = good_and_bad()
    for name in ARMS:
        good["found"][part(name, 20)] = good["found"][part(name, 400)]
    rows = in_a_plain_terminal(table(good | {"seeds": 6}))
    for name in ARMS:
        assert sum(row.startswith(f"{name} ") for row in rows) == 2
