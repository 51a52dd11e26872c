"""What the list of experiments says, in README and in the terminal."""

from pathlib import Path

import pytest

from experiments.__main__ import discover, markdown

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_readme_s_table_is_that_of_the_headers():
    assert markdown() in README


@pytest.mark.parametrize(("name", "header"), discover().items())
def test_every_experiment_says_what_it_does_and_how_long_it_takes(name, header):
    assert header.summary.endswith(".")
    assert " on " in header.takes
    assert f"`{name.rpartition('.')[0]}`" in markdown() or "." not in name
