"""The Makefile's set-up of .venv, with stand-ins for Python: nothing is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ["sh", "rm", "mv", "cat", "mkdir", "chmod", "touch", "sleep"]

pytestmark = pytest.mark.skipif(
    not shutil.which("make") or os.name != "posix", reason="needs make and a Unix shell"
)

# A Python of this version. Its `-m venv` makes a .venv whose Python writes down what
# it is asked to install; PIP, if it is set, is the shell command that pip then runs.
STAND_IN = """#!/bin/sh
case "$1 $2" in
"-c "*)
  exec "{real}" -I -c "import sys
sys.version_info, sys.version = {version}, '{version}'
{setup}
exec(sys.argv[1])" "$2" ;;
"--version "*)
  echo "Python {version}" ;;
"-m venv")
  [ "$3" = --clear ] && rm -rf .venv && mkdir -p .venv/bin
  echo "venv {version}" >> log
  cat "$0" > .venv/bin/python
  chmod +x .venv/bin/python ;;
"-m pip")
  shift 3
  echo "pip $*" >> log
  eval "${{PIP:-true}}" ;;
*)
  exit 2 ;;
esac
"""
BROKEN = "#!/bin/sh\necho 'version not installed' >&2\nexit 127\n"
NO_VENV = "sys.modules['ensurepip'] = None"


def stand_in(version, setup=""):
    return STAND_IN.format(real=sys.executable, version=version, setup=setup)


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
