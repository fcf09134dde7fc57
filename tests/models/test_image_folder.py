"""Training data from folders of pictures and from the user's own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgefold.errors import DataError, UsageError
from edgefold.models.data import load_training_data
from edgefold.models.image_folder import read_image_folder
from edgefold.models.networks import fitting_arguments
from edgefold.models.pictures import is_grey, read_pictures

COLOURS = {"red": (200, 20, 20), "blue": (10, 10, 220)}


def pictures(folder: Path, count: int, *, mode: str = "RGB", size: tuple[int, int] = (8, 8), suffix: str = ".png") -> None:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", size, colour).convert(mode).save(folder / name / f"{index:02}{suffix}")


def test_a_fifth_of_each_class_is_held_out(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", 10)
    (tmp_path / "photos" / "red" / "notes.txt").write_text("no picture")
    data = load_training_data(tmp_path / "photos")
    assert (data.name, data.train.classes) == ("photos", ("blue", "red"))
    assert data.train.images.shape == (16, 3, 8, 8)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.images[0, :, 0, 0].tolist() == [10, 10, 220]
    assert data.train.normalised().mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_parts_given_by_folders(tmp_path: Path, test_name: str) -> None:
    pictures(tmp_path / "train", 3, mode="L")
    pictures(tmp_path / test_name, 1, mode="L")
    data = load_training_data(tmp_path)
    assert (data.train.images.shape, data.test.images.shape) == ((6, 1, 8, 8), (2, 1, 8, 8))  # grey


def test_sizes_must_be_one_or_given(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    pictures(tmp_path, 2, size=(12, 10), suffix=".bmp")
    with pytest.raises(DataError, match=r"8x8 pixels, others have 10x12"):
        load_training_data(tmp_path)
    assert load_training_data(tmp_path, image_size=6).train.images.shape[1:] == (3, 6, 6)
    with pytest.raises(UsageError, match="image size is 0"):
        load_training_data(tmp_path, image_size=0)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no IDX files and no folders of images"):
        load_training_data(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no images in 1 classes"):
        load_training_data(tmp_path)
    pictures(tmp_path / "few", 2)
    with pytest.raises(DataError, match="fewer than 5 images"):
        load_training_data(tmp_path / "few")
    pictures(tmp_path / "parts" / "train", 2)
    (tmp_path / "parts" / "test" / "green").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has the classes \['green'\]"):
        load_training_data(tmp_path / "parts")
    pictures(tmp_path / "damaged", 5)
    broken = tmp_path / "damaged" / "red" / "00.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match="picture"):
        load_training_data(tmp_path / "damaged")


def test_data_of_the_users_own_code(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("""
import numpy as np
def dataset():
    images = np.zeros((6, 4, 4), np.uint8)
    return {"train_images": images, "train_labels": np.arange(6) % 3, "test_images": images, "test_labels": np.arange(6) % 3}
def wrong():
    return 3
""")
    data = load_training_data(f"{code}:dataset")
    assert (data.name, len(data.train), data.train.classes) == ("dataset", 6, ("0", "1", "2"))
    with pytest.raises(DataError, match="gave a value of type int, expected a TrainingData"):
        load_training_data(f"{code}:wrong")
    with pytest.raises(UsageError, match="did you mean 'dataset'"):
        load_training_data(f"{code}:datasets")
    with pytest.raises(UsageError, match="is no folder of images"):
        load_training_data(f"{code}:dataset", image_size=8)
    with pytest.raises(UsageError, match="but no folder of images"):
        load_training_data(image_size=8)


def test_idx_of_other_data_has_its_own_name_and_statistics(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for split, count in (("train", 4), ("t10k", 2)):
        images = np.full((count, 3, 3), 51, np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(range(count)))
    data = load_training_data(folder)
    assert (data.name, data.train.classes) == ("digits", ("0", "1", "2", "3"))
    assert data.train.mean == pytest.approx((0.2,))


def test_networks_take_their_arguments_from_the_data(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    data = load_training_data(tmp_path)
    found = fitting_arguments("hetnet", {"width": 8, "resolution": 16}, data)
    assert found == {"width": 8, "resolution": 16, "num_classes": 2, "in_channels": 3}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    wide = np.arange(0, 65536, 257 * 8, dtype=np.uint16).reshape(4, 8)
    path = tmp_path / f"wide.{suffix}"
    Image.fromarray(wide).save(path)
    expected = (wide // 257).astype(np.uint8)
    np.testing.assert_array_equal(next(read_pictures([path], "gray")), expected)
    np.testing.assert_array_equal(next(read_pictures([path], "rgb"))[:, :, 1], expected)
    with Image.open(path) as image:
        assert is_grey(image)


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="32 bits a channel"):
        list(read_pictures([tmp_path / "float.tif"], "gray"))


def test_training_takes_wide_and_turned_pictures_as_they_look(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees to the right
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.fromarray(np.ascontiguousarray(np.rot90(grey))).save(tmp_path / name / f"{index}.png", exif=turned)
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name / "wide.png")
    images = read_image_folder(tmp_path).train.images
    assert images.shape == (10, 1, 6, 8)
    for image in images:
        np.testing.assert_array_equal(image[0].numpy(), grey)
