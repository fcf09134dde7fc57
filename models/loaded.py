"""A model with all that is known about it: what a source gives and what shipping takes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from edgefold.errors import ModelError, UnsupportedError
from edgefold.models.data import ImageSet
from edgefold.models.packing import check_finite
from edgefold.preprocess import Preprocessing


class LabelledImages(NamedTuple):
    """Network inputs, float32 (B, C, H, W), normalised, and their classes, int64 (B,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, data: ImageSet) -> LabelledImages:
        """All images of a set, normalised."""
        return cls(data.normalised(), data.labels)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with finite weights. What its source does not tell is ``None``.

    ``accuracy`` is the recorded top-1 share on the full test set of ``data``.
    """

    name: str  # fit for a file name
    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    calibration: LabelledImages | None = None
    evaluation: LabelledImages | None = None
    labels: tuple[str, ...] | None = None  # class names
    preprocess: Preprocessing | None = None
    data: str | None = None
    accuracy: float | None = None
    notes: tuple[str, ...] = ()  # what the user should know of how it was loaded


def example_image(size: tuple[int, ...]) -> Tensor:
    """A seeded random input of shape (1, \\*size), standard normal."""
    return torch.randn(1, *size, generator=Generator().manual_seed(0))


def checked(module: nn.Module, name: str) -> nn.Module:
    """``module`` in eval mode.

    Raises:
        ModelError: a parameter or buffer holds NaN or infinity, or is on the meta device.
    """
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta:
            raise ModelError(f"model '{name}' has no values in '{key}' (meta device); load its weights first")
        check_finite(value, key, name)
    return in_eval_mode(module)


def in_eval_mode(module: nn.Module) -> nn.Module:
    """``module`` in eval mode. That of an exported program is in no mode: it was fixed by the export."""
    try:
        return module.eval()
    except NotImplementedError:
        for part in module.modules():
            part.training = False
        return module


def refuse_fixed_graph(module: nn.Module, name: str, purpose: str) -> None:
    """Refuses the module of an exported program where layers must change or train.

    Args:
        module: in eval mode.
        name: what the error calls it.
        purpose: such as "pruned".

    Raises:
        UnsupportedError: see there.
    """
    try:
        module.train(module.training)
    except NotImplementedError as error:
        raise fixed_graph(name, purpose) from error


def fixed_graph(name: str, purpose: str) -> UnsupportedError:
    """The error for an exported program where layers must change or train."""
    return UnsupportedError(
        f"'{name}' is an exported program (.pt2), whose graph is fixed, and cannot be {purpose}; "
        "give the Python source that it was exported from, as in model.py:make_model"
    )


@contextmanager
def quiet_errors() -> Iterator[None]:
    """Without the traceback that a module of `torch.fx`, as made of an ``.onnx`` file, prints before it raises.

    What is written where nothing is raised is passed on at the end.
    """
    kept = io.StringIO()
    with redirect_stderr(kept):
        yield
    sys.stderr.write(kept.getvalue())
