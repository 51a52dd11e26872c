"""Settings of all tests and doctests."""

import hypothesis
import pytest

import normopt

# The same examples in every run; compilation takes longer than any sensible deadline.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace: dict[str, object]) -> None:
    """Makes `normopt` known to doctests, as a reader of the documentation has it."""
    doctest_namespace["normopt"] = normopt
