"""Calibration and evaluation data from where they are, as inputs of a network.

    images/                 pictures, in folders or not; for evaluation one folder a class
    fashion-mnist/          a folder with Fashion-MNIST's four IDX files
    train-images.gz         one IDX file of images (no labels)
    x.npy                   uint8 pictures (N, H, W), (N, H, W, C) or (N, C, H, W), or float32 inputs (N, C, …)
    data.npz                a labelled data set (`edgefold.models.data.read_npz`), or one array an input, in their order
    mine.py:samples         a function of the user's: inputs, or pictures, as one array, in batches or one by one; a tuple
                            or a dictionary of arrays for several inputs; for evaluation it gives (inputs, class indices)

Pictures are prepared as the network's preprocessing says; floats are taken as prepared already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgefold.batch import as_tensors
from edgefold.errors import DataError
from edgefold.models.data import ImageSet, load_npz, load_training_data
from edgefold.models.fit import shaped
from edgefold.models.idx import read_idx
from edgefold.models.pictures import class_folders, picture_files, read_pictures, spread
from edgefold.models.source_files import data_of, given_by
from edgefold.preprocess import Preprocessing

LIMIT: Final = 1000  # samples that calibration takes at most
_SET: Final = frozenset({"train_images", "train_labels", "test_images", "test_labels"})

Inputs = list[tuple[Tensor, ...]]


def read_calibration(source: str, example: tuple[Tensor, ...], prepare: Preprocessing | None, limit: int = LIMIT) -> Inputs:
    """At most ``limit`` samples of a source, each a tuple of inputs; see the module docstring.

    Args:
        source: a path, or ``file.py:function``.
        example: one batch of the network's inputs.
        prepare: from a picture to the input; ``None`` where the network says nothing.
        limit: of a folder of pictures, so many are taken, evenly spread.

    Raises:
        DataError: nothing there can be read, or it does not fit the network.
        ModelError: the user's file failed.
        UsageError: it has no such function.
    """
    if _is_function(source):
        return list(islice(_given(_each(_one_by_one(given_by(source), example), source), prepare, source, example), limit))
    path = Path(source)
    if path.is_dir() and not _is_idx_folder(path):
        return _pictures(spread(picture_files(path), limit), _needed(prepare, source))
    if path.suffix == ".npy":
        return list(islice(_given(_array(path), prepare, source, example), limit))
    if path.suffix == ".npz":
        arrays = load_npz(path, ())
        if not arrays.keys() >= _SET:
            return _one_array_an_input(arrays, example, prepare, source)[:limit]
    if path.is_dir() or path.suffix == ".npz":
        return _split(_of_set(load_training_data(path).train, prepare, limit, example))
    if not path.exists():
        raise DataError(
            f"calibration data '{source}' does not exist; give a folder, an .npy, .npz or IDX file, or file.py:function"
        )
    return list(islice(_given(read_idx(path), prepare, source), limit))


def read_evaluation(
    source: str, prepare: Preprocessing | None, classes: Sequence[str], example: tuple[Tensor, ...] = ()
) -> tuple[tuple[Tensor, ...], NDArray[np.int64], str]:
    """Inputs with class indices, and what they are, in words.

    Args:
        source: a path, or ``file.py:function``.
        prepare: from a picture to the input.
        classes: the names of the classes in the order of the scores, if they are known.
        example: one batch of the network's inputs, to which a channel axis of size 1 is fitted.

    Raises:
        DataError: nothing there can be read, or it has no labels.
    """
    if _is_function(source):
        made = given_by(source)
        if not (isinstance(made, tuple) and len(made) == 2):
            raise DataError(f"'{source}' gave a value of type {type(made).__name__}, expected (inputs, class indices)")
        samples = list(_given(_each(_one_by_one(made[0], example), source), prepare, source, example))
        labels = class_indices(made[1], f"'{source}'")
        if not samples or len(samples) != len(labels):
            raise DataError(f"'{source}' gave {len(samples)} inputs and {len(labels)} class indices, expected the same number")
        return _stacked(samples), labels, f"{len(labels):,} images of {Path(source).name}"
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"evaluation data '{source}' does not exist; give a folder with one folder of pictures a class, "
            "a folder of IDX files, an .npz, or file.py:function"
        )
    if path.is_dir() and not _is_idx_folder(path):
        files, indices, _ = class_folders(path, classes)
        return (
            _stacked(_pictures(files, _needed(prepare, source))),
            np.array(indices, np.int64),
            f"{len(files):,} images of {path.name}",
        )
    data = load_training_data(path)
    inputs = _of_set(data.test, prepare, len(data.test), example)
    return (inputs,), data.test.labels.numpy(), f"{len(data.test):,} test {data.test.noun} of {data.name}"


def class_indices(labels: Any, what: str) -> NDArray[np.int64]:
    """Class indices, one a sample, as int64 (N,).

    Args:
        labels: a sequence, an array or a tensor.
        what: what gives them, as an error calls it.

    Raises:
        DataError: they are no whole numbers of 0 or more, or have another shape.
    """
    try:
        array = np.asarray(labels.numpy(force=True) if isinstance(labels, Tensor) else labels)
    except ValueError as error:  # rows of several lengths
        raise DataError(f"{what} has class indices that are no array ({error}), expected one whole number a sample") from error
    if array.size and (array.dtype.kind not in "iu" or array.ndim != 1):
        raise DataError(
            f"{what} has class indices of type {array.dtype} and shape {array.shape}, expected one whole number a sample; "
            "give the number of each sample's class, from 0"
        )
    if array.size and int(array.min()) < 0:
        raise DataError(
            f"{what} has the class index {int(array.min())}, expected 0 or more; give the numbers of the classes from 0"
        )
    return array.astype(np.int64)


def prepared(data: Iterable[Any] | Tensor, prepare: Preprocessing | None) -> Iterable[Any] | Tensor:
    """Batches as they are, but pictures (uint8 arrays or tensors, `PIL.Image`) prepared as the network's preprocessing says."""
    if isinstance(data, np.ndarray):  # of stacked samples
        (data,) = as_tensors(data, "calibration")
    if prepare is None or (isinstance(data, Tensor) and data.dtype != torch.uint8):
        return data
    if isinstance(data, Tensor):
        return (sample for (sample,) in _given(data, prepare, "calibration"))
    return _prepared_one_by_one(data, prepare)


def _prepared_one_by_one(data: Iterable[Any], prepare: Preprocessing) -> Iterator[Any]:
    from PIL import Image

    for batch in data:
        pixels = isinstance(batch, Tensor | np.ndarray) and str(batch.dtype).removeprefix("torch.") == "uint8"
        if pixels and batch.ndim == 4:
            yield from (sample for (sample,) in _given(batch, prepare, "calibration"))
        elif pixels or isinstance(batch, Image.Image):
            yield _prepare(batch, prepare)
        else:
            yield batch


def _prepare(picture: Any, prepare: Preprocessing) -> Tensor:
    array = picture.numpy(force=True) if isinstance(picture, Tensor) else picture
    return torch.from_numpy(prepare(_last(array, prepare) if isinstance(array, np.ndarray) else array))


def _is_function(source: str) -> bool:
    file, colon, name = source.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def _is_idx_folder(path: Path) -> bool:
    return any(path.glob("*-ubyte*"))


def _needed(prepare: Preprocessing | None, source: str) -> Preprocessing:
    if prepare is None:
        raise DataError(
            f"'{source}' holds pictures, expected float32 inputs, since the model does not say how a picture becomes its input; "
            "declare it, as in --preprocess mean=0.5 --preprocess std=0.5"
        )
    return prepare


def _pictures(files: Sequence[Path], prepare: Preprocessing) -> Inputs:
    return [(torch.from_numpy(prepare(pixels)),) for pixels in read_pictures(files, prepare.colour)]


def _array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}; give the path of an .npy file") from error
    except ValueError as error:
        raise DataError(f"'{path}' is not an .npy file of numbers: {error}; write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fui":
        raise DataError(f"'{path}' holds {getattr(array, 'dtype', 'no array')}, expected uint8 pictures or float32 inputs")
    return array


def _given(
    data: Any, prepare: Preprocessing | None, source: str, example: tuple[Tensor, ...] = ()
) -> Iterator[tuple[Tensor, ...]]:
    """Samples of what a caller or a file gives: one array of all, or an iterable of batches, samples and pictures."""
    if isinstance(data, np.ndarray | Tensor):
        yield from _rows(data.numpy(force=True) if isinstance(data, Tensor) else data, prepare, source, example)
        return
    for batch in data:
        if isinstance(batch, tuple | list | dict):
            yield from _samples(as_tensors(batch if isinstance(batch, dict) else tuple(batch), source), example)
        elif isinstance(batch, Tensor | np.ndarray) and _is_input(batch, example):
            yield from _samples(as_tensors(batch, source), example)
        elif isinstance(batch, Tensor | np.ndarray) and batch.ndim == 4:
            yield from _given(batch, prepare, source)
        else:
            yield (_prepare(batch, _needed(prepare, source)),)


def _rows(
    array: NDArray[Any], prepare: Preprocessing | None, source: str, example: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, ...]]:
    """The samples of one array: pictures prepared, floats as they are, integers where the network takes some."""
    if np.issubdtype(array.dtype, np.floating):
        yield from _split(torch.from_numpy(np.ascontiguousarray(array, np.float32)))
    elif _is_input(array, example):
        yield from _split(*as_tensors(array, source))
    elif array.dtype == np.uint8:
        yield from ((_prepare(picture, _needed(prepare, source)),) for picture in array)
    else:
        raise DataError(f"'{source}' holds {array.dtype}, expected uint8 pictures or float32 inputs; preprocess them first")


def _each(data: Any, source: str) -> Any:
    """What a user's function gave; where that is computed while it is read, errors of the function are told as such."""
    if isinstance(data, np.ndarray | Tensor | list | tuple):
        return data
    return _read(data, source)


def _read(data: Any, source: str) -> Iterator[Any]:
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise DataError(
            f"'{source}' gave a value of type {type(data).__name__}, expected inputs: an array, or batches or samples of them"
        )
    with data_of(source):
        values = iter(data)
    while True:
        with data_of(source):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value


def _is_input(values: Any, example: tuple[Tensor, ...]) -> bool:
    """Whether an array or tensor is an input as it is, and no picture: floats, or integers where the network takes integers."""
    if str(values.dtype).removeprefix("torch.").startswith(("float", "bfloat")):
        return True
    return len(example) == 1 and not example[0].is_floating_point()


def _samples(tensors: tuple[Tensor, ...], example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The samples of a batch, or of one sample without an axis for the batch; what does not fit is refused later, as it is."""
    tensors = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors)
    if len(tensors) == len(example) and all(
        tensor.shape == wanted.shape[1:] for tensor, wanted in zip(tensors, example, strict=True)
    ):
        yield tuple(tensor.unsqueeze(0) for tensor in tensors)
        return
    fits = len(tensors) == len(example) and all(t.ndim == wanted.ndim > 0 for t, wanted in zip(tensors, example, strict=True))
    pictures = not example and len(tensors) == 1 and tensors[0].ndim == 4
    if (fits or pictures) and len({len(tensor) for tensor in tensors}) == 1:
        yield from (tuple(tensor[index : index + 1] for tensor in tensors) for index in range(len(tensors[0])))
    else:
        yield tensors


def _one_by_one(data: Any, example: tuple[Tensor, ...]) -> Any:
    """What a function gave; one array of all samples for each of several inputs becomes a sequence of samples."""
    columns = tuple(data.values()) if isinstance(data, dict) else data
    stacked = (
        isinstance(columns, tuple)
        and len(columns) == len(example) > 1
        and all(isinstance(column, Tensor | np.ndarray) for column in columns)
        and all(tuple(column.shape[1:]) == tuple(wanted.shape[1:]) for column, wanted in zip(columns, example, strict=True))
    )
    if not stacked:
        return [data] if isinstance(data, dict) else data
    tensors = as_tensors(columns)
    return [tuple(tensor[index : index + 1] for tensor in tensors) for index in range(min(len(tensor) for tensor in tensors))]


def _last(picture: NDArray[Any], prepare: Preprocessing) -> NDArray[Any]:
    """A picture (C, H, W) as (H, W, C); one that has its channels last already stays."""
    if picture.ndim == 3 and picture.shape[0] == prepare.channels and picture.shape[2] != prepare.channels:
        return picture.transpose(1, 2, 0)
    return picture


def _one_array_an_input(arrays: Any, example: tuple[Tensor, ...], prepare: Preprocessing | None, source: str) -> Inputs:
    if len(arrays) != len(example):
        raise DataError(
            f"'{source}' has the arrays {sorted(arrays)}, expected one an input of the model ({len(example)}), "
            f"or a data set with {sorted(_SET)}"
        )
    columns = [
        [sample for (sample,) in _given(array, prepare, f"{source}: {name}", (wanted,))]
        for (name, array), wanted in zip(arrays.items(), example, strict=True)
    ]
    if len({len(column) for column in columns}) != 1:
        raise DataError(
            f"'{source}' has arrays of {[len(column) for column in columns]} samples, expected the same number of each"
        )
    return list(zip(*columns, strict=True))


def _of_set(images: ImageSet, prepare: Preprocessing | None, limit: int, example: tuple[Tensor, ...]) -> Tensor:
    """Images of a data set, prepared with the network's own mean and deviation where it has some; floats with the set's."""
    images = replace(images, images=images.images[:limit], labels=images.labels[:limit])
    if prepare is not None and images.pictures:
        channels = images.images.shape[1]
        if prepare.channels != channels:
            raise DataError(f"the images have {channels} channels, the model takes {prepare.channels}; give fitting images")
        (floats,) = _stacked(list(_given(images.images, prepare, "the data set")))
        images = replace(images, images=floats, mean=(), std=())
    if len(example) == 1:
        images = shaped(images, tuple(example[0].shape[1:]))
    return images.normalised()


def _stacked(samples: Inputs) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*samples, strict=True))


def _split(inputs: Tensor) -> Inputs:
    return [(inputs[index : index + 1],) for index in range(len(inputs))]
