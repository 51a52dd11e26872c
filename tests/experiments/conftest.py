"""Compiles each step once for the whole suite, child processes included."""

import contextlib
import json

import jax
import pytest

from experiments import provenance


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
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


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """What the `main` that a test module imports writes in a smoke run."""
    out = tmp_path_factory.mktemp("runs") / "made" / "by the command"
    request.module.main(["--smoke", "--out", str(out)])
    return out / "smoke"


@pytest.fixture(scope="module")
def stored(folder):
    (records,) = folder.glob("*.json")
    return json.loads(records.read_text())
