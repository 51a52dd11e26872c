"""The Makefile's set-up of .venv, with stand-ins for Python: nothing is installed.

And its other end, the oldest versions that are declared and tested.
"""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TOOLS = ["sh", "rm", "mv", "cat", "mkdir", "chmod", "touch", "sleep", "sed", "awk"]

pytestmark = pytest.mark.skipif(
    not shutil.which("make") or os.name != "posix", reason="needs make and a Unix shell"
)

# A Python of this version. Its `-m venv` makes a folder whose Python writes down what
# it is asked to install and that it tests; PIP and PYTEST, if they are set, are the
# shell commands that these then run.
STAND_IN = """#!/bin/sh
case "$1 $2" in
"-c "*)
  exec "{real}" -I -c "import sys
sys.version_info, sys.version = {info}, '{version}'
{setup}
exec(sys.argv[1])" "$2" ;;
"--version "*)
  echo "Python {version}" ;;
"-m venv")
  [ "$3" = --clear ] && rm -rf "$4" && mkdir -p "$4/bin"
  echo "${{4#.}} {version}" >> log
  cat "$0" > "$4/bin/python"
  chmod +x "$4/bin/python" ;;
"-m pip")
  shift 3
  echo "pip $*" >> log
  eval "${{PIP:-true}}" ;;
"-m pytest")
  echo "pytest in $0" >> log
  eval "${{PYTEST:-true}}" ;;
*)
  exit 2 ;;
esac
"""
BROKEN = "#!/bin/sh\necho 'version not installed' >&2\nexit 127\n"
NO_VENV = "sys.modules['ensurepip'] = None"


def stand_in(version, setup=""):
    info = (*version, "final", 0)[:5]
    return STAND_IN.format(real=sys.executable, version=version, info=info, setup=setup)


class Project:
    """A copy of what the set-up reads, and a PATH with nothing but stand-ins."""

    def __init__(self, folder):
        # A space in the path must not matter.
        self.folder = folder / "my project"
        self.bin = folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
            shutil.copy(ROOT / name, self.folder)
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def add_python(self, name, text):
        # An absolute name stands for itself.
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *arguments, **env):
        # Nothing of a make that runs these tests may reach this one.
        make = str(shutil.which("make"))
        done = subprocess.run(
            [make, *(arguments or ["install"])],
            cwd=self.folder,
            env={"PATH": str(self.bin), **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        log = self.folder / "log"
        ran = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return done, ran

    @property
    def stamps(self):
        return sorted(path.name for path in (self.folder / ".venv").glob("installed-*"))


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


# What is installed, with room for the extras.
PIP = "pip --disable-pip-version-check -c constraints.txt -e .[{}]"


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": (3, 12, 1), "python3.13": (3, 13, 0)}, (3, 12, 1)),
        ({"python3": None, "python3.13": None, "python3.12": (3, 12, 1)}, (3, 12, 1)),
        ({"python3": (3, 9, 2), "python3.11": (3, 11, 7)}, (3, 11, 7)),
        ({"python3": (3, 9, 2), "python3.13": (3, 13, 0)}, (3, 13, 0)),
        ({"python3": (3, 14, 0)}, (3, 14, 0)),
    ],
    ids=["first", "broken-shims", "too-old", "too-old-then-newest", "newer"],
)
def test_takes_the_first_python_that_runs(project, pythons, chosen):
    for name, version in pythons.items():
        project.add_python(name, stand_in(version) if version else BROKEN)
    done, ran = project.make()
    assert done.returncode == 0, done.stderr
    assert ran == [f"venv {chosen}", PIP.format("dev")]
    assert project.stamps == ["installed-cpu"]


NONE_RUNS = (
    "normopt needs Python 3.11 or newer and none of python3 python3.13 python3.12 "
    "python3.11 runs here and is that new: install one or name one with PYTHON=."
)


@pytest.mark.parametrize(
    ("pythons", "arguments", "sentence"),
    [
        ({}, [], NONE_RUNS),
        ({"python3": BROKEN}, [], NONE_RUNS),
        ({"python3": stand_in((3, 10, 9))}, [], NONE_RUNS),
        (
            {"python3": stand_in((3, 12, 1)), "old": stand_in((3, 10, 9))},
            ["PYTHON=old"],
            "PYTHON=old does not run or is older than 3.11: name a Python that is 3.11 "
            "or newer.",
        ),
        (
            {"python3": stand_in((3, 11, 2), NO_VENV)},
            [],
            "python3 cannot make a virtual environment: install its venv module (on "
            "Debian and Ubuntu the package python3-venv) or name another Python with "
            "PYTHON=.",
        ),
    ],
    ids=["none", "broken", "too-old", "PYTHON-too-old", "no-venv"],
)
def test_stops_with_one_sentence_and_no_venv(project, pythons, arguments, sentence):
    for name, text in pythons.items():
        project.add_python(name, text)
    done, ran = project.make("install", *arguments)
    assert done.returncode == 2
    # make itself adds a line that names the target.
    lines = [x for x in done.stderr.splitlines() if not x.startswith("make")]
    assert lines == [sentence]
    assert done.stdout == ""
    assert ran == []
    assert not (project.folder / ".venv").exists()


def test_an_unknown_jax_stops_with_the_known_ones(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    done, ran = project.make("train", "JAX=cuda11")
    assert done.returncode == 2
    sentence = "JAX=cuda11 is unknown: give one of cpu cuda12 cuda13 tpu"
    assert sentence in done.stderr
    assert ran == []


def test_the_second_make_does_nothing(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_into_the_same_venv(project, name):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    stamp = project.folder / ".venv" / "installed-cpu"
    os.utime(stamp, (1, 1))
    os.utime(project.folder / name, (2, 2))
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [PIP.format("dev")])


def test_an_interrupted_set_up_starts_over(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    # The shell that make started is the parent of pip's: both die at once.
    done, _ = project.make(PIP="kill -9 $PPID $$")
    assert done.returncode == 2
    assert project.stamps == []
    done, ran = project.make()
    assert done.returncode == 0, done.stderr
    assert ran == ["venv (3, 12, 1)", PIP.format("dev")]
    assert project.stamps == ["installed-cpu"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_signal_leaves_the_mark_of_an_unfinished_set_up(project, number, shell):
    """A pip that catches the signal ends with a plain failure, yet half-way."""
    # bash, some systems' sh, goes on after such a pip unless it is told not to.
    if not (shell_path := shutil.which(shell)):
        pytest.skip(f"there is no {shell}")
    project.add_python("python3", stand_in((3, 12, 1)))
    pip = "trap 'exit 1' INT TERM; touch started; while :; do sleep 0.1; done"
    # A test run in the background ignores SIGINT, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [str(shutil.which("make")), "install", f"SHELL={shell_path}"],
        cwd=project.folder,
        env={"PATH": str(project.bin), "PIP": pip},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        for _ in range(300):
            if (project.folder / "started").exists():
                break
            time.sleep(0.1)
        # As a terminal does: to make, its shell and pip at once.
        os.killpg(process.pid, number)
        assert process.wait(30) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (project.folder / ".venv" / "unfinished").exists()
    (project.folder / "log").unlink()
    _, ran = project.make()
    assert ran == ["venv (3, 12, 1)", PIP.format("dev")]


def test_a_venv_made_by_hand_is_kept(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    (project.folder / ".venv" / "installed-cpu").unlink()
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [PIP.format("dev")])


def test_a_failed_pip_is_tried_again_in_the_same_venv(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    done, _ = project.make(PIP="false")
    assert done.returncode == 2
    assert "pip could not install normopt" in done.stderr
    assert project.stamps == []
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [PIP.format("dev")])


def test_another_jax_makes_another_venv_and_stays(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    done, ran = project.make("install", "JAX=cuda12")
    assert ran == ["venv (3, 12, 1)", PIP.format("dev,cuda12")]
    assert project.stamps == ["installed-cuda12"]
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [])
    done, ran = project.make("install", "JAX=cpu")
    assert ran == ["venv (3, 12, 1)", PIP.format("dev")]


def test_PYTHON_chooses_and_changes_the_interpreter(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    other = project.add_python("other", stand_in((3, 13, 0)))
    project.make()
    done, ran = project.make("install", f"PYTHON={other}")
    assert ran == ["venv (3, 13, 0)", PIP.format("dev")]
    done, ran = project.make("install", f"PYTHON={other}")
    assert (done.returncode, ran) == (0, [])
    done, ran = project.make()
    assert (done.returncode, ran) == (0, [])


def test_a_venv_whose_python_is_gone_is_made_afresh(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    python = project.folder / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("gone")
    _, ran = project.make()
    assert ran == ["venv (3, 12, 1)", PIP.format("dev")]


def test_train_passes_its_arguments_on(project):
    project.add_python("python3", stand_in((3, 12, 1)))
    project.make()
    done, _ = project.make("-n", "train", "ARGS=--dataset mnist --data-dir 'my data'")
    command = ".venv/bin/python -m experiments train --dataset mnist"
    assert f"{command} --data-dir 'my data'" in done.stdout


def test_help_lists_every_target(project):
    done, _ = project.make("help")
    phony = re.findall(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text())
    listed = re.findall(r"(?m)^  make ([^ ]+) +[^ ]", done.stdout)
    # `afresh` is no target to ask for: it makes .venv out of date.
    assert {*listed, "afresh"} == set(phony[0].split())


OLDEST = "pip --disable-pip-version-check -c constraints-oldest.txt -e .[test]"
NEWEST = "pip --disable-pip-version-check -e .[test]"
ON_OLDEST = ["venv-oldest (3, 11, 7)", OLDEST, "pytest in .venv-oldest/bin/python"]
ON_NEWEST = ["venv-newest (3, 13, 0)", NEWEST, "pytest in .venv-newest/bin/python"]


@pytest.fixture
def both(project):
    """A project with a Python for each end of the versions, and one between."""
    project.add_python("python3", stand_in((3, 12, 1)))
    project.add_python("python3.11", stand_in((3, 11, 7)))
    project.add_python("python3.13", stand_in((3, 13, 0)))
    return project


def test_versions_are_tested_at_both_ends(both):
    done, ran = both.make("test-versions")
    assert done.returncode == 0, done.stderr
    assert ran == ON_OLDEST + ON_NEWEST
    ends = [line.split(" with Python ")[0] for line in done.stdout.splitlines()[-2:]]
    assert ends == ["oldest: passed", "newest: passed"]
    for package in ("jax", "optax", "flax"):
        assert f", {package} {importlib.metadata.version(package)}" in done.stdout
    assert not (both.folder / ".venv").exists()
    both.make("clean")
    assert not list(both.folder.glob(".venv*"))


def test_versions_take_the_newest_final_python_of_pyenv(project, tmp_path):
    project.add_python("pyenv", f"#!/bin/sh\necho '{tmp_path}/py env'\n")
    for name, version in {
        "3.11.7": (3, 11, 7),
        "3.11.12": (3, 11, 12),
        "3.9.1": (3, 9, 1),
        "3.13.9": (3, 13, 9),
        "3.14.2": (3, 14, 2),
        "3.15.0b1": (3, 15, 0, "beta", 1),
    }.items():
        bin_folder = tmp_path / "py env" / "versions" / name / "bin"
        bin_folder.mkdir(parents=True)
        project.add_python(bin_folder / "python", stand_in(version))
    done, ran = project.make("test-versions")
    assert done.returncode == 0, done.stderr
    venvs = [line for line in ran if line.startswith("venv")]
    assert venvs == ["venv-oldest (3, 11, 12)", "venv-newest (3, 14, 2)"]


@pytest.mark.parametrize(
    ("python", "ran_on", "sentence"),
    [
        ((3, 11, 7), ON_OLDEST, "newest: skipped, no Python 3.13 or newer runs here"),
        ((3, 13, 0), ON_NEWEST, "oldest: skipped, no Python 3.11 runs here"),
        ((3, 12, 1), [], "oldest: skipped, no Python 3.11 runs here"),
    ],
)
def test_versions_skip_an_end_that_has_no_python(project, python, ran_on, sentence):
    project.add_python("python3", stand_in(python))
    project.add_python("python3.13", BROKEN)
    done, ran = project.make("test-versions")
    assert (done.returncode, ran) == (0, ran_on)
    assert sentence in done.stdout.splitlines()


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_versions_fail_where_one_end_does(both, end):
    done, ran = both.make("test-versions", PYTEST=f"[ $0 != .venv-{end}/bin/python ]")
    assert (done.returncode, ran) == (2, ON_OLDEST + ON_NEWEST)
    assert f"\n{end}: FAILED with Python " in done.stdout
    assert done.stdout.count(": passed with Python ") == 1


def test_versions_fail_where_pip_does(both):
    done, ran = both.make("test-versions", PIP="false")
    assert (done.returncode, ran) == (2, ON_OLDEST[:2] + ON_NEWEST[:2])
    assert done.stdout.count(": FAILED, the lines above say why nothing ran\n") == 2


WARNS = "import warnings\n\ndef warn():\n    warnings.warn('old', {}, stacklevel={})\n"
# A package's warning of what it deprecates names, by the stack level, who calls that.
CALLS = "import other.package\n\ndef warn():\n    other.package.warn()\n"
MODULES = {
    "other.package": WARNS.format("DeprecationWarning", 2),
    "other.normopt": CALLS,
    "normopts.inside": CALLS,
    "normopt": WARNS.format("UserWarning", 1),
    "normopt.deep.inside": WARNS.format("DeprecationWarning", 1),
    "normopt.deep.caller": CALLS,
    "experiments.caller": CALLS,
}


def test_versions_hold_normopt_alone_to_its_warnings(both):
    for module, text in MODULES.items():
        path = both.folder.joinpath(*module.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(text)
    # Tests of the experiments stay out of the run.
    (both.folder / "tests" / "experiments").mkdir(parents=True)
    (both.folder / "tests" / "experiments" / "test_not.py").write_text("assert False")
    (both.folder / "tests" / "test_each.py").write_text(
        "import importlib, pytest\n"
        f"@pytest.mark.parametrize('module', {list(MODULES)})\n"
        "def test_each(module): importlib.import_module(module).warn()\n"
    )
    (both.bin / "python3.13").unlink()
    itself = f'"{sys.executable}" "$@"'
    done, _ = both.make("test-versions", "WORKERS=0", PYTEST=itself)
    assert done.returncode == 2
    failed = re.findall(r"(?m)^FAILED .*?\[(.+)\]", done.stdout)
    assert failed == [
        "normopt",
        "normopt.deep.inside",
        "normopt.deep.caller",
        "experiments.caller",
    ]
    assert "4 failed, 3 passed" in done.stdout


def test_the_oldest_versions_are_the_declared_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    assert len(pinned) == len(pins)
    declared = project["dependencies"] + project["optional-dependencies"]["test"]
    for requirement in map(Requirement, declared):
        (bound,) = requirement.specifier
        (pin,) = pinned[canonicalize_name(requirement.name)]
        assert (bound.operator, pin.operator) == (">=", "=="), requirement
        assert Version(bound.version) == Version(pin.version), requirement
    assert pinned["jaxlib"] == pinned["jax"]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(">=3.11")
