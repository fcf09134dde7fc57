"""Readers give what the files hold, and refuse damaged files with a sentence that says what is wrong."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgefold.errors import DataError
from edgefold.models.data import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_FOLDER,
    FASHION_MNIST_MEAN,
    FASHION_MNIST_STD,
    ImageSet,
    image_set,
    load_training_data,
    normalise,
    read_fashion_mnist,
    read_labelled_idx,
)
from edgefold.models.idx import read_idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 1], np.uint8)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_plain_and_gzipped(compress: bool, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(idx(IMAGES)) if compress else idx(IMAGES))
    np.testing.assert_array_equal(read_idx(path), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"PK\x03\x04", "not an IDX file"),
        (idx(IMAGES, kind=13), "IDX type 0x0d"),
        (idx(IMAGES)[:-1], "holds 59 values, but its header promises 3×4×5 = 60"),
        (idx(IMAGES) + b"\0", "holds 61 values"),
        (idx(IMAGES)[:9], "header of 3 dimensions in 9 bytes"),
        (bytes([0, 0, 8, 0]), "header of 0 dimensions"),
        (gzip.compress(idx(IMAGES))[:-9], "damaged gzip"),
    ],
    # Not the bytes: a gzip stream holds the time of its making, and parallel workers must see the same names.
    ids=["empty", "zip", "floats", "short", "long", "cut header", "no dimensions", "cut gzip"],
)
def test_damaged_idx(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_a_huge_promise_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(bytes([0, 0, 8, 2]) + b"\xff" * 8 + b"x")
    with pytest.raises(DataError, match="holds 1 values"):
        read_idx(path)


def test_labels_must_fit_images(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx(IMAGES))
    labels.write_bytes(idx(LABELS))
    data = read_labelled_idx(images, labels)
    assert data.images.shape == (3, 1, 4, 5)
    assert data.labels.tolist() == [2, 0, 1]
    assert data.classes == ("0", "1", "2")
    with pytest.raises(DataError, match=r"labels from 0 to 2, expected 0 to 1"):
        read_labelled_idx(images, labels, classes=("a", "b"))
    labels.write_bytes(idx(LABELS[:2]))
    with pytest.raises(DataError, match="expected one integer an image"):
        read_labelled_idx(images, labels)


def test_normalisation_is_the_formula() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    x = normalise(images, (0.5, 0.1), (0.25, 0.2))
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.5, 1.5]]]])
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:2], "test_labels": LABELS[:2]}
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]  # numpy types the keyword allow_pickle too
    return path


def test_npz_uses_the_training_statistics(tmp_path: Path) -> None:
    data = load_training_data(npz(tmp_path / "set.npz"))
    assert (data.name, len(data.train), len(data.test)) == ("set", 3, 2)
    pixels = data.train.normalised()
    assert pixels.mean().item() == pytest.approx(0, abs=1e-6)
    assert pixels.std().item() == pytest.approx(1, abs=1e-5)
    assert (data.test.mean, data.test.classes) == (data.train.mean, data.train.classes)
    given = load_training_data(npz(tmp_path / "other.npz", mean=np.array([0.5]), std=np.array([0.5])))
    assert given.train.mean == (0.5,)
    assert given.sha256 == data.sha256  # over the images and labels


def test_bad_npz(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"not an \.npz"):
        load_training_data(text)
    objects = tmp_path / "objects.npz"
    np.savez(objects, train_images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"not an \.npz file of plain arrays"):
        load_training_data(objects)
    short = tmp_path / "short.npz"
    np.savez(short, train_images=IMAGES)
    with pytest.raises(DataError, match=r"expected also \['train_labels'"):
        load_training_data(short)
    with pytest.raises(DataError, match="images of int32"):
        load_training_data(npz(tmp_path / "int.npz", train_images=IMAGES.astype(np.int32)))
    with pytest.raises(DataError, match="train_images of float64 and test_images of uint8, expected one type"):
        load_training_data(npz(tmp_path / "float.npz", train_images=IMAGES.astype(float)))


def test_one_large_label_is_refused(tmp_path: Path) -> None:
    """Names of a thousand million classes would fill the memory."""
    labels = np.array([0, 10**9, 1])
    with pytest.raises(DataError, match="the label 1000000000 at index 1, but only 3 samples"):
        load_training_data(npz(tmp_path / "set.npz", train_labels=labels))
    with pytest.raises(DataError, match="holds labels from 0 to 1000000000, expected 0 to 2"):
        load_training_data(npz(tmp_path / "other.npz", test_images=IMAGES, test_labels=labels))
    few = load_training_data(npz(tmp_path / "few.npz", train_labels=np.array([0, 999, 1])))  # some of ImageNet's
    assert len(few.train.classes) == 1000


def test_text_for_a_mean_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a mean of <U1, expected numbers"):
        load_training_data(npz(tmp_path / "set.npz", mean=np.array("a"), std=np.array("b")))


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", "hello")
    with pytest.raises(DataError, match="holds 'train_images', which is no array"):
        load_training_data(path)


@pytest.mark.parametrize(("mean", "std"), [([0.5], [np.nan]), ([np.nan], [0.5]), ([0.5], [np.inf]), ([0.5], [0.0])])
def test_a_mean_and_a_std_are_numbers(tmp_path: Path, mean: list[float], std: list[float]) -> None:
    with pytest.raises(DataError, match="expected one finite mean and one positive std"):
        load_training_data(npz(tmp_path / "set.npz", mean=np.array(mean), std=np.array(std)))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_mean_without_a_std_is_refused(tmp_path: Path, name: str) -> None:
    for changes in ({}, {"train_images": IMAGES / 255, "test_images": IMAGES[:2] / 255}):
        with pytest.raises(DataError, match=f"has {name} alone, expected both"):
            load_training_data(npz(tmp_path / "set.npz", **changes, **{name: np.array([0.5])}))
    with pytest.raises(DataError, match=f"has {name} alone, expected both"):
        image_set(IMAGES, LABELS, "arrays", **{name: (0.5,)})  # type: ignore[arg-type]  # mypy takes it for classes


def test_floats_of_any_shape(tmp_path: Path) -> None:
    """As they are, or normalised along axis 1 where the data declares how."""
    sound = np.random.default_rng(0).normal(3, 2, (3, 4, 5))
    both = {"train_images": sound, "test_images": sound[:2]}
    data = load_training_data(npz(tmp_path / "sound.npz", **both))
    assert not data.train.pictures
    np.testing.assert_allclose(data.train.normalised(), sound, rtol=1e-6)
    mean, std = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 1, 2])
    given = load_training_data(npz(tmp_path / "given.npz", **both, mean=mean, std=std))
    expected = (sound - mean[:, None]) / std[:, None]
    np.testing.assert_allclose(given.train.normalised(), expected, rtol=1e-5, atol=1e-6)
    one = load_training_data(npz(tmp_path / "one.npz", **both, mean=np.array(3.0), std=np.array(2.0)))
    np.testing.assert_allclose(one.train.normalised(1, 2), (sound[1:2] - 3) / 2, rtol=1e-5, atol=1e-6)
    vectors = load_training_data(npz(tmp_path / "vectors.npz", train_images=sound[:, 0], test_images=sound[:2, 0]))
    assert vectors.train.normalised().shape == (3, 5)
    with pytest.raises(DataError, match="4 channels, but mean"):
        load_training_data(npz(tmp_path / "few.npz", **both, mean=np.ones(2), std=np.ones(2)))
    with pytest.raises(DataError, match="NaN or infinity"):
        load_training_data(npz(tmp_path / "nan.npz", train_images=sound * np.nan, test_images=sound[:2]))


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder of IDX files and no \.npz"):
        load_training_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no 'train-images-idx3-ubyte.gz'.*dataset-fashion-mnist"):
        read_fashion_mnist(tmp_path)


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.exists(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_and_its_constants() -> None:
    data = read_fashion_mnist()
    assert (data.train.images.shape, data.test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.train.classes == FASHION_MNIST_CLASSES
    counts = data.train.images.flatten().bincount(minlength=256).double()
    values = torch.arange(256) / 255
    mean = float((counts * values).sum() / counts.sum())
    std = float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    assert FASHION_MNIST_MEAN[0] == pytest.approx(mean, abs=1e-6)
    assert FASHION_MNIST_STD[0] == pytest.approx(std, abs=1e-6)


def test_image_set_length_and_slices() -> None:
    data = ImageSet(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",), (0.0,), (1.0,))
    assert len(data) == 4
    assert data.normalised(1, 3).shape == (2, 1, 2, 2)
