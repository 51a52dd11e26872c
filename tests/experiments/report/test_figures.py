"""What a figure is made of is told whole, so that two can be compared."""

import pytest
from matplotlib.figure import Figure

from experiments.report import figures, observed_blocks
from normopt import Equilibrium
from tests.experiments.drawings import figure_of


def test_a_png_holds_the_words_and_numbers_of_its_figure(tmp_path):
    figure = Figure(figsize=(4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("above")
    left.plot([1, 2], [1 / 3, 4], label="a line")
    left.errorbar([1], [5], [2])
    left.fill_between([0, 1], [2, 2], [3, 3])
    left.set(title="left", xlabel="x", ylabel="y")
    left.legend(title="lines")
    image = right.imshow([[1, 2], [3, 12345.6]])
    right.scatter([7], [8])
    right.annotate("here", (0, 0))
    figure.colorbar(image, ax=right)
    figures.save(figure, tmp_path / "figure.png", "a note")
    (width, height), drawn = figure_of(tmp_path / "figure.png")
    # The note adds a quarter of an inch; an inch has 140 dots.
    assert (width, height) == (560, 455)
    words = ["above", "a note", "left", "x", "y", "lines", "a line", "here"]
    assert [word for word in drawn["words"] if word] == words
    line, dot, bar, area, values, place = drawn["numbers"]
    assert line == [1, 0.3333, 2, 4] and dot == [1, 5] and bar == [1, 3, 1, 7]
    corners = set(zip(area[::2], area[1::2], strict=True))
    assert corners == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert values == [1, 2, 3, 12350] and place == [7, 8]


@pytest.mark.parametrize(
    ("steps", "markers"), [((4,), [".", "_", ".", ".", "_"]), ((4, 8), ["None"] * 5)]
)
def test_a_single_record_of_blocks_is_dots(steps, markers, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        observed_blocks, "save", lambda figure, path: drawn.append(figure)
    )
    seen = {"w/weight": 2.0, "w/relative_step": 0.1, "w/angle": 0.1}
    records = [{"step": step, **seen} for step in steps]
    predicted = {"w": [Equilibrium(length=3.0, angle=0.2)] * len(steps)}
    observed_blocks.draw(tmp_path, records, ["w"], predicted, "a run")
    lines = [line for axes in drawn[0].axes[:3] for line in axes.lines]
    assert [line.get_marker() for line in lines] == markers
