"""Folders of pictures: which files, in which order, and as pixels.

Every picture that is read, for training, calibration, evaluation or a run, becomes pixels by `as_8_bit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgefold.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_WIDE_FORMATS: Final = ("PNG", "PPM")  # Pillow may read their 16 bits as 32
_MODES: Final = {"gray": "L", "rgb": "RGB", "bgr": "RGB"}


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below, sorted by path.

    Raises:
        DataError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"folder '{folder}' holds no pictures; expected files of {kinds}, or Fashion-MNIST's IDX files")
    return found


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` of the items, evenly spread over all of them."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def as_8_bit(image: Image, mode: str | None = None) -> Image:
    """An opened picture as a camera would show it: upright, with 8 bits a channel.

    Args:
        image: as Pillow opened it. What its EXIF data says of its orientation is applied; 16 bits are divided by 257, so that
            65535 becomes 255.
        mode: Pillow's mode of the result, such as ``L`` or ``RGB``; its own by default.

    Raises:
        ValueError: it has 32 bits a channel, of which nothing says how bright they are.
    """
    from PIL import ImageOps
    from PIL.Image import fromarray

    kind = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _WIDE_FORMATS):
        image = fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, expected 8 or 16")
    return image.convert(mode or image.mode)


def is_grey(image: Image) -> bool:
    """Whether an opened picture has one channel of brightness, with or without transparency."""
    return image.mode in ("1", "L", "LA", "I") or image.mode.startswith("I;16")


def read_pictures(files: Iterable[Path], colour: str) -> Iterator[NDArray[np.uint8]]:
    """The pixels of each file, uint8 (H, W) or (H, W, 3).

    Args:
        files: pictures that Pillow can read.
        colour: ``gray``, ``rgb`` or ``bgr`` (read as RGB; `edgefold.Preprocessing` turns it).

    Raises:
        DataError: a file that is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    for path in files:
        try:
            with Image.open(path) as image:
                yield np.asarray(as_8_bit(image, _MODES[colour]))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"picture '{path}' cannot be read ({error}); remove it or save it anew") from error


def class_folders(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The pictures of a folder that has one folder a class, their class indices, and the classes.

    ``classes`` are the names in the order of the scores; without them it is the order of the folders' names.

    Raises:
        DataError: no folders of pictures, or a folder that is none of the classes.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise DataError(f"folder '{folder}' has no folders in it, expected one a class with its pictures")
    names = tuple(classes) or tuple(path.name for path in folders)
    files: list[Path] = []
    labels: list[int] = []
    for each in folders:
        if each.name not in names:
            raise DataError(f"folder '{each}' is none of the model's {len(names)} classes; rename it or remove it")
        inside = picture_files(each)
        files += inside
        labels += [names.index(each.name)] * len(inside)
    return files, labels, names
