"""What the stages take as inputs of a network: one tensor or array, a tuple of them, or a dict of them by argument name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgefold.errors import DataError

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

_PAIR = "is an (image, label) pair, expected inputs only; give the images alone, e.g. (image for image, _ in data)"


def as_tensors(batch: Batch | NDArray[Any], what: str = "input") -> tuple[Tensor, ...]:
    """A batch as a tuple of contiguous tensors; numpy's arrays of numbers become tensors.

    Raises:
        DataError: it is not a tensor, a tuple of tensors or a dict of tensors.
    """
    values: Sequence[object]
    match batch:
        case tuple() | list():
            values = batch
        case Mapping():
            values = tuple(batch.values())
        case _:
            values = (batch,)
    return tuple(_as_tensor(value, what).detach().contiguous() for value in values)


def _as_tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, order="C"))  # a copy: torch warns of arrays that cannot be written to
    found = f"holds an array of {value.dtype}" if isinstance(value, np.ndarray) else f"is a {type(value).__name__}"
    raise DataError(f"{what} {found}, expected a torch.Tensor or an array of numbers, a tuple of them or a dict of them")


def refuse_labels(tensors: tuple[Tensor, ...], expected: int, what: str) -> None:
    """Refuses an (image, label) pair where the network takes one input.

    Raises:
        DataError: with the fix.
    """
    if len(tensors) == expected + 1 and not tensors[-1].is_floating_point() and tensors[-1].ndim <= 1:
        raise DataError(f"{what} {_PAIR}")


def samples_like(
    data: Iterable[Batch | NDArray[Any]] | Tensor | NDArray[Any], example: tuple[Tensor, ...], what: str
) -> Iterator[tuple[Tensor, ...]]:
    """The samples in ``data``, each of the shapes of ``example``: batches are joined and cut, a remainder is left out.

    Args:
        data: batches of any size, or one tensor of stacked samples.
        example: one batch of the size that the graph was captured for.
        what: how the data is called in messages, e.g. "calibration".

    Raises:
        DataError: labels in a batch, another number of inputs, another shape, a value that is no tensor, or fewer samples than
            one batch has.
    """
    batches: Iterable[Any] = (data,) if isinstance(data, Tensor | np.ndarray) else data
    size = len(example[0])
    whole = all(tensor.ndim > 0 and len(tensor) == size for tensor in example)  # every input has the batch as its first axis
    kept: tuple[Tensor, ...] = ()  # what is too little for a batch yet
    enough = False
    for index, batch in enumerate(batches):
        name = f"{what} batch {index}"
        if isinstance(batch, tuple | list) and len(batch) == len(example) + 1 and isinstance(batch[-1], int):
            raise DataError(f"{name} {_PAIR}")
        tensors = as_tensors(batch, name)
        refuse_labels(tensors, len(example), name)
        if len(tensors) != len(example):
            raise DataError(f"{name} has {len(tensors)} inputs, the model takes {len(example)}")
        for position, (tensor, wanted) in enumerate(zip(tensors, example, strict=True)):
            if tensor.shape[1:] != wanted.shape[1:] or tensor.ndim != wanted.ndim:
                raise DataError(
                    f"{name} has shape {tuple(tensor.shape)} for input {position}, expected {('N', *wanted.shape[1:])}; "
                    "give it the size and the preprocessing of the example inputs".replace("'N'", "N")
                )
        if whole and len({len(tensor) for tensor in tensors}) > 1:
            raise DataError(
                f"{name} has inputs of {[len(tensor) for tensor in tensors]} samples, expected the same number of each"
            )
        if kept:
            tensors = tuple(torch.cat(parts) for parts in zip(kept, tensors, strict=True))
        cut = len(tensors[0]) // size * size
        enough = enough or cut > 0
        for start in range(0, cut, size):
            yield tuple(tensor[start : start + size].to(wanted.dtype) for tensor, wanted in zip(tensors, example, strict=True))
        kept = tuple(tensor[cut:] for tensor in tensors) if whole and cut < len(tensors[0]) else ()
    if kept and not enough:
        raise DataError(
            f"{what} data has {len(kept[0])} samples, expected at least {size}, as many as the example inputs have; "
            "give more, or example inputs of fewer samples"
        )


def digest(samples: Iterable[tuple[Tensor, ...]]) -> str:
    """The SHA-256 of the samples' types, shapes and bytes, in hexadecimal."""
    state = hashlib.sha256()
    for sample in samples:
        for tensor in sample:
            state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor).encode())
    return state.hexdigest()
