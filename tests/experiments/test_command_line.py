"""What `python -m experiments` says to a name, an option or a package it lacks."""

import json
import subprocess
import sys

import pytest

from experiments import __main__ as command_line
from experiments.__main__ import discover, listing
from experiments.train import main
from experiments.training import devices, interrupting
from tests.experiments.small_runs import ROOT


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_list_breaks_no_name(width):
    lines = listing(discover(), width).splitlines()
    assert set(discover()) <= set(lines)
    texts = [line for line in lines if line.startswith(" ")]
    assert max(map(len, texts)) <= width
    assert not any("  " in line.strip() for line in texts)
    words = " ".join(" ".join(lines).split())
    for header in discover().values():
        assert header.summary in words and header.takes in words
        assert f"results {header.results}" in words


def told(monkeypatch, capsys, *arguments):
    """What ends a command with these arguments; it prints nothing before."""
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    with pytest.raises(SystemExit) as error:
        command_line.main()
    assert not capsys.readouterr().out
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("step_tme", "step_time"),
        ("convx", "block_normalized_2017.convex"),
        ("novograd_2019.mode", "novograd_2019.modes"),
        ("Train", "spherical_2020.train or train"),
        ("experiments.tabel1", "spherical_2020.table1"),
        ("experiments/benchmarks/loop_time.py", "loop_time"),
        ("experiments/papers/novograd_2019/mode.py", "novograd_2019.modes"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(monkeypatch, capsys, name, near):
    said = told(monkeypatch, capsys, name)
    assert said.startswith(f"error: unknown experiment {name!r}; known: ")
    assert said.endswith(f"; did you mean {near}?")


def test_a_name_like_no_other_gets_none(monkeypatch, capsys):
    assert "did you mean" not in told(monkeypatch, capsys, "zzzz")


@pytest.mark.parametrize(
    ("optimizer", "near", "known"),
    [
        ({"name": "adamsrt", "lr": 0.1}, "learning_rate", "b1, b2, eps"),
        ({"name": "adam", "beta1": 0.5}, "b1", "b1, b2, eps"),
        ({"name": "sgd", "momentun": 0.9}, "momentum", "momentum, nesterov"),
        (
            {"name": "normalized", "inner": {"name": "sgd", "nestorov": True}},
            "nesterov",
            "momentum, nesterov",
        ),
        (
            {
                "name": "sgd",
                "learning_rate": {"name": "cosine_decay_schedule", "init_valu": 1},
            },
            "init_value",
            "init_value, decay_steps",
        ),
    ],
)
def test_an_unknown_option_gets_the_nearest_and_all(optimizer, near, known, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["--optimizer", json.dumps(optimizer), "--runs-dir", str(tmp_path / "a")])
    said = str(error.value)
    assert f"did you mean `{near}`?" in said and known in said
    assert "jax" not in said and "Union" not in said


@pytest.mark.parametrize("arguments", [["train"], ["novograd_2019.modes", "--help"]])
def test_without_the_extra_one_line_says_what_to_install(arguments):
    # In a process of its own, which has not imported the experiments yet.
    program = (
        f"import sys; sys.modules['tyro'] = None; sys.argv[1:] = {arguments}; "
        "from experiments.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    (said,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert said.startswith("error: the experiments need the package tyro, ")
    assert said.endswith("pip install -e '.[experiments]' -c constraints.txt")


def test_without_the_extra_the_list_ends_with_that_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.setattr(sys, "argv", ["experiments"])
    with pytest.raises(SystemExit, match="pip install -e '.\\[experiments\\]'"):
        command_line.main()
    assert "step_time" in capsys.readouterr().out


def test_the_program_s_own_missing_modules_are_no_missing_package(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(command_line.importlib, "import_module", absent)
    monkeypatch.setattr(sys, "argv", ["experiments", "train"])
    with pytest.raises(ModuleNotFoundError):
        command_line.main()


def test_an_interrupt_before_a_run_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.importlib, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["experiments", "train"])
    monkeypatch.setattr(interrupting, "install", lambda: None)
    with pytest.raises(SystemExit) as error:
        command_line.main()
    assert error.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_who_stops_early_sees_no_traceback():
    reader = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    reader.wait()
    listed = subprocess.run(
        [sys.executable, "-m", "experiments"],
        cwd=ROOT,
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(BrokenPipeError):
        reader.stdin.write(b"text")
        reader.stdin.close()
    assert not listed.stderr


@pytest.fixture
def environment(monkeypatch):
    """Nothing is set, and what the test sets is undone."""
    for name in devices.WITHOUT_CHIPS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return devices.os.environ


def with_libtpu(monkeypatch, is_there):
    found = object() if is_there else None
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: found)


def test_libtpu_without_a_chip_is_told_to_be_silent(tmp_path, monkeypatch, environment):
    with_libtpu(monkeypatch, True)
    environment["TPU_WORKER_HOSTNAMES"] = "mine"
    vendor = tmp_path / "sys/bus/pci/devices/0000:00:1f.0/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    devices.quieten_libtpu(tmp_path)
    expected = {**devices.WITHOUT_CHIPS, "TPU_WORKER_HOSTNAMES": "mine"}
    assert {name: environment.get(name) for name in expected} == expected
    assert "JAX_PLATFORMS" not in devices.WITHOUT_CHIPS


@pytest.mark.parametrize(
    "chip", ["sys/bus/pci/devices/0000:00:05.0/vendor", "dev/accel0", "dev/vfio/0"]
)
def test_a_tpu_s_settings_are_left_alone(tmp_path, monkeypatch, environment, chip):
    with_libtpu(monkeypatch, True)
    (tmp_path / chip).parent.mkdir(parents=True)
    (tmp_path / chip).write_text("0x1ae0\n")
    devices.quieten_libtpu(tmp_path)
    assert not set(devices.WITHOUT_CHIPS) & set(environment)


def test_without_libtpu_nothing_is_set(tmp_path, monkeypatch, environment):
    with_libtpu(monkeypatch, False)
    devices.quieten_libtpu(tmp_path)
    assert not set(devices.WITHOUT_CHIPS) & set(environment)
