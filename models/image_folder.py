"""Training data from a folder of pictures, one folder a class.

    ROOT/train/CLASS/*.png  and  ROOT/test/CLASS/*.png    (or ``val``, ``valid``, ``validation`` in the place of ``test``)
    ROOT/CLASS/*.png                                       of which every fifth of each class, by name, is a test image

Classes are the names of the folders, sorted. Pictures are grey if all of them are, else RGB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgefold.errors import DataError, UsageError
from edgefold.models.data import TrainingData, from_arrays
from edgefold.models.pictures import as_8_bit, is_grey

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
TEST_NAMES: Final = ("test", "val", "valid", "validation")
_HELD_OUT = 5  # every fifth

Labelled = list[tuple[Path, int]]


def read_image_folder(folder: Path, image_size: int | None = None) -> TrainingData:
    """The data set in a folder; see the module docstring.

    Args:
        folder: with the classes, or with the parts of the data set.
        image_size: side to which every picture is scaled (bilinear); by default all must have one size.

    Raises:
        DataError: no pictures, other classes in the parts, a damaged picture, or pictures of several sizes.
        UsageError: ``image_size`` is below 1.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"image size is {image_size}, expected at least 1")
    classes, train, test = _listed(folder)
    grey = all(_is_grey(path) for path, _ in (*train, *test))
    arrays: dict[str, npt.NDArray[Any]] = {"classes": np.array(classes)}
    wanted = None if image_size is None else (image_size, image_size)
    size = wanted
    for part, files in (("train", train), ("test", test)):
        images = []
        for path, _ in files:
            image = _pixels(path, grey, wanted)
            size = size or (image.shape[0], image.shape[1])
            if image.shape[:2] != size:
                raise DataError(
                    f"'{path}' has {image.shape[0]}x{image.shape[1]} pixels, others have {size[0]}x{size[1]}; "
                    "give an image size to which all are scaled"
                )
            images.append(image)
        stacked = np.stack(images)  # (B, H, W) or (B, H, W, 3)
        arrays[f"{part}_images"] = stacked if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
        arrays[f"{part}_labels"] = np.array([label for _, label in files])
    return from_arrays(arrays, folder.resolve().name, str(folder))


def _listed(folder: Path) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """(classes, training files, test files)."""
    tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    if (folder / "train").is_dir() and tests:
        classes, other = _classes(folder / "train"), _classes(tests[0])
        if other != classes:
            raise DataError(f"'{tests[0]}' has the classes {list(other)}, 'train' has {list(classes)}; give both the same")
        return classes, _files(folder / "train", classes), _files(tests[0], classes)
    classes = _classes(folder)
    train: Labelled = []
    test: Labelled = []
    for label in range(len(classes)):
        own = [pair for pair in _files(folder, classes) if pair[1] == label]
        for index, pair in enumerate(own):
            (test if index % _HELD_OUT == _HELD_OUT - 1 else train).append(pair)
    if not test:
        raise DataError(
            f"'{folder}' has fewer than {_HELD_OUT} images in every class, expected more; or give train and test folders"
        )
    return classes, train, test


def _classes(folder: Path) -> tuple[str, ...]:
    found = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not found:
        raise DataError(f"folder '{folder}' holds no IDX files and no folders of images, expected one folder a class")
    return found


def _files(folder: Path, classes: tuple[str, ...]) -> Labelled:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(f"folder '{folder}' holds no images in {len(classes)} classes, expected files {', '.join(SUFFIXES)}")
    return found


def _is_grey(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return is_grey(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"'{path}' is not a picture that can be read: {error}; remove it") from error


def _pixels(path: Path, grey: bool, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    """uint8 (H, W), or (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture = as_8_bit(image, "L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' is a damaged picture: {error}; remove it") from error
    if size is not None and (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture)
