"""What all tests of experiments share: programs, smoke runs, and plain surroundings."""

import contextlib
import functools
import json
from pathlib import Path

import jax
import matplotlib
import pytest

from experiments.training import provenance


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Compiles each step once for the whole suite, child processes included."""
    with _settings(
        jax_compilation_cache_dir=str(tmp_path_factory.mktemp("compiled")),
        jax_persistent_cache_min_compile_time_secs=0.2,
    ):
        yield


@pytest.fixture(scope="module", autouse=True)
def _optimizations():
    """Programs that train run often, so it pays that XLA optimizes them.

    A module where it does not has a fixture of this name that leaves them alone.
    """
    with _settings(jax_disable_most_optimizations=False):
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_surroundings():
    """Nothing of what a user has set up for terminals and figures counts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "xterm")
        matplotlib.rcdefaults()
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_commit():
    """Somebody may commit while the tests run: to them, this is no checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_ROOT", Path("absent"))
        yield


@contextlib.contextmanager
def _settings(**settings):
    """Set options of JAX here and in child processes."""
    before = {name: jax.config.values[name] for name in settings}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                jax.config.update(name, value)
                patch.setenv(name.upper(), str(value))
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def committed(monkeypatch):
    """Parts are kept only by a program that its commit tells."""
    monkeypatch.setattr(provenance, "is_known", lambda _: True)


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory):
    """From an experiment's `main` to the folder of its smoke run, which is run once."""

    @functools.cache
    def made(main):
        out = tmp_path_factory.mktemp("runs") / "made" / "by the command"
        main(["--smoke", "--out", str(out)])
        return out / "smoke"

    return made


@pytest.fixture(scope="module")
def folder(request, smoke_folder):
    """That of the `main` that a test module imports."""
    return smoke_folder(request.module.main)


@pytest.fixture(scope="module")
def stored(folder):
    (records,) = folder.glob("*.json")
    return json.loads(records.read_text())
