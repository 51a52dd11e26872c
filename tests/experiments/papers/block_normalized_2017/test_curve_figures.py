"""Figures and table of curves over some seeds, beside what the notebook printed."""

import numpy as np
import pytest

from experiments.papers.block_normalized_2017 import curve_figures
from experiments.papers.block_normalized_2017.curve_figures import (
    Published,
    draw,
    table,
)
from experiments.papers.block_normalized_2017.methods import METHODS
from experiments.report import figures

ACCURACIES = {"normalized SGD": 0.7722, "Adam": 0.9432, "normalized Adam": 0.9460}
QUANTITIES = [f"{s}_{q}" for s in ("train", "test") for q in ("loss", "accuracy")]


def stored(*lasts):
    """Curves of two epochs, for each seed the second value of all of them."""
    return {
        "config": {
            "data": "mnist",
            "images": 60_000,
            "test_images": 9_980,
            "learning_rates": {"SGD": [0.1], "Adam": [0.1]},
            "epochs_per_rate": 2,
        },
        "published": Published("printed", ACCURACIES)._asdict(),
        "seeds": {
            str(seed): {
                "curves": {m: {q: [0.5, last] for q in QUANTITIES} for m in METHODS}
            }
            for seed, last in enumerate(lasts)
        },
    }


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and returns the figure and its note instead of writing them."""

    def drawn(records, split):
        found = []
        monkeypatch.setattr(
            figures, "save", lambda f, _, note="": found.append((f, note))
        )
        draw(tmp_path / "figure.png", records, split)
        return found[0]

    return drawn


def test_the_mean_is_drawn_and_the_range_of_several_seeds(drawn):
    figure, _ = drawn(stored(0.2, 0.4), "train")
    accuracy = figure.axes[1]
    assert [line.get_label() for line in accuracy.lines] == list(METHODS)
    for line in accuracy.lines:
        np.testing.assert_allclose(line.get_ydata(), [0.5, 0.3])
    for band in accuracy.collections:
        heights = band.get_paths()[0].vertices[:, 1]
        assert {0.2, 0.4} <= set(heights)
    assert len(accuracy.collections) == len(METHODS)
    assert "mean of 2 seeds" in figure.get_suptitle()
    figure, _ = drawn(stored(0.2), "train")
    assert not figure.axes[1].collections
    assert "seeds" not in figure.get_suptitle()


def test_published_values_are_marked_at_the_right_edge_of_the_test_figure(drawn):
    figure, note = drawn(stored(0.2), "test")
    loss, accuracy = figure.axes
    low, high = accuracy.get_ylim()
    marks = [
        line.get_ydata()[0] for line in accuracy.lines if len(line.get_xdata()) == 1
    ]
    # What lies above our own runs does not stretch their axis.
    assert marks == [min(value, high) for value in ACCURACIES.values()]
    assert high < 0.6
    texts = [(text.get_text(), text.get_position()[1]) for text in accuracy.texts]
    names, places = zip(*texts, strict=True)
    assert names == ("normalized Adam 94.60%", "Adam 94.32%", "normalized SGD 77.22%")
    gaps = -np.diff(places) / (high - low)
    assert gaps.min() >= curve_figures._LINE - 1e-9
    assert not loss.texts and "9,980 test images" in figure.get_suptitle()
    assert note == "at the right edge: printed"


def test_nothing_is_published_of_the_training_images(drawn):
    figure, note = drawn(stored(0.2), "train")
    assert not figure.axes[1].texts and not note


def test_the_names_of_marks_lie_inside_of_the_figure(drawn):
    figure, _ = drawn(stored(0.2), "test")
    figure.draw_without_rendering()
    for text in figure.axes[1].texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1


def test_the_table_has_mean_deviation_and_number_of_the_seeds():
    shown = table(stored(0.2, 0.4))
    assert "mean ± standard deviation, n = 2" in shown.title
    assert [row[0] for row in shown.rows] == list(METHODS)
    assert shown.rows[0][1] == "0.300 ± 0.141" and shown.rows[3][4] == "30.00 ± 14.14"
    assert "the test's over 9,980 images" in shown.caption
    assert "printed: normalized SGD 77.22 %, Adam 94.32 %" in shown.caption
    alone = table(stored(0.2))
    assert alone.title.endswith("after the last epoch, n = 1")
    assert [row[4] for row in alone.rows] == ["20.00"] * 4
