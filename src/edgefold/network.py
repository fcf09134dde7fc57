"""What is shipped, how, and who is told about it: the data that `edgefold.shipping` and `edgefold.variants` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgefold.artifact import MAX_BATCH, Format, Precision
from edgefold.errors import DataError
from edgefold.schemes import scheme_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgefold.batch import Batch
    from edgefold.device_bench import BenchOptions
    from edgefold.pipeline import Lowerings
    from edgefold.preprocess import Preprocessing
    from edgefold.trained import TrainedWeights

    Arrays = tuple[NDArray[Any], ...]
    Metric = Callable[[Arrays, NDArray[np.int64]], float]

ALL_FORMATS = tuple(Format)
DEFAULT_PRECISIONS = (Precision.FP32, Precision.INT8)
DEFAULT_MAX_DROP = 0.5  # points


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

    ``max_drop`` is the loss of accuracy that is allowed against the float network, in points (hundredths). ``mixed_drop`` and
    ``max_ms`` are the budget within which the fewest layers are left in float (see `edgefold.mixing`). ``agree`` gives each layer
    one numeric class in all formats. ``io`` is the type of the inputs and outputs of integer files: ``uint8`` takes camera pixels
    where the network declares its preprocessing. ``exclude`` names layers (module paths) that stay in float in integer files;
    ``explain`` says whether the report tells which layers lose accuracy. ``parity_samples`` are compared element by element with
    the torch reference. ``timing`` lets the lowering ``auto`` end with a measurement of the whole network, by default where
    ``device`` is this machine; ``max_size_bytes`` is the most that a file may have. With ``dynamic_batch`` the files take any
    batch, in ExecuTorch up to ``max_batch``. ``portable`` integer ONNX files are exact on every x86 CPU, also on those that are
    unlike this machine's. ``native`` ones are for ``device`` alone: forms may win that are slow on other CPUs. Without ``fold``
    the network is taken as it is written, and its layers are kept so; without ``measure`` no times are taken.
    ``random_calibration`` is the network's own, for the mark in each integer file.
    """

    formats: tuple[Format, ...] = ALL_FORMATS
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    device: str = "host"
    lowering: Lowerings = "auto"
    observer: str = "auto"
    equalize: bool = False
    exclude: tuple[str, ...] = ()
    mixed_drop: float | None = None
    max_ms: float | None = None
    agree: bool = False
    io: Literal["float32", "int8", "uint8"] = "float32"
    layout: Literal["nchw", "nhwc"] = "nchw"
    explain: bool = True
    max_drop: float = DEFAULT_MAX_DROP
    parity_samples: int = 128
    bench: BenchOptions | None = None
    force: bool = False
    timing: bool | None = None
    max_size_bytes: int | None = None
    dynamic_batch: bool = False
    max_batch: int = MAX_BATCH
    portable: bool = False
    native: bool = False
    fold: bool = True
    measure: bool = True
    random_calibration: bool = False

    def __post_init__(self) -> None:
        for name in ("formats", "precisions"):  # each once, as its file has a name of its own
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))


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
    trained: TrainedWeights | None = None  # of quantization-aware training, for integer precisions

    def calibration_for(self, precision: Precision) -> Iterable[Batch] | Tensor | None:
        """The calibration data, as far as ``precision`` needs some: trained weights bring their scales.

        Raises:
            DataError: there is none.
        """
        if not scheme_of(precision).calibrated or self.trained is not None:
            return None
        if self.calibration is None:
            raise DataError(
                f"precision '{precision}' needs calibration data, and model '{self.name}' brings none; "
                "give --calibration PATH (or 'random', which only shows speed)"
            )
        return self.calibration


def tool_versions() -> dict[str, str]:
    """The installed versions of the packages that make and run artifacts."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "torchao", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "executorch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
