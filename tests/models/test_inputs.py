"""Calibration and evaluation data from every kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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
        ("x", b"text", "not an IDX file"),
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
