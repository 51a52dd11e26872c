"""Python's own sources as a text: which files, in which order, cut how."""

import dataclasses
import functools
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data import stdlib, text
from experiments.data.augment import AUGMENTATIONS, Crop

SOURCES = {
    "abc.py": b"one\r\n",
    "json/__init__.py": b"two\n",
    "json/decoder.py": b"three\n",
    "json/deep/inner.py": b"four\n",
    "unittest/test/case.py": b"a test\n",
    "sqlite3/tests.py": b"no folder of tests\n",
    "test/test_json.py": b"a test\n",
    "encodings/ascii.py": b"a table\n",
    "somebody_elses.py": b"foreign\n",
    "json/data.txt": b"no source\n",
}
TAKEN = ["abc.py", "json/__init__.py", "json/decoder.py", "json/deep/inner.py"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name, source in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(source)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def test_fixed_modules_are_taken_in_order_where_they_are_there(root):
    found = [path.relative_to(root).as_posix() for path in stdlib.files(root)]
    assert found == [*TAKEN, "sqlite3/tests.py"]
    assert not {"test", "idlelib", "lib2to3"} & set(stdlib.MODULES)


def test_a_file_stays_in_its_split_whatever_others_there_are(root, monkeypatch):
    splits = ["train", "test", "validation", "train", "train"]
    by_name = dict(zip([*TAKEN, "sqlite3/tests.py"], splits, strict=True))
    monkeypatch.setattr(stdlib, "split_of", by_name.get)
    loaded = stdlib.load()
    assert loaded.train.text.tobytes() == b"one\nfour\nno folder of tests\n"
    assert loaded.test.text.tobytes() == b"two\n"
    (root / "abc.py").unlink()
    other = stdlib.load()
    assert other.train.text.tobytes() == b"four\nno folder of tests\n"
    assert other.fingerprint()["sha256"] != loaded.fingerprint()["sha256"]


def test_the_hash_of_a_name_holds_a_twentieth_out():
    splits = [stdlib.split_of(f"module_{n}.py") for n in range(4000)]
    for held_out in ("validation", "test"):
        assert 0.04 < splits.count(held_out) / len(splits) < 0.06
    # Another hash would move every file.
    assert [stdlib.split_of(name) for name in TAKEN] == ["train"] * 4


def test_a_python_without_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="needs the sources of Python 3"):
        stdlib.load()


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'stdlib' comes with Python"):
        data.load("stdlib", tmp_path)


def test_this_python_has_enough_text():
    loaded = data.load("stdlib")
    sizes = loaded.fingerprint()
    assert 5e6 < sizes["train"] < 12e6
    assert sizes["validation"] > 1e5 and sizes["test"] > 1e5
    assert sizes["python"] == stdlib.python()
    assert b"def __init__(self" in loaded.train.text.tobytes()
    # An epoch is no longer than some hundred steps.
    assert len(loaded.train) == len(loaded.train.text) // text.STRETCH


def test_a_crop_begins_anywhere_and_foresees_the_next_byte():
    whole = text.Text(np.arange(20, dtype=np.uint8), stride=6, length=6 + 3)
    assert len(whole) == 2
    starts = []
    for key in jax.random.split(jax.random.key(0), 100):
        inputs, _ = whole.take(jnp.arange(2), functools.partial(Crop(4), key))
        starts += inputs[:, 0].tolist()
    assert set(starts) == set(range(12))
    counts = np.bincount(starts)
    assert counts.min() > 5 and counts.max() < 35
    inputs, following = whole.take(jnp.array([1]))
    assert inputs.tolist() == [[*range(6, 14)]]
    np.testing.assert_array_equal(following, inputs + 1)


def test_windows_that_are_whole_are_all_that_count():
    numbers = np.arange(21, dtype=np.uint8)
    for size, windows in ((3, 0), (4, 1), (7, 2), (9, 2), (10, 3)):
        assert len(text.Text(numbers[:size], stride=3, length=4)) == windows


def test_a_data_set_is_cut_for_its_purposes():
    rest = {"validation": np.zeros(99_999, np.uint8), "test": np.zeros(999, np.uint8)}
    train = np.arange(9000) % 251
    cut = text.cut("cut", train=train.astype(np.uint8), **rest, origin={})
    crop = AUGMENTATIONS["stdlib"]
    assert cut.train.length - crop.length == text.STRETCH - 1
    assert 0 <= text.VALIDATION_WINDOWS - len(cut.validation) < 3
    assert len(cut.test) == 999 // text.CONTEXT
    few, following = cut.few(3)
    assert few.shape == (3, text.CONTEXT) and few[1, 0] == text.CONTEXT
    np.testing.assert_array_equal(few[:, 1:], following[:, :-1])
    other = dataclasses.replace(cut, origin={"python": "4"})
    assert other.fingerprint() != cut.fingerprint()
    assert cut.score(np.log(2), 0, 1) == {"bits_per_byte": 1.0}
