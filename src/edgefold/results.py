"""What the stages report: immutable, versioned JSON, every number with its unit in its name."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from edgefold.artifact import Format, Precision
from edgefold.errors import ArtifactError

SCHEMA_VERSION = 1

T = TypeVar("T")


class Code(StrEnum):
    """What a reader must know before trusting or comparing a measurement."""

    UNSTABLE = "UNSTABLE"  # A/A noise above 10 %
    NOT_CONVERGED = "NOT_CONVERGED"  # the warm-up hit its cap in time
    FEW_SAMPLES = "FEW_SAMPLES"  # fewer than 5 processes of 64 samples and 0.5 s
    THROTTLED = "THROTTLED"
    HOT = "HOT"  # the thermal gate was not reached in time
    GOVERNOR_NOT_PERFORMANCE = "GOVERNOR_NOT_PERFORMANCE"
    FREQUENCY_UNKNOWN = "FREQUENCY_UNKNOWN"
    LOW_BATTERY = "LOW_BATTERY"
    LOADED = "LOADED"  # other work on the device
    EMULATED = "EMULATED"  # never a latency of a real device
    FALLBACK_OPS = "FALLBACK_OPS"  # ops outside the accelerated kernels
    OUTPUT_MISMATCH = "OUTPUT_MISMATCH"  # the benchmarked run gave wrong outputs
    OUTPUT_UNCHECKED = "OUTPUT_UNCHECKED"


# With these a median is no latency: of no real device, or one that would not repeat.
NO_LATENCY = frozenset({Code.EMULATED, Code.UNSTABLE})


@dataclass(frozen=True, slots=True)
class CoreInfo:
    """One CPU core; frequencies are ``None`` where the device does not tell."""

    index: int
    governor: str | None = None
    min_khz: int | None = None
    current_khz: int | None = None
    max_khz: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device and its state at one moment. ``machine`` is the device's own ``uname -m``, ``abi`` what its programs are built
    for, by Android's names (``arm64-v8a``). ``affinity`` are the cores that a measured process could run on, where it told."""

    url: str
    machine: str
    system: str
    cpu: str
    features: tuple[str, ...] = ()
    cores: tuple[CoreInfo, ...] = ()
    memory_bytes: int | None = None
    model: str | None = None
    soc: str | None = None
    os_version: str | None = None
    temperature_c: float | None = None
    thermal_status: int | None = None
    battery_percent: int | None = None
    load_1min: float | None = None
    emulated: bool = False
    runtimes: dict[str, str] = field(default_factory=dict)  # format -> "onnxruntime 1.32.0"
    abi: str | None = None
    affinity: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, in the unit that the field holding it names."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Run:
    """One fresh process; raw samples are kept. ``None`` is what a runtime's own program does not tell."""

    samples_ns: tuple[int, ...]
    load_ns: int | None
    first_ns: int | None
    warmup_ns: tuple[int, ...]
    converged: bool = True  # the warm-up ended because the times had settled


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output of an artifact against its reference on the same inputs.

    ``max_abs_error`` and ``max_relative_error`` (of the reference's range) are over all elements. ``sqnr_db`` is
    10 log10(sum ref^2 / sum (ref - y)^2), ``None`` where there is no error at all. ``max_steps`` and ``share_different``
    count output quantization steps (LSB).
    """

    name: str
    max_abs_error: float
    max_relative_error: float
    sqnr_db: float | None
    max_steps: float | None = None
    share_different: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The latency of one artifact on one device in one configuration."""

    artifact: str  # file name
    artifact_sha256: str
    format: Format
    runtime: str  # "onnxruntime 1.32.0"
    threads: int
    runs: tuple[Run, ...]
    peak_rss_bytes: int | None  # None where nothing tells it
    device: DeviceInfo
    codes: tuple[Code, ...]
    interval_ns: tuple[float, float]  # 95 %, of the median, bootstrapped over processes
    noise: float  # A/A: half-width of the interval of a ratio of two halves of the runs, as a share
    device_before: DeviceInfo | None = None
    device_after: DeviceInfo | None = None
    cores: str | None = None
    date: str = ""
    precision: Precision | None = None
    p90_ns: Estimate | None = None  # only of at least 64 samples
    p99_ns: Estimate | None = None  # only of at least 662
    outliers: int = 0  # samples beyond the outer fences (3 interquartile ranges): counted, never dropped
    base_rss_bytes: int | None = None  # of the process with its runtime, before the model was loaded
    pss_bytes: int | None = None
    parity: tuple[OutputParity, ...] = ()  # of the benchmarked run's outputs, empty when there was no reference
    fallback_ops: tuple[str, ...] = ()

    @property
    def samples_ns(self) -> tuple[int, ...]:
        """The steady-state samples of all runs."""
        return tuple(sample for run in self.runs for sample in run.samples_ns)

    @property
    def median_ns(self) -> float:
        """The median of all samples."""
        return statistics.median(self.samples_ns)

    @property
    def load_ns(self) -> float | None:
        """The median load time of the runs that tell it."""
        return _median(run.load_ns for run in self.runs)

    @property
    def first_ns(self) -> float | None:
        """The median time of the first inference of the runs that tell it."""
        return _median(run.first_ns for run in self.runs)

    @property
    def max_steps(self) -> float | None:
        """How far the outputs are from their reference at most, in output quantization steps; ``None`` where none has steps."""
        return max((output.max_steps for output in self.parity if output.max_steps is not None), default=None)


def _median(values: Iterable[int | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


class Verdict(StrEnum):
    """What a comparison says of the candidate."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two artifacts measured side by side on one device.

    ``ratio`` is time of the candidate over time of the baseline with its 95 % interval: above 1, the candidate is slower. The
    verdict is ``faster`` or ``slower`` only where an interval of 99 % leaves out 1 and the ratio differs from it by at least
    ``threshold``. It is ``cannot tell`` on an emulated device, and where nothing shows but the interval reaches beyond 10 %.
    ``block_ratios`` are the independent ratios that it is made of: of one process with both, or of a block of processes.
    """

    baseline: Measurement
    candidate: Measurement
    ratio: Estimate
    verdict: Verdict
    threshold: float
    block_ratios: tuple[float, ...] = ()
    codes: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True)
class ParityReport:
    """An artifact, run in its real runtime, against the torch reference."""

    artifact: str
    format: Format
    precision: Precision
    reference: str  # "torch float32" or "fake-quantized torch"
    outputs: tuple[OutputParity, ...]
    samples: int
    passed: bool
    criterion: str  # "max error <= 1e-4 of the output range"
    top1: float | None = None
    top1_reference: float | None = None
    top1_agreement: float | None = None
    batches: tuple[int, ...] = ()  # of a file that takes any batch: those that it was run with; the figures are of the worst
    notes: tuple[str, ...] = ()  # what a reader must know of the data that these figures rest on
    top1_clear: float | None = None  # `top1_agreement` of samples whose best two differ by more than 2 output steps
    top1_close: int | None = None  # how many of the samples are not among those


@dataclass(frozen=True, slots=True)
class RuntimeAgreement:
    """Two artifacts of one precision on the same inputs: how far their outputs are apart, in output quantization steps."""

    first: str
    second: str
    max_steps: float
    share_different: float
    top1_agreement: float | None = None
    top1_clear: float | None = None  # of samples whose best two differ by more than 2 output steps in ``first``
    top1_close: int | None = None  # how many of the samples are not among those


def to_json(result: Any, *, indent: int | None = 2) -> str:
    """A result as JSON, with its kind and the schema version."""
    import json

    return json.dumps(to_dict(result), indent=indent, allow_nan=False)


def to_dict(result: Any) -> dict[str, Any]:
    """A result as plain data: ``{"schema": "edgefold.<Kind>/<version>", ...}``."""
    from pydantic import TypeAdapter

    body: dict[str, Any] = TypeAdapter(type(result)).dump_python(result, mode="json")
    return {"schema": f"edgefold.{type(result).__name__}/{SCHEMA_VERSION}", **body}


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """The result that `to_dict` wrote.

    Raises:
        ArtifactError: the data is of another kind or version, or does not fit the schema.
    """
    from pydantic import TypeAdapter, ValidationError

    expected = f"edgefold.{kind.__name__}/{SCHEMA_VERSION}"
    found = data.get("schema")
    if found != expected:
        same = str(found).startswith(f"edgefold.{kind.__name__}/")
        advice = "write it again with this version" if same else "give a file of that kind"
        raise ArtifactError(f"result has schema '{found}', expected '{expected}'; {advice}")
    try:
        return TypeAdapter(kind).validate_python({key: value for key, value in data.items() if key != "schema"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"result of schema '{expected}' is malformed at '{where}': {first['msg']}") from error
