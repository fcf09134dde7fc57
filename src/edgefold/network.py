"""What is shipped, how, and who is told about it: the data that `edgefold.shipping` and `edgefold.variants` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgefold.artifact import Format, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgefold.batch import Batch
    from edgefold.device_bench import BenchOptions
    from edgefold.pipeline import Lowerings
    from edgefold.preprocess import Preprocessing

    Arrays = tuple[NDArray[Any], ...]
    Metric = Callable[[Arrays, NDArray[np.int64]], float]

ALL_FORMATS = tuple(Format)
DEFAULT_PRECISIONS = (Precision.FP32, Precision.INT8)


class Progress(Protocol):
    """Told what `ship` is doing."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """A new stage begins, with so many steps if that is known."""
        ...

    def step(self) -> None:
        """One step of the stage is done."""
        ...


class Quiet:
    """A `Progress` that says nothing."""

    def stage(self, name: str, steps: int | None = None) -> None:
        """See `Progress.stage`."""

    def step(self) -> None:
        """See `Progress.step`."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Labelled inputs: images (N, C, H, W) or a tuple of inputs, and N class indices; ``data`` says what they are."""

    inputs: tuple[Tensor, ...]
    labels: NDArray[np.int64]
    data: str = "evaluation data"


@dataclass(frozen=True, slots=True)
class ShipOptions:
    """How to ship.

    ``max_drop`` is the loss of accuracy that is allowed against the float network, in points (hundredths). ``parity_samples`` are
    compared element by element with the torch reference. ``timing`` lets the lowering ``auto`` end with a measurement of the
    whole network, by default where ``device`` is this machine; ``max_size_bytes`` is the most that a file may have.
    """

    formats: tuple[Format, ...] = ALL_FORMATS
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    device: str = "host"
    lowering: Lowerings = "auto"
    observer: str = "auto"
    max_drop: float = 0.5
    parity_samples: int = 128
    bench: BenchOptions | None = None
    force: bool = False
    timing: bool | None = None
    max_size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What is shipped, and all that goes with it."""

    name: str
    module: nn.Module
    example_inputs: Batch
    calibration: Iterable[Batch] | Tensor | None = None
    evaluation: Evaluation | None = None
    metric: Metric | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    description: str = ""
    calibration_source: str = ""
    random_calibration: bool = False
    notes: tuple[str, ...] = ()
