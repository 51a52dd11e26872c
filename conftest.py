"""Settings of all tests and doctests."""

import gc
import os

import jax
import pytest

import normopt

# What runs for long lines of the library that other tests run, too.
_UNTRACED = (
    "tests/experiments",
    "tests/optimizers",
    "tests/test_contract",
    "tests/invariance/test_searching.py::test_finds_the_truth",
    "tests/test_optax_suite",
    "tests/test_properties",
    "tests/test_readme",
    "tests/transforms/test_normalizing",
)
_LOCATIONS = "jax_traceback_in_locations_limit"


def pytest_configure() -> None:
    """Has JAX use the CPU unless it is told otherwise, and spares it two things.

    A library for TPUs that finds none would complain, and the tests look at what their
    programs print. What takes a seventh of the time of tracing and is looked at nowhere
    is the line of code of each operation, and a search through all objects for unused
    cycles at each 700 new ones.
    """
    jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
    gc.set_threshold(100_000, 50, 100)
    jax.config.update(_LOCATIONS, 0)
    os.environ[_LOCATIONS.upper()] = "0"  # of child processes


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
