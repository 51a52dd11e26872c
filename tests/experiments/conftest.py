"""Compiles each step once for the whole suite, child processes included."""

import json
import os

import jax
import pytest

CACHE = "jax_compilation_cache_dir"
MINIMUM = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    settings = {CACHE: str(tmp_path_factory.mktemp("compiled")), MINIMUM: 0.2}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setitem(os.environ, name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


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
