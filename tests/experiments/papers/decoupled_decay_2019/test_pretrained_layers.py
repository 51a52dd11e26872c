"""Pretrained layers: what is pretrained, what goes on how fast, and what is judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.decoupled_decay_2019 import pretrained_layers
from experiments.papers.decoupled_decay_2019.pretrained_layers import (
    EXHIBIT,
    FRACTIONS,
    PretrainedLayersOptions,
    between,
    errors_of,
    main,
    start,
    table,
    train,
)
from experiments.training import many_runs
from tests.experiments.report.test_claims import pretrained_layers as good_and_bad
from tests.experiments.small_runs import in_a_plain_terminal, quiet


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """None, for so short a training takes longer to compile."""


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(many_runs.standardised_digits()[0])


def test_the_halves_share_no_class_and_the_sets_no_image():
    _, labels = many_runs.standardised_digits()
    halves = set()
    for seed in (0, 1):
        begin = start(seed, epochs=2)
        assert begin.pretraining.shape == (2 * 800 // 20, 20)
        assert begin.training.shape == (40 * 50 // 10, 10)
        sets = [np.unique(some) for some in begin[3:]]
        assert [len(some) for some in sets] == [800, 50, 300, 400]
        assert len(np.unique(np.concatenate(sets))) == 1550
        known, *new = ({*labels[some].tolist()} for some in sets)
        assert len(known) == 5 and all(
            classes == {*range(10)} - known for classes in new
        )
        # Within its half each class has a place of its own.
        for some in sets:
            pairs = {(int(labels[k]), int(begin.labels[k])) for k in some}
            assert len(pairs) == 5 and {place for _, place in pairs} == {*range(5)}
        halves.add(frozenset(known))
    assert len(halves) == 2


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_pretrained_layers_have_a_fraction_of_the_rate(images, fraction):
    begin = start(0, epochs=1)
    # Adam's first step is the rate, wherever there is a gradient.
    once = begin.training[:2]

    def moved(fraction):
        ended = jax.jit(lambda c: train(begin.params, once, begin, images, 0.01, c))
        return jax.tree.map(
            lambda a, b: abs(a - b).max(), ended(fraction), begin.params
        )

    *convolutions, dense = moved(fraction)
    assert float(dense["kernel"]) == pytest.approx(0.01, rel=1e-3)
    for layer in convolutions:
        assert float(layer["kernel"]) == pytest.approx(0.01 * fraction, rel=1e-3)


def test_the_new_layer_stands_on_what_was_pretrained(images, monkeypatch):
    calls = []

    def traced(params, batches, start, images, rate=None, fraction=None):
        calls.append((params, batches.shape, rate is None))
        return jax.tree.map(lambda leaf: leaf + 1.0, params)

    monkeypatch.setattr(pretrained_layers, "train", traced)
    begin = start(0, epochs=1)
    errors = errors_of([begin] * 2, [(0.1, 0.01), (1.0, 0.01)], images)
    assert errors.shape == (2, 2, 2)
    (_, steps, first), (_, then, second) = calls
    assert (steps, first) == ((40, 20), True) and (then, second) == ((200, 10), False)
    ended = [jax.tree.map(lambda leaf: leaf + 2.0, layer) for layer in begin.params[:2]]
    ended.append(jax.tree.map(lambda leaf: leaf + 1.0, begin.new))
    for place, some in enumerate((begin.tuning, begin.judging)):
        alone = pretrained_layers.error(ended, begin, some, images)
        assert errors[..., place] == pytest.approx(float(alone))


def test_rates_are_chosen_by_some_seeds_and_images_and_judged_on_others(
    tmp_path, monkeypatch
):
    seen = []

    def errors(starts, settings, images):
        seen.append((len(starts), settings))
        fractions, rates = np.transpose(settings)
        tuning = abs(np.log10(rates) + 2) + fractions
        judging = abs(np.log10(rates) + 1) + fractions
        return np.array([np.stack([tuning, judging], axis=-1)] * len(starts))

    monkeypatch.setattr(pretrained_layers, "errors_of", errors)
    config = PretrainedLayersOptions(out=tmp_path, seeds=4, tuning_seeds=3)
    stored = pretrained_layers.measure(config, quiet())
    assert [seeds for seeds, _ in seen] == [3, 4] * 3
    for _, settings in seen[1::2]:
        np.testing.assert_allclose(settings, [(c, 0.01) for c in FRACTIONS])
    for found in stored["lengths"].values():
        assert np.shape(found["tuning"]) == (6, 6)
        assert found["best"] == pytest.approx([-2.0] * 6)
        assert found["errors"] == [pytest.approx([1 + c for c in FRACTIONS])] * 4


def test_the_fraction_that_is_judged_is_neither_none_nor_all():
    good, _ = good_and_bad()
    assert {between(good, name) for name in good["lengths"]} == {2}
    chosen = [[0.0], [0.5], [0.4], [0.3], [0.6], [0.0]]
    assert between({"lengths": {"a": {"tuning": chosen}}}, "a") == 3


def test_a_rate_at_an_end_tells_nothing():
    good, _ = good_and_bad()
    good["lengths"]["8 epochs"]["best"] = [-2.0] * 5 + [-1.0]
    for claim in EXHIBIT.claims:
        found = claim.judge(good)
        assert found.verdict == "not tested here"
        assert found.ours.startswith(
            "the best rate after 8 epochs with a fraction of 1"
        )


def test_the_table_has_a_row_for_each_fraction_and_fits_a_plain_terminal():
    good, _ = good_and_bad()
    for found in good["lengths"].values():
        found["best"] = [-2.25] * 6
    rows = in_a_plain_terminal(table(good | {"seeds": 100}))
    for word in ("frozen", *(f"{c:g}" for c in FRACTIONS[1:])):
        assert sum(row.startswith(f"{word} ") for row in rows) == 1


def test_too_few_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="`seeds` must be >= 2, got 1"):
        main(["--seeds", "1", "--out", str(tmp_path)])
