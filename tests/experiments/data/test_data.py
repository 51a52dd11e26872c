"""The loaders on tiny files in the official formats, and on every kind of bad one."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from experiments import data

COUNTS = {"train": 40, "test": 7}


def rng():
    return np.random.default_rng(0)


def idx(array):
    magic = 0x0800 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_mnist(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 40), ("t10k", 7)):
        images = rng().integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))


def cifar_records(n, label_bytes, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    labels = np.stack([np.arange(n) % 10] * label_bytes, axis=1).astype(np.uint8)
    return np.concatenate([labels, pixels], axis=1)


def write_cifar10(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, n in enumerate((8, 7, 9, 8, 8), start=1):
        cifar_records(n, 1, i).tofile(folder / f"data_batch_{i}.bin")
    cifar_records(7, 1).tofile(folder / "test_batch.bin")


def write_cifar100(folder):
    folder.mkdir(parents=True, exist_ok=True)
    cifar_records(40, 2).tofile(folder / "train.bin")
    cifar_records(7, 2).tofile(folder / "test.bin")


def write_svhn(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in COUNTS.items():
        images = rng().integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        path = folder / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images, "y": labels}, do_compression=True)


WRITERS = {
    "mnist": (write_mnist, "mnist", (28, 28, 1), 10),
    "cifar10": (write_cifar10, "cifar-10-batches-bin", (32, 32, 3), 10),
    "cifar100": (write_cifar100, "cifar-100-binary", (32, 32, 3), 100),
    "svhn": (write_svhn, "svhn", (32, 32, 3), 10),
}
# SVHN's files count from 1.
EXPECTED = {name: np.arange(7) + (name == "svhn") for name in WRITERS}
ORIGINS = {
    "mnist": "yann.lecun.com/exdb/mnist",
    "cifar10": "www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "www.cs.toronto.edu/~kriz/cifar.html",
    "svhn": "ufldl.stanford.edu/housenumbers",
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("inside", ["", "official", "any name"])
def test_reads_the_official_files_from_their_folder_or_its_parent(
    tmp_path, name, inside
):
    write, official, shape, classes = WRITERS[name]
    write(tmp_path / (official if inside == "official" else inside))
    dataset = data.load(name, tmp_path)
    assert (len(dataset.train), len(dataset.validation)) == (38, 2)
    assert len(dataset.test) == 7
    assert dataset.num_classes == classes
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.shape == (len(split), *shape)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.test.labels, EXPECTED[name])


@pytest.mark.parametrize("name", WRITERS)
def test_normalisation_is_that_of_the_training_split(tmp_path, name):
    WRITERS[name][0](tmp_path)
    dataset = data.load(name, tmp_path)
    pixels = dataset.train.images.astype(np.float64)
    # Float32 holds seven digits.
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_splits_are_disjoint_fixed_and_cover_everything(tmp_path):
    write_cifar100(tmp_path)
    first, second = data.load("cifar100", tmp_path), data.load("cifar100", tmp_path)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    images = np.concatenate([first.train.images, first.validation.images])
    assert len({image.tobytes() for image in images}) == 40


def test_the_first_images_alone_have_their_own_mean():
    digits = data.load("digits")
    part = digits.first(100)
    np.testing.assert_array_equal(part.train.images, digits.train.images[:100])
    np.testing.assert_allclose(part.mean, digits.train.images[:100].mean(), rtol=1e-6)
    assert len(part.test) == len(digits.test)
    assert len(part.validation) == len(digits.validation)


@pytest.mark.parametrize("images", [0, 1258])
def test_a_part_is_no_more_than_the_whole(images):
    with pytest.raises(ValueError, match=f"`images` must be .* 1257, got {images}"):
        data.load("digits").first(images)


def test_cifar_planes_become_channels(tmp_path):
    write_cifar10(tmp_path)
    record = cifar_records(7, 1)[3]
    image = data.load("cifar10", tmp_path).test.images[3]
    for channel in range(3):
        plane = record[1 + 1024 * channel :][:1024].reshape(32, 32)
        np.testing.assert_array_equal(image[..., channel], plane)


def test_cifar100_takes_the_fine_label(tmp_path):
    write_cifar100(tmp_path)
    records = cifar_records(7, 2)
    records[:, 0], records[:, 1] = 3, np.arange(7) + 90
    records.tofile(tmp_path / "test.bin")
    labels = data.load("cifar100", tmp_path).test.labels
    np.testing.assert_array_equal(labels, np.arange(90, 97))


def test_svhn_label_ten_is_the_digit_zero_and_images_come_first(tmp_path):
    write_svhn(tmp_path)
    stored = scipy.io.loadmat(tmp_path / "test_32x32.mat")
    stored["y"][2] = 10
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": stored["X"], "y": stored["y"]})
    test = data.load("svhn", tmp_path).test
    assert test.labels.tolist() == [1, 2, 0, 4, 5, 6, 7]
    np.testing.assert_array_equal(test.images[4], stored["X"][..., 4])


def test_digits_have_fixed_stratified_splits():
    digits = data.load("digits")
    sizes = [len(s) for s in (digits.train, digits.validation, digits.test)]
    assert sizes == [1257, 180, 360]
    for split in (digits.validation, digits.test):
        shares = np.bincount(split.labels) / len(split)
        # The rarest class is 9.7 % of all, the most frequent 10.2 %.
        assert np.all(np.abs(shares - 0.1) < 0.01)
    again = data.load("digits")
    np.testing.assert_array_equal(digits.test.images, again.test.images)
    assert digits.train.images.max() == 16


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(ValueError, match="comes with scikit-learn"):
        data.load("digits", tmp_path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown data set 'cifar'; known: digits, mn"):
        data.load("cifar")


@pytest.mark.parametrize("name", WRITERS)
def test_no_folder_names_the_files_and_their_origin(name):
    with pytest.raises(FileNotFoundError, match=ORIGINS[name]) as error:
        data.load(name)
    assert "--data-dir" in str(error.value)


MISSING = {
    "mnist": "t10k-labels-idx1-ubyte.gz",
    "cifar10": "data_batch_3.bin",
    "cifar100": "test.bin",
    "svhn": "train_32x32.mat",
}


@pytest.mark.parametrize("name", WRITERS)
def test_missing_file_is_named_with_the_place_and_the_origin(tmp_path, name):
    write, folder, _, _ = WRITERS[name]
    write(tmp_path / folder)
    (tmp_path / folder / MISSING[name]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    message = str(error.value)
    assert f"missing {MISSING[name]};" in message
    assert str(tmp_path) in message
    assert ORIGINS[name] in message


@pytest.mark.parametrize("name", WRITERS)
def test_missing_folder_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar10", "batches.meta"),
        ("cifar100", "cifar-100-python/train"),
        ("cifar100", "meta"),
    ],
)
def test_the_pickle_version_is_refused_by_name_and_not_loaded(tmp_path, name, file):
    loaded = tmp_path / "loaded"
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Touches(loaded)))
    with pytest.raises(FileNotFoundError, match="take the binary version, cifar-10"):
        data.load(name, tmp_path)
    assert not loaded.exists()


class Touches:
    """Creates a file when its pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def replace_byte(offset, value):
    def change(path):
        content = bytearray(path.read_bytes())
        content[offset] = value
        path.write_bytes(bytes(content))

    return change


def rewrite(array):
    return lambda path: path.write_bytes(gzip.compress(array))


def matlab(**arrays):
    return lambda path: scipy.io.savemat(path, arrays)


LABELS, PIXELS = np.arange(7, dtype=np.uint8), np.zeros((7, 28, 28), np.uint8)
MAT_X, MAT_Y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
X, Y = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
MAT = "test_32x32.mat"
BAD_FILES = [
    ("mnist", X, truncate, "cannot be decompressed"),
    ("mnist", X, lambda p: p.write_bytes(b""), "magic number 0x00000000"),
    ("mnist", X, lambda p: p.write_bytes(b"PK plain"), "cannot be decompressed"),
    ("mnist", X, rewrite(idx(LABELS)), "magic number 0x00000801"),
    ("mnist", X, rewrite(idx(PIXELS)[:-1]), r"shape \(7, 28, 28\)"),
    ("mnist", X, rewrite(idx(PIXELS[:, 1:])), r"MNIST's are \(28, 28\)"),
    ("mnist", X, rewrite(idx(PIXELS[:0])), "at least one record"),
    ("mnist", Y, rewrite(idx(LABELS[1:])), "one label each"),
    ("mnist", Y, rewrite(idx(LABELS + 4)), "record 6 has the label 10"),
    ("cifar10", "data_batch_2.bin", truncate, "3073-byte records"),
    ("cifar10", "data_batch_2.bin", lambda p: p.write_bytes(b""), "0.00 records"),
    ("cifar10", "data_batch_2.bin", replace_byte(3073, 10), "record 1 has the label"),
    ("cifar100", "train.bin", truncate, "3074-byte records"),
    ("cifar100", "train.bin", replace_byte(0, 20), "labels are 0 to 19"),
    ("cifar100", "train.bin", replace_byte(1, 100), "labels are 0 to 99"),
    ("svhn", MAT, lambda p: p.write_bytes(p.read_bytes()[:999]), "cannot be read"),
    ("svhn", MAT, lambda p: p.write_bytes(b"no matlab"), "cannot be read"),
    ("svhn", MAT, matlab(X=MAT_X), "without y"),
    ("svhn", MAT, matlab(Z=MAT_X), "without X and y"),
    ("svhn", MAT, matlab(X=MAT_X, y=MAT_Y[1:]), r"y is \(3, 1\)"),
    ("svhn", MAT, matlab(X=MAT_X * 1.0, y=MAT_Y), "float64"),
    ("svhn", MAT, matlab(X=MAT_X, y=MAT_Y * 11), "labels are 1 to 10"),
    ("svhn", MAT, matlab(X=MAT_X, y=MAT_Y * 0), "labels are 1 to 10"),
]


@pytest.mark.parametrize(("name", "file", "damage", "message"), BAD_FILES)
def test_damaged_file_is_named_with_its_size_and_what_is_right(
    tmp_path, name, file, damage, message
):
    WRITERS[name][0](tmp_path)
    damage(tmp_path / file)
    with pytest.raises(ValueError, match=message) as error:
        data.load(name, tmp_path)
    size = (tmp_path / file).stat().st_size
    assert f"{tmp_path / file} ({size:,} bytes): " in str(error.value)


def test_too_few_training_images_for_a_validation_split(tmp_path):
    write_cifar100(tmp_path)
    cifar_records(9, 2).tofile(tmp_path / "train.bin")
    with pytest.raises(ValueError, match="9 training images are too few"):
        data.load("cifar100", tmp_path)


def test_fingerprint_tells_partial_data_apart(tmp_path):
    write_cifar10(tmp_path)
    whole = data.load("cifar10", tmp_path).fingerprint()
    cifar_records(6, 1).tofile(tmp_path / "test_batch.bin")
    partial = data.load("cifar10", tmp_path).fingerprint()
    assert whole["test"] == 7 and partial["test"] == 6
    assert whole["sha256"] != partial["sha256"]


SHARED = Path(__file__).parents[4] / "shared" / "data" / "mnist"


@pytest.mark.slow("all of MNIST")
@pytest.mark.skipif(not SHARED.is_dir(), reason="no copy of MNIST beside the project")
def test_real_mnist():
    mnist = data.load("mnist", SHARED)
    assert (len(mnist.train), len(mnist.validation)) == (57_000, 3_000)
    assert len(mnist.test) == 10_000
    # The commonly cited 0.1307 and 0.3081 of MNIST, in units of 1/255.
    np.testing.assert_allclose(mnist.mean / 255, 0.1307, atol=1e-3)
    np.testing.assert_allclose(mnist.std / 255, 0.3081, atol=1e-3)
