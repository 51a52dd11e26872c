"""What `pip install normopt` gives: the wheel, its dependencies, the constraints."""

import email
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import normopt

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
INFO = f"normopt-{Version(PROJECT['version'])}.dist-info"

# Runs without site-packages: only what the two folders hold can be imported.
ALONE = """
import importlib.util, sys
wheel, dependencies, *absent = sys.argv[1:]
sys.path[:0] = [wheel, dependencies]
for name in absent:
    assert importlib.util.find_spec(name) is None, f"{name} is not kept out"
import normopt
assert normopt.__file__.startswith(wheel), normopt.__file__
"""
# The whole package, because a forgotten dependency may hide in any module of it.
IMPORT_ALL = """
import importlib, pkgutil
for module in pkgutil.walk_packages(normopt.__path__, "normopt."):
    importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: the build backend is in the test extra, no network is needed.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    built = subprocess.run(
        [*command, "--outdir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def runtime_requirements(name):
    """The requirements of an installed distribution that hold here without an extra."""
    requirements = map(Requirement, importlib.metadata.requires(name) or [])
    return [r for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]


def link_distributions(names, folder):
    """Links the files of distributions and of all they need; gives their names."""
    linked = set()
    wanted = [canonicalize_name(name) for name in names]
    while wanted:
        name = wanted.pop()
        if name in linked:
            continue
        linked.add(name)
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or []}
        for top in tops - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
        wanted += [canonicalize_name(r.name) for r in runtime_requirements(name)]
    return linked


def test_wheel_holds_normopt_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"normopt", INFO}
    assert "normopt/py.typed" in names
    assert f"{INFO}/licenses/LICENSE" in names
    sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "normopt").rglob("*.py")
    }
    assert sources <= names


def test_wheel_depends_on_jax_and_optax_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{INFO}/METADATA").decode()
    metadata = email.message_from_string(text)
    requirements = [Requirement(r) for r in metadata.get_all("Requires-Dist", [])]
    runtime = {r.name for r in requirements if "extra" not in str(r.marker or "")}
    assert runtime == {"jax", "optax"}
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(PROJECT["optional-dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == extras


@pytest.fixture
def beside(wheel, tmp_path):
    """Folders of the wheel and of what it needs, and names of what must be absent."""
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    linked = link_distributions(["jax", "optax"], dependencies)
    unpacked = tmp_path / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    # Older versions of optax need chex, so only what is truly not needed is kept out.
    absent = {"equinox", "flax", "chex", "matplotlib", "rich", "experiments"} - linked
    return unpacked, dependencies, *absent


def run_alone(code, folders, cwd):
    """Runs code that can import what the folders hold, and nothing else installed."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE + code, *folders],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_wheel_imports_beside_jax_and_optax_alone(beside, tmp_path):
    imported = run_alone(IMPORT_ALL, beside, tmp_path)
    assert imported.returncode == 0, imported.stderr


@pytest.mark.slow
def test_readme_s_first_example_runs_beside_jax_and_optax_alone(beside, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)[1]
    ran = run_alone(example, beside, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(example.splitlines()) <= 12


def test_the_module_tells_what_a_report_of_a_bug_needs(capsys):
    runpy.run_module("normopt", run_name="__main__")
    told = capsys.readouterr().out
    assert f"normopt {normopt.__version__}\n" in told
    for name in ("jax", "optax"):
        assert f"\n{name} {importlib.metadata.version(name)}\n" in told
    assert f"{jax.device_count()} cpu (" in told
    assert told.endswith(f"optimizers: {', '.join(normopt.names())}\n")


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_pin_versions_and_name_no_index(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        requirement = Requirement(pin)
        assert requirement.url is None, pin
        assert [s.operator for s in requirement.specifier] == ["=="], pin
    assert not re.search(r"://|--|^-", "\n".join(pins), re.MULTILINE)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_constraints_pin_each_package_once(python):
    """Two pins that hold on the same Python would leave pip without a solution."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(r) for r in re.findall(r"(?m)^[^#\n]+$", text)]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    names = [
        canonicalize_name(pin.name)
        for pin in pins
        if not pin.marker or pin.marker.evaluate(here)
    ]
    assert len(names) == len(set(names))
    assert {"jax", "jaxlib", "optax", "flax", "pyright", "ruff"} <= set(names)


def test_every_paper_of_a_docstring_can_be_cited():
    """By the number that arXiv gave it."""
    number = re.compile(r"(?<=arXiv[\s:])\s*(\d{4}\.\d{4,5})")
    sources = [
        path.read_text(encoding="utf-8") for path in (ROOT / "normopt").rglob("*.py")
    ]
    named = set(number.findall("\n".join(sources)))
    assert len(named) > 10
    assert named <= set(
        number.findall((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    )
