"""Data sets with labels: IDX files, folders of images, ``.npz`` files, the user's own code, and the shipped slice.

Images are kept as unsigned bytes, NCHW, and normalised when used: x = (pixel / 255 − mean) / std. What is no image, such as
sound, is float32 of any shape (B, …); it is taken as it is, or normalised by (x − mean) / std where the data declares both.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgefold.errors import DataError, UsageError
from edgefold.models.idx import read_idx

FASHION_MNIST_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MNIST_SHA256: Final = "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f"  # of the four arrays
# Over the 60,000 training images, of pixels scaled to [0, 1].
FASHION_MNIST_MEAN: Final = (0.2860406,)
FASHION_MNIST_STD: Final = (0.3530242,)


_KNOWN_BY: Final = 16  # images that tell the order of their channels
MAX_CLASSES: Final = 100_000  # without names and in fewer samples; ImageNet-21k has 21,841
ARRAYS: Final = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Labelled images, or other labelled samples.

    ``images`` is uint8 (B, C, H, W), or float32 of any shape (B, …); ``labels`` is int64 (B,). ``mean`` and ``std`` are per
    channel (axis 1), or one for all: of pixels in [0, 1], or of the floats. Both are empty for floats that are taken as they are.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pictures(self) -> bool:
        """Whether a sample is a picture, which may be moved and mirrored."""
        return self.images.dtype == torch.uint8 and self.images.ndim == 4

    @property
    def noun(self) -> str:
        """What its samples are called in sentences."""
        return "images" if self.pictures else "samples"

    def normalised(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images ``start`` to ``stop`` as float32 network input, of their shape."""
        return normalise(self.images[start:stop], self.mean, self.std)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A training and a test set of one source, with its name and the SHA-256 over the files or arrays it came from."""

    name: str
    train: ImageSet
    test: ImageSet
    sha256: str

    @property
    def prepared_sha256(self) -> str:
        """The SHA-256 of ``sha256`` and of how the training images are prepared: mean, deviation, order of the channels."""
        state = hashlib.sha256(f"{self.sha256} {self.train.mean} {self.train.std}".encode())
        state.update(self.train.images[:_KNOWN_BY].contiguous().numpy().tobytes())
        return state.hexdigest()


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, C, …) -> float32: (pixel / 255 − mean) / std of uint8, (x − mean) / std of floats; floats alone without mean."""
    if not mean:
        return images.float()
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    channels = (1, -1, *[1] * (images.ndim - 2))
    scale = 1.0 / (unit * torch.tensor(std)).view(channels)
    shift = (torch.tensor(mean) / torch.tensor(std)).view(channels)
    return images.float() * scale - shift


def read_labelled_idx(
    images: Path,
    labels: Path,
    *,
    classes: tuple[str, ...] | None = None,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
) -> ImageSet:
    """An image set from a pair of IDX files: (B, H, W) or (B, C, H, W) images and (B,) labels.

    Raises:
        DataError: a file is damaged, has the wrong number of dimensions, or the two do not fit together.
    """
    return image_set(read_idx(images), read_idx(labels), str(images), classes=classes, mean=mean, std=std)


def image_set(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    source: str,
    *,
    classes: tuple[str, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImageSet:
    """Checked arrays as an image set.

    Args:
        images: uint8, (B, H, W) or (B, C, H, W), or floats, (B, C, …).
        labels: integers, (B,).
        source: what an error message calls the arrays.
        classes: class names; by default the numbers up to the largest label, which is below the number of samples or
            `MAX_CLASSES`.
        mean: per channel, of pixels in [0, 1] or of the floats; by default 0.5 of pixels, and none of floats.
        std: likewise.

    Raises:
        DataError: wrong type or shape, no images, NaN or infinity, or labels outside the classes.
    """
    floats = np.issubdtype(images.dtype, np.floating)
    if not (images.dtype == np.uint8 and images.ndim in (3, 4)) and not (floats and images.ndim >= 2):
        raise DataError(
            f"'{source}' holds images of {images.dtype} {images.shape}, expected uint8 (B, H, W) or (B, C, H, W), "
            "or floats (B, C, …) for what is no image"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"'{source}' holds labels of {labels.dtype} {labels.shape} for {len(images)} images, expected one integer an image"
        )
    if images.size == 0:
        raise DataError(f"'{source}' holds no images, expected at least one")
    count = len(classes) if classes is not None else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= count:
        raise DataError(f"'{source}' holds labels from {labels.min()} to {labels.max()}, expected 0 to {count - 1}")
    if classes is None and count > max(len(labels), MAX_CLASSES):
        raise DataError(
            f"'{source}' holds the label {labels.max()} at index {labels.argmax()}, but only {len(labels)} samples; "
            "expected classes numbered from 0; renumber them, or give the names of all classes"
        )
    if floats:
        tensor = torch.from_numpy(np.ascontiguousarray(images, np.float32))
        if not tensor.isfinite().all():
            raise DataError(f"'{source}' holds NaN or infinity, expected finite numbers; clean the data")
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(images if images.ndim == 4 else images[:, None]))
    channels = tensor.shape[1]
    names = classes if classes is not None else tuple(str(label) for label in range(count))
    _refuse_half({"mean": mean, "std": std}, source)
    default = () if floats else (0.5,) * channels
    mean = default if mean is None else mean
    std = default if std is None else std
    fitting = len(mean) == len(std) and len(mean) in (channels, *((0, 1) if floats else ()))
    if not fitting or not all(0 < value < math.inf for value in std) or not all(map(math.isfinite, mean)):
        raise DataError(
            f"'{source}' has {channels} channels, but mean {mean} and std {std}; "
            "expected one finite mean and one positive std a channel"
        )
    return ImageSet(tensor, torch.from_numpy(labels.astype(np.int64)), names, mean, std)


def _refuse_half(given: Mapping[str, object], source: str) -> None:
    """A mean without a deviation, or the other way round."""
    lone = [key for key in ("mean", "std") if given.get(key) is not None]
    if len(lone) == 1:
        raise DataError(f"'{source}' has {lone[0]} alone, expected both mean and std; give both or none")


def read_fashion_mnist(folder: Path = FASHION_MNIST_FOLDER) -> TrainingData:
    """Fashion-MNIST (Xiao et al., 2017) from a folder with its four IDX files, gzipped or not.

    Raises:
        DataError: a file is missing or damaged.
    """
    return read_idx_folder(folder)


def read_idx_folder(folder: Path) -> TrainingData:
    """Training data from four IDX files with the names of MNIST's, gzipped or not.

    Fashion-MNIST is known by its content and gets its class names and statistics; other data is normalised by its own.

    Raises:
        DataError: a file is missing or damaged.
    """
    digest = hashlib.sha256()
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, name in (("train", "train"), ("t10k", "test")):
        for kind in ("images", "labels"):
            dimensions = {"images": 3, "labels": 1}[kind]
            array = read_idx(_plain_or_gzip(folder, f"{split}-{kind}-idx{dimensions}-ubyte"))
            digest.update(array.tobytes())
            arrays[f"{name}_{kind}"] = array
    if digest.hexdigest() == FASHION_MNIST_SHA256:
        arrays |= {
            "classes": np.array(FASHION_MNIST_CLASSES),
            "mean": np.array(FASHION_MNIST_MEAN),
            "std": np.array(FASHION_MNIST_STD),
        }
        return from_arrays(arrays, "fashion-mnist", str(folder))
    return from_arrays(arrays, folder.resolve().name, str(folder))


def _plain_or_gzip(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise DataError(
        f"folder '{folder}' has no '{name}.gz' and no '{name}'; give the folder of Fashion-MNIST's IDX files "
        "(on Debian and Ubuntu: apt install dataset-fashion-mnist)"
    )


def read_npz(path: Path) -> TrainingData:
    """Training data from a ``.npz`` with ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Optional: ``classes`` (strings), ``mean`` and ``std`` (per channel, of pixels in [0, 1] or of the floats). Without them
    those of the training images are used, and floats are taken as they are.

    Raises:
        DataError: not an ``.npz``, an array is missing or has the wrong type or shape.
    """
    return from_arrays(load_npz(path, ARRAYS), path.stem, str(path))


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]], name: str, source: str) -> TrainingData:
    """Training data from arrays with the names that `read_npz` gives.

    Raises:
        DataError: an array is missing or has the wrong type or shape.
    """
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise DataError(f"'{source}' has the arrays {sorted(arrays)}, expected also {missing}")
    kinds = [arrays[key].dtype.kind == "f" for key in ("train_images", "test_images")]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"'{source}' has train_images of {arrays['train_images'].dtype} and test_images of {arrays['test_images'].dtype}, "
            "expected one type; store both as uint8 pixels or both as floats"
        )
    _refuse_half(arrays, source)
    digest = hashlib.sha256()
    for key in ARRAYS:
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    classes = tuple(str(label) for label in arrays["classes"]) if "classes" in arrays else None
    train = image_set(arrays["train_images"], arrays["train_labels"], f"{source}: train", classes=classes)
    if "mean" in arrays and "std" in arrays:
        mean, std = (_numbers(arrays, key, source) for key in ("mean", "std"))
    elif train.images.is_floating_point():
        mean = std = torch.empty(0)
    else:
        pixels = train.images.double() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1 / 255)
    statistics = {"mean": tuple(float(value) for value in mean), "std": tuple(float(value) for value in std)}
    sets = [
        image_set(arrays[f"{part}_images"], arrays[f"{part}_labels"], f"{source}: {part}", classes=train.classes, **statistics)
        for part in ("train", "test")
    ]
    return TrainingData(name, sets[0], sets[1], digest.hexdigest())


def _numbers(arrays: Mapping[str, npt.NDArray[Any]], key: str, source: str) -> Tensor:
    """One array of a few numbers, flat."""
    found = np.asarray(arrays[key])
    if found.dtype.kind not in "fiu":
        raise DataError(f"'{source}' has a {key} of {found.dtype}, expected numbers, one a channel")
    return torch.from_numpy(found.astype(np.float64)).reshape(-1)


def load_npz(path: Path, required: tuple[str, ...]) -> Mapping[str, npt.NDArray[Any]]:
    """The arrays of an ``.npz`` file, without pickles.

    Raises:
        DataError: it cannot be read, is no ``.npz``, holds Python objects, or lacks a required array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}; give the path of an .npz file") from error
    except (ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"'{path}' is not an .npz file of plain arrays: {error}") from error
    other = [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]
    if other:
        raise DataError(f"'{path}' holds '{other[0]}', which is no array; write the file with numpy.savez")
    missing = [key for key in required if key not in arrays]
    if missing:
        raise DataError(f"'{path}' has the arrays {sorted(arrays)}, expected also {missing}")
    return arrays


def load_training_data(source: Path | str | None = None, *, image_size: int | None = None) -> TrainingData:
    """Training data from where it is.

    Args:
        source: a folder of IDX files, a folder of images (`edgefold.models.image_folder`), an ``.npz`` file, or
            ``FILE.py:FUNCTION``, whose function gives a `TrainingData` or a dictionary of arrays as `read_npz` takes them;
            by default Fashion-MNIST of the Debian package.
        image_size: side to which the images of a folder are scaled; by default they must all have one size.

    Raises:
        DataError: nothing there can be read as training data.
        UsageError: ``image_size`` is given for data that is no folder of images.
    """
    if source is None:
        if image_size is not None:
            raise UsageError("an image size is given, but no folder of images; give one as the data, or leave the size out")
        return read_fashion_mnist()
    path = Path(source)
    if path.is_dir() and not _holds_idx(path):
        from edgefold.models.image_folder import read_image_folder

        return read_image_folder(path, image_size)
    if image_size is not None:
        raise UsageError(f"an image size is given, but '{source}' is no folder of images; leave it out")
    if path.is_dir() or path == FASHION_MNIST_FOLDER:
        return read_idx_folder(path)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path)
    file, colon, function = str(source).rpartition(":")
    if colon and file.endswith(".py"):
        return _from_python(Path(file), function)
    raise DataError(
        f"'{source}' is not a folder of IDX files and no .npz file, folder of images or FILE.py:FUNCTION; "
        "give one of these as training data"
    )


def _holds_idx(folder: Path) -> bool:
    return any(folder.glob("*-ubyte")) or any(folder.glob("*-ubyte.gz"))


def _from_python(path: Path, function: str) -> TrainingData:
    from edgefold.models.source_files import given_by

    made = given_by(f"{path}:{function}")
    if isinstance(made, TrainingData):
        return made
    if isinstance(made, Mapping):
        return from_arrays({str(key): np.asarray(value) for key, value in made.items()}, function, f"{path}:{function}")
    raise DataError(
        f"'{path}:{function}' gave a value of type {type(made).__name__}, "
        f"expected a TrainingData or a dictionary of the arrays {', '.join(ARRAYS)}"
    )
