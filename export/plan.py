"""What fold and lower decided, and why: plain immutable data that the CLI, the report and the manifest show."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgefold.artifact import Format, Precision
from edgefold.results import Estimate


class Lowering(StrEnum):
    """How one folded layer is computed."""

    KEEP = "keep"  # the module's own graph
    DENSE = "dense"  # one Conv
    GROUPED = "grouped"  # group Conv (+ 1x1 Conv + Add)
    SPLIT = "split"  # one plain Conv a group, Concat (+ 1x1 Conv + Add)


class NumericClass(StrEnum):
    """Lowerings of one layer whose integer results are bit-equal share a class."""

    FUSED = "fused"
    BRANCHED = "branched"
    FLOAT = "float"


@dataclass(frozen=True, slots=True)
class KernelMap:
    """The zero structure of a conv weight of shape (N, M, *kernel).

    ``full`` counts the (n, m) pairs with a tap elsewhere than at ``tap``, ``centre`` those with that tap only, ``zero`` the rest.
    ``tap`` is the centre, as a rule; empty where it was not looked for.
    ``groups`` lists the connected components of the full pairs as (input channels, output channels).
    """

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...]
    full: int
    centre: int
    zero: int
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    tap: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """One module or graph region that fold looked at.

    ``macs`` and ``parameters`` are those that a sparse computation of the folded layer needs (the effective ones), and
    ``*_before`` those of the original form; MACs are for one sample at the example size.
    """

    name: str  # module path, e.g. "stage1.0.conv1"
    kind: str  # class of the original module, or the ops of a region, e.g. "conv2d + batch_norm"
    folded: bool
    reason: str  # why it stays as it is; empty when folded
    geometry: str = ""  # "32->64 k3x3 s1 p1,1,1,1 d1 g1"
    kernel_map: KernelMap | None = None
    ops_before: int = 0
    parameters_before: int = 0
    parameters: int = 0
    macs_before: int = 0
    macs: int = 0
    max_relative_error: float = 0.0  # of the folded layer against the original, over the check inputs


@dataclass(frozen=True, slots=True)
class Totals:
    """A whole network in one form: its graph's ops, its FLOPs for one sample (two a multiply-add), and its constants."""

    nodes: int
    flops: int
    parameters: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """What fold did to a network, layer by layer, in execution order.

    ``before`` and ``after`` are the whole network, as written and canonical, in float32; like the layers, a canonical convolution
    counts with what a sparse computation needs. They are ``None`` where the network was not folded.
    """

    layers: tuple[FoldedLayer, ...]
    before: Totals | None = None
    after: Totals | None = None


ESTIMATED: Final = "estimated"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a layer. ``cost_ns`` is measured on a device or scaled from FLOPs, as ``source`` says."""

    lowering: Lowering
    numeric_class: NumericClass
    macs: int
    weight_bytes: int
    cost_ns: float
    # "measured on host", "table x86-avx2", "estimated", "estimated from table x86-avx2", and the same with ", measured with
    # onnxruntime 1.32.0; here it is onnxruntime 1.33.0"
    source: str

    @property
    def estimated(self) -> bool:
        """Whether the cost is no measured time of this layer."""
        return self.source.startswith(ESTIMATED)


@dataclass(frozen=True, slots=True)
class LoweredLayer:
    """The choice for one layer."""

    name: str
    candidates: tuple[Candidate, ...]
    choice: Lowering
    reason: str
    geometry: str = ""  # "32->64 k3x3 s1x1 p1x1 d1x1 @14x14 g4*8->16 +point"
    structure: str = ""  # "4 groups of 8->16 + 1x1"
    kernel_map: KernelMap | None = None

    @property
    def chosen(self) -> Candidate:
        """The candidate that was chosen."""
        return next(candidate for candidate in self.candidates if candidate.lowering is self.choice)


@dataclass(frozen=True, slots=True)
class TimedForm:
    """One form of the whole network: the choice layer by layer (``auto``), or one lowering for all layers.

    ``ratio`` is its time over that of ``auto`` with a 95 % interval. It and ``median_ns`` are ``None`` where the form was not
    timed, and ``note`` says why.
    """

    name: str
    size_bytes: int | None = None
    median_ns: float | None = None
    ratio: Estimate | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class NetworkTiming:
    """The whole network's forms, timed against each other on a device with one thread, in ``rounds`` interleaved blocks."""

    device: str
    runtime: str
    rounds: int
    forms: tuple[TimedForm, ...]
    winner: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoweringPlan:
    """The choices for a network in one format and precision. ``gathers`` counts the explicit channel reorderings left.

    ``wide`` means that kernels which take many channels at once get them: in ONNX by channels with zero weights
    (`edgefold.export.lower.widen`), in TFLite by columns as channels (`edgefold.export.passes.tflite_columns`); ``columns``
    means the latter in ONNX (`edgefold.export.lower.columns`).
    ``whole`` means that formats shall agree: no convolution is computed in parts (`edgefold.export.lower.rows`), and no
    hard-swish is looked up in a table (`edgefold.export.passes.hard_swish_tables`).
    ``timing`` is how the choice was closed, ``None`` where the network's forms were not timed; ``reason`` says why not, and what
    a limit on the file's size changed. ``totals`` is the lowered network, where it was counted.
    """

    format: Format
    precision: Precision
    device: str
    layers: tuple[LoweredLayer, ...]
    gathers: int
    lowering: str = "auto"  # what was asked for
    wide: bool = False
    columns: bool = False
    whole: bool = False
    timing: NetworkTiming | None = None
    reason: str = ""
    totals: Totals | None = None
