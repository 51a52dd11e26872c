"""Settings of all tests and doctests."""

import pytest

import normopt

# What runs the library for long without being the test of a line of it.
_UNTRACED = ("tests/experiments", "tests/test_optax_suite", "tests/test_properties")


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace: dict[str, object]) -> None:
    """Makes `normopt` known to doctests, as a reader of the documentation has it."""
    doctest_namespace["normopt"] = normopt


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Spares some tests the measuring of coverage, which takes a third of the time."""
    if config.pluginmanager.hasplugin("_cov"):
        for item in items:
            if item.nodeid.startswith(_UNTRACED):
                item.add_marker("no_cover")
