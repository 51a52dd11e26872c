"""Settings of all tests and doctests."""

import pytest

import normopt


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace: dict[str, object]) -> None:
    """Makes `normopt` known to doctests, as a reader of the documentation has it."""
    doctest_namespace["normopt"] = normopt
