"""Calibration and evaluation data from every kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgefold.batch import samples_like
from edgefold.errors import DataError, UsageError
from edgefold.models.inputs import prepared, read_calibration, read_evaluation
from edgefold.preprocess import Preprocessing

PREPARE = Preprocessing(6, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), resize="stretch")
GREY = Preprocessing(6, 8, (0.25,), (0.5,), "gray")
COLOUR_EXAMPLE = (torch.zeros(1, 3, 6, 8),)
GREY_EXAMPLE = (torch.zeros(1, 1, 6, 8),)


def _pixels(count: int, channels: int = 3, height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def _expected(pixels: Any, prepare: Preprocessing) -> Any:
    scaled = pixels.astype(np.float64) / 255
    return ((scaled - np.array(prepare.mean)) / np.array(prepare.std)).transpose(0, 3, 1, 2)


def _stack(samples: list[tuple[torch.Tensor, ...]]) -> Any:
    return torch.cat([sample[0] for sample in samples]).numpy()


def test_a_folder_of_pictures_is_read_in_order_and_spread(tmp_path: Path) -> None:
    pixels = _pixels(6)
    for index, picture in enumerate(pixels):
        folder = tmp_path / "abc"[index // 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = _stack(read_calibration(str(tmp_path), COLOUR_EXAMPLE, PREPARE))
    np.testing.assert_allclose(found, _expected(pixels, PREPARE), atol=1e-6)
    few = _stack(read_calibration(str(tmp_path), COLOUR_EXAMPLE, PREPARE, limit=3))
    np.testing.assert_allclose(few, _expected(pixels[::2], PREPARE), atol=1e-6)

    inputs, labels, words = read_evaluation(str(tmp_path), PREPARE, ())
    np.testing.assert_allclose(inputs[0].numpy(), _expected(pixels, PREPARE), atol=1e-6)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert words.startswith("6 images of ")
    assert read_evaluation(str(tmp_path), PREPARE, ("c", "b", "a"))[1].tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(DataError, match="is none of the model's 2 classes"):
        read_evaluation(str(tmp_path), PREPARE, ("a", "b"))
    with pytest.raises(DataError, match=r"evaluation data '.*none' does not exist; give a folder"):
        read_evaluation(str(tmp_path / "none"), PREPARE, ())


@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_pixels_have_their_channels_first_or_last(tmp_path: Path, first: bool) -> None:
    pixels = _pixels(4)
    np.save(tmp_path / "x.npy", pixels.transpose(0, 3, 1, 2) if first else pixels)
    found = _stack(read_calibration(str(tmp_path / "x.npy"), COLOUR_EXAMPLE, PREPARE))
    np.testing.assert_allclose(found, _expected(pixels, PREPARE), atol=1e-6)


def test_floats_are_prepared_already(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((5, 3, 6, 8))
    np.save(tmp_path / "x.npy", values)
    samples = read_calibration(str(tmp_path / "x.npy"), COLOUR_EXAMPLE, PREPARE, limit=4)
    assert [tuple(sample[0].shape) for sample in samples] == [(1, 3, 6, 8)] * 4
    np.testing.assert_array_equal(_stack(samples), values[:4].astype(np.float32))


def test_one_idx_file_of_images(tmp_path: Path) -> None:
    pixels = _pixels(3, 1)
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (3, 6, 8))
    (tmp_path / "images").write_bytes(header + pixels.tobytes())
    found = _stack(read_calibration(str(tmp_path / "images"), GREY_EXAMPLE, GREY))
    np.testing.assert_allclose(found, _expected(pixels, GREY), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 6, 8), (1, 6, 8)])
def test_grey_pictures_of_a_data_set_are_prepared_as_declared(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also for a network that takes them without an axis for channels."""
    pixels = _pixels(5, 1)
    labels = np.arange(5) % 2
    path = tmp_path / "data.npz"
    np.savez(path, train_images=pixels[..., 0], train_labels=labels, test_images=pixels[1:, ..., 0], test_labels=labels[1:])
    example = (torch.zeros(shape),)
    expected = _expected(pixels, GREY).reshape(5, *shape[1:])
    found = _stack(read_calibration(str(path), example, GREY, limit=4))
    np.testing.assert_allclose(found, expected[:4], atol=1e-6)
    inputs, _, _ = read_evaluation(str(path), GREY, (), example)
    np.testing.assert_allclose(inputs[0].numpy(), expected[1:], atol=1e-6)


def test_an_npz_with_one_array_an_input(tmp_path: Path) -> None:
    left, right = np.ones((3, 1, 6, 8), np.float32), np.zeros((3, 4), np.float32)
    np.savez(tmp_path / "x.npz", left=left, right=right)
    samples = read_calibration(str(tmp_path / "x.npz"), (torch.zeros(1, 1, 6, 8), torch.zeros(1, 4)), None)
    assert [[tuple(tensor.shape) for tensor in sample] for sample in samples] == [[(1, 1, 6, 8), (1, 4)]] * 3
    with pytest.raises(DataError, match="expected one an input"):
        read_calibration(str(tmp_path / "x.npz"), COLOUR_EXAMPLE, None)


def test_a_function_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
import numpy as np
import torch
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)

def pictures():
    yield from (Image.fromarray(each) for each in pixels)

def tensors():
    yield from (torch.ones(2, 3, 6, 8) * index for index in range(3))

def labelled():
    return pixels, [0, 1, 2, 0]

def wrong():
    return pixels
"""
    )
    source = f"{tmp_path}/mine.py"
    found = _stack(read_calibration(f"{source}:pictures", COLOUR_EXAMPLE, PREPARE))
    np.testing.assert_allclose(found, _expected(_pixels(4), PREPARE), atol=1e-6)
    assert len(read_calibration(f"{source}:tensors", COLOUR_EXAMPLE, None)) == 6
    inputs, labels, _ = read_evaluation(f"{source}:labelled", PREPARE, ())
    assert (len(inputs[0]), labels.tolist()) == (4, [0, 1, 2, 0])
    with pytest.raises(DataError, match="expected \\(inputs, class indices\\)"):
        read_evaluation(f"{source}:wrong", PREPARE, ())
    with pytest.raises(UsageError, match="did you mean 'pictures'"):
        read_calibration(f"{source}:picture", COLOUR_EXAMPLE, PREPARE)
    with pytest.raises(DataError, match="does not say how a picture becomes its input"):
        read_calibration(f"{source}:pictures", COLOUR_EXAMPLE, None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none", None, "does not exist"),
        ("x.npy", b"text", "not an .npy file"),
        ("x", b"text", r"not an IDX file.*; give an IDX file, an \.npy, an \.npz or a folder of pictures"),
        ("x.png", b"text", "not an IDX file"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_calibration(str(tmp_path / name), COLOUR_EXAMPLE, PREPARE)


def test_an_empty_folder_and_a_broken_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        read_calibration(str(tmp_path), COLOUR_EXAMPLE, PREPARE)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png' cannot be read"):
        read_calibration(str(tmp_path), COLOUR_EXAMPLE, PREPARE)


def test_pictures_among_batches_are_prepared_and_the_rest_is_left_alone() -> None:
    pixels = _pixels(3)
    mixed = [Image.fromarray(pixels[0]), pixels[1], torch.from_numpy(pixels[2]), torch.ones(1, 3, 6, 8), (torch.ones(1), 3)]
    found = list(prepared(mixed, PREPARE))
    np.testing.assert_allclose(torch.cat(found[:3]).numpy(), _expected(pixels, PREPARE), atol=1e-6)
    assert found[3] is mixed[3]
    assert found[4] is mixed[4]
    floats = torch.ones(2, 3, 6, 8)
    assert prepared(floats, PREPARE) is floats
    assert prepared(mixed, None) is mixed


FUNCTIONS = """
import numpy as np
import torch

values = np.random.default_rng(0).standard_normal((6, 1, 20))
other = np.arange(24).reshape(6, 4)

def samples():
    yield from values  # (1, 20) each, float64

def batches():
    yield values[:4].astype(np.float32)
    yield torch.from_numpy(values[4:])

def whole():
    return values

def pairs():
    yield from zip(values, other)

def pair_batches():
    yield {"sound": values[:5], "words": other[:5]}
    yield values[5:], other[5:]

def columns():
    return values, other

def named():
    return {"sound": values, "words": other}

def words():
    yield from other

def labelled():
    return (values, other), [0, 1, 2, 0, 1, 2]

def labelled_sound():
    return [each for each in values], [0, 1, 2, 0, 1, 2]
"""
SOUND, WORDS = torch.zeros(1, 1, 20), torch.zeros(1, 4, dtype=torch.int64)
SIZES = (1, 4)  # of a batch of the example


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["samples", "batches", "whole"])
def test_a_function_gives_sound_one_by_one_or_in_batches(functions: str, name: str, size: int) -> None:
    values = np.random.default_rng(0).standard_normal((6, 1, 20))
    example = (SOUND.expand(size, 1, 20),)
    found = read_calibration(f"{functions}:{name}", example, None)
    assert [tuple(sample[0].shape) for sample in found] == [(1, 1, 20)] * 6
    np.testing.assert_array_equal(_stack(found), values.astype(np.float32))
    cut = list(samples_like(found, example, "calibration"))
    assert [tuple(batch[0].shape) for batch in cut] == [(size, 1, 20)] * (6 // size)
    np.testing.assert_array_equal(_stack(cut), values[: 6 // size * size].astype(np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["pairs", "pair_batches", "columns", "named"])
def test_a_function_gives_several_inputs(functions: str, name: str, size: int) -> None:
    values, other = np.random.default_rng(0).standard_normal((6, 1, 20)), np.arange(24).reshape(6, 4)
    example = (SOUND.expand(size, 1, 20), WORDS.expand(size, 4))
    found = list(samples_like(read_calibration(f"{functions}:{name}", example, None), example, "calibration"))
    assert len(found) == 6 // size
    np.testing.assert_array_equal(_stack(found), values[: len(found) * size].astype(np.float32))
    words = torch.cat([sample[1] for sample in found])
    assert words.dtype == torch.int64
    np.testing.assert_array_equal(words.numpy(), other[: len(found) * size])


def test_networks_of_integers_take_integers(functions: str, tmp_path: Path) -> None:
    np.save(tmp_path / "words.npy", np.arange(24).reshape(6, 4))
    for source in (f"{functions}:words", str(tmp_path / "words.npy")):
        found = read_calibration(source, (WORDS,), None)
        assert torch.equal(torch.cat([sample[0] for sample in found]), torch.arange(24).view(6, 4))
    with pytest.raises(DataError, match="holds int64, expected uint8 pictures or float32"):
        read_calibration(str(tmp_path / "words.npy"), (torch.zeros(1, 4),), None)


def test_labelled_inputs_that_are_no_pictures(functions: str) -> None:
    inputs, labels, _ = read_evaluation(f"{functions}:labelled", None, (), (SOUND, WORDS))
    assert [tuple(each.shape) for each in inputs] == [(6, 1, 20), (6, 4)]
    assert len(labels) == 6
    (sound,), labels, _ = read_evaluation(f"{functions}:labelled_sound", None, (), (SOUND,))
    assert (tuple(sound.shape), sound.dtype, len(labels)) == ((6, 1, 20), torch.float32, 6)


@pytest.mark.parametrize("kind", ["npy", "npz", "folder", "set"])
def test_files_calibrate_networks_of_a_batch_above_one(tmp_path: Path, kind: str) -> None:
    pixels = _pixels(10)
    path = tmp_path / f"x.{kind}" if kind in ("npy", "npz") else tmp_path / ("data.npz" if kind == "set" else "pictures")
    if kind == "npy":
        np.save(path, pixels)
    elif kind == "npz":
        np.savez(path, x=pixels)
    elif kind == "set":
        labels = np.arange(10) % 2
        images = pixels.transpose(0, 3, 1, 2)
        np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    else:
        path.mkdir()
        for index, picture in enumerate(pixels):
            Image.fromarray(picture).save(path / f"{index}.png")
    example = (torch.zeros(4, 3, 6, 8),)
    found = list(samples_like(read_calibration(str(path), example, PREPARE), example, "calibration"))
    assert [tuple(batch[0].shape) for batch in found] == [(4, 3, 6, 8)] * 2
    np.testing.assert_allclose(_stack(found), _expected(pixels[:8], PREPARE), atol=1e-6)


def test_batches_of_any_size_are_joined_and_cut() -> None:
    values = torch.arange(22.0).view(11, 2)
    example = (torch.zeros(4, 2),)
    found = list(samples_like([values[:1], values[1:3], values[3:10], values[10:]], example, "calibration"))
    assert torch.equal(torch.cat([batch[0] for batch in found]), values[:8])
    found = list(samples_like(values.double().numpy(), example, "calibration"))
    assert torch.equal(torch.cat([batch[0] for batch in found]), values[:8])
    with pytest.raises(DataError, match="has 3 samples, expected at least 4, as many as the example inputs have"):
        list(samples_like([values[:1], values[1:3]], example, "calibration"))
    with pytest.raises(DataError, match=r"inputs of \[3, 2\] samples, expected the same number of each"):
        list(samples_like([(torch.zeros(3, 2), torch.zeros(2, 2))], (torch.zeros(1, 2), torch.zeros(1, 2)), "calibration"))
    with pytest.raises(DataError, match="holds an array of <U1, expected"):
        list(samples_like([np.array(["a"])], example, "calibration"))


FAILING = """
import sys
import numpy as np
from pathlib import Path


def key():
    raise KeyError("train")


def leaves():
    sys.exit(5)


def halfway():
    yield np.zeros((3, 6, 8), np.float32)
    raise RuntimeError("no more\\npictures")


def number():
    return 3


def images():
    return np.zeros((4, 3, 6, 8), np.float32)


def fractions():
    return images(), np.arange(4) + 0.5


def words():
    return images(), ["a", "b", "a", "b"]


def columns():
    return images(), np.zeros((4, 2), np.int64)


def below():
    return images(), np.arange(4) - 1
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("key", "mine.py:key' failed: KeyError: 'train'; mend"),
        ("leaves", "mine.py:leaves' failed: SystemExit: 5"),
        ("halfway", "mine.py:halfway' failed: RuntimeError: no more; mend"),
        ("number", "gave a value of type int, expected inputs"),
    ],
)
def test_a_function_that_fails_is_named_with_its_error(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    with pytest.raises(DataError, match=words):
        read_calibration(f"{tmp_path / 'mine.py'}:{name}", COLOUR_EXAMPLE, PREPARE)


@pytest.mark.parametrize(
    ("name", "words"),
    [("fractions", "of type float64"), ("words", "of type <U1"), ("columns", r"shape \(4, 2\)"), ("below", "class index -1")],
)
def test_labels_are_class_indices(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    with pytest.raises(DataError, match=words):
        read_evaluation(f"{tmp_path / 'mine.py'}:{name}", PREPARE, (), COLOUR_EXAMPLE)
