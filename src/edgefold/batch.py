"""What the stages take as inputs of a network: one tensor, a tuple of them, or a dict of them by argument name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from edgefold.errors import DataError

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

_PAIR = "is an (image, label) pair, expected inputs only; give the images alone, e.g. (image for image, _ in data)"


def as_tensors(batch: Batch, what: str = "input") -> tuple[Tensor, ...]:
    """A batch as a tuple of contiguous tensors.

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
    for value in values:
        if not isinstance(value, Tensor):
            raise DataError(f"{what} is a {type(value).__name__}, expected a torch.Tensor, a tuple of them or a dict of them")
    return tuple(value.detach().contiguous() for value in values if isinstance(value, Tensor))


def refuse_labels(tensors: tuple[Tensor, ...], expected: int, what: str) -> None:
    """Refuses an (image, label) pair where the network takes one input.

    Raises:
        DataError: with the fix.
    """
    if len(tensors) == expected + 1 and not tensors[-1].is_floating_point() and tensors[-1].ndim <= 1:
        raise DataError(f"{what} {_PAIR}")


def samples_like(data: Iterable[Batch] | Tensor, example: tuple[Tensor, ...], what: str) -> Iterator[tuple[Tensor, ...]]:
    """The samples in ``data``, each of the shapes of ``example``: larger batches are cut, a remainder is left out.

    Args:
        data: batches of any size, or one tensor of stacked samples.
        example: one batch of the size that the graph was captured for.
        what: how the data is called in messages, e.g. "calibration".

    Raises:
        DataError: labels in a batch, another number of inputs, another shape, or a value that is no tensor.
    """
    batches: Iterable[Batch] = (data,) if isinstance(data, Tensor) else data
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
        size = len(example[0])
        for start in range(0, len(tensors[0]) - size + 1, size):
            yield tuple(tensor[start : start + size].to(wanted.dtype) for tensor, wanted in zip(tensors, example, strict=True))


def digest(samples: Iterable[tuple[Tensor, ...]]) -> str:
    """The SHA-256 of the samples' types, shapes and bytes, in hexadecimal."""
    state = hashlib.sha256()
    for sample in samples:
        for tensor in sample:
            state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor).encode())
    return state.hexdigest()
