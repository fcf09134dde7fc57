"""From pixels to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgefold.errors import DataError, UsageError
from edgefold.preprocess import Preprocessing, declared

GREY = Preprocessing(height=4, width=6, mean=(0.25,), std=(0.5,), colour="gray")
COLOUR = Preprocessing(height=4, width=6, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), resize="stretch")


def test_grey_pixels_follow_the_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    tensor = GREY(pixels)

    assert tensor.shape == (1, 1, 4, 6)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, 0], (pixels.astype(np.float64) / 255 - 0.25) / 0.5, rtol=0, atol=1e-6)


def test_grey_takes_both_shapes_and_pil_images() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)

    np.testing.assert_array_equal(GREY(pixels), GREY(pixels[:, :, None]))
    np.testing.assert_array_equal(GREY(pixels), GREY(Image.fromarray(pixels)))


def test_colour_channels_have_their_own_numbers() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tensor = COLOUR(pixels)

    for c in range(3):
        expected = (pixels[:, :, c].astype(np.float64) / 255 - COLOUR.mean[c]) / COLOUR.std[c]
        np.testing.assert_allclose(tensor[0, c], expected, rtol=0, atol=1e-6)
    assert tensor.flags.c_contiguous


def test_resize_keeps_a_flat_image_flat_and_a_gradient_in_order() -> None:
    flat = np.full((16, 24, 3), 77, dtype=np.uint8)
    np.testing.assert_allclose(COLOUR(flat)[0, 1], (77 / 255 - 0.2) / 1.0, atol=1e-6)

    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (16, 24, 3))
    row = COLOUR(np.ascontiguousarray(ramp))[0, 0, 0]
    assert (np.diff(row) > 0).all()


def test_bgr_is_rgb_turned_round() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = Preprocessing(4, 6, mean=COLOUR.mean[::-1], std=COLOUR.std[::-1], colour="bgr")

    np.testing.assert_array_equal(turned(pixels), COLOUR(pixels)[:, ::-1])


@pytest.mark.parametrize(("height", "width"), [(30, 41), (41, 30), (24, 24), (7, 90)])
def test_crop_is_that_of_torchvision(height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="the zoo extra is not installed")
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prepare = Preprocessing(16, 16, (0.0,) * 3, (1.0,) * 3, resize="crop", shorter_side=20, interpolation="bicubic")
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose([transforms.Resize(20, bicubic), transforms.CenterCrop(16), transforms.ToTensor()])

    np.testing.assert_allclose(prepare(pixels)[0], reference(Image.fromarray(pixels)).numpy(), rtol=0, atol=1e-6)


def test_float_tensors_are_prepared_already() -> None:
    tensor = np.random.default_rng(2).random((2, 1, 4, 6))

    np.testing.assert_array_equal(GREY(tensor), tensor.astype(np.float32))
    np.testing.assert_array_equal(GREY(tensor[0]), tensor[:1].astype(np.float32))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((5, 6), np.uint8), "5x6 pixels; expected 4x6"),
        (np.zeros((4, 6, 3), np.uint8), r"\(4, 6, 3\); expected \(height, width, 1\)"),
        (np.zeros((1, 2, 4, 6), np.uint8), "has shape"),
        (np.zeros((4, 6), np.int64), "dtype int64"),
        (np.zeros((4, 6), np.float32), r"float image has shape \(4, 6\); expected \(1, 4, 6\)"),
        (np.zeros((1, 3, 4, 6), np.float32), "float image has shape"),
    ],
)
def test_what_does_not_fit_is_refused(image: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        GREY(image)


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"mean": (0.1, 0.2)},
        {"std": ()},
        {"std": (0.0,)},
        {"divisor": float("nan")},
        {"resize": "bicubic"},
        {"colour": "rgba"},
        {"interpolation": "cubic"},
        {"resize": "crop"},
        {"resize": "crop", "shorter_side": 3},
        {"shorter_side": 9},
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any]) -> None:
    valid: dict[str, Any] = {"height": 4, "width": 6, "colour": "gray", "mean": (0.1,), "std": (0.2,)}
    with pytest.raises(UsageError, match="preprocessing has"):
        Preprocessing(**{**valid, **changes})


def test_pairs_declare_what_the_source_leaves_out() -> None:
    made = declared(["mean=0.5", "std=0.1,0.2,0.3", "shorter_side=256"], None, (3, 224, 224))
    assert made == Preprocessing(224, 224, (0.5,) * 3, (0.1, 0.2, 0.3), resize="crop", shorter_side=256)
    assert declared(["mean=0.3", "std=0.4"], None, (1, 28, 28)).colour == "gray"
    changed = declared(["colour=bgr", "divisor=1"], COLOUR, (3, 4, 6))
    assert (changed.colour, changed.divisor, changed.std) == ("bgr", 1.0, COLOUR.std)
    assert changed.limits == pytest.approx((-0.2 / 1.0, (255 - 0.1) / 0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["mean"], "has no value"),
        (["means=0.5"], "did you mean 'mean'"),
        (["mean=a"], "expected a number"),
        (["mean=0.5"], "lacks std"),
        (["mean=0.5", "std=0.5", "colour=red"], "has colour 'red'"),
    ],
)
def test_pairs_that_declare_nothing_are_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        declared(pairs, None, (3, 8, 8))
