"""The program between fold and emit: one captured graph, and the same graph lowered for one format.

Both hold a `torch.fx.GraphModule` of ATen ops as `torch.export` gives it (NCHW, float32, eval, weights as attributes).
Quantization is carried by the nodes' ``meta`` (see `edgefold.quantize.scheme`), so a rewrite keeps it by copying ``meta``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from edgefold.artifact import Format, Precision
from edgefold.export.plan import FoldPlan, LoweringPlan
from edgefold.quantize.calibrate import ScaleTable
from edgefold.quantize.correct import EqualizedPair
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.pixels import PixelInput


@dataclass(frozen=True, slots=True)
class Program:
    """The canonical network: every linear convolution is one ``aten.conv2d`` (or ``conv1d``).

    ``example_inputs`` are contiguous, one tensor an input, batch first. ``output_names`` has one name an output of the
    flattened result.
    """

    graph: GraphModule
    example_inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoweredProgram:
    """A program whose layers have the form chosen for one format and precision."""

    program: Program
    format: Format
    precision: Precision
    plan: LoweringPlan


@dataclass(frozen=True, slots=True)
class QuantizedProgram:
    """The canonical network with its one table of scales; the graph's nodes carry the parameters in their ``meta``.

    ``base`` is the float network that the table belongs to (``program`` may have corrected biases), ``float_layers`` the module
    paths of what was left in float by choice, ``equalized`` the pairs of layers that cross-layer equalization looked at.
    With ``pixels`` the graph takes camera pixels (float32 integers in 0…255) in the place of the network's first input.
    ``findings`` are what a reader must know of its integers, as sentences.
    """

    program: Program
    table: ScaleTable
    scheme: Precision
    plan: FoldPlan
    base: Program | None = None
    float_layers: tuple[str, ...] = ()
    equalized: tuple[EqualizedPair, ...] = ()
    pixels: PixelInput | None = None
    findings: tuple[str, ...] = ()

    @property
    def canonical(self) -> Program:
        """The float network that the table of scales belongs to."""
        return self.base or self.program

    def takes(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The network's inputs as the graph takes them."""
        return tuple(inputs) if self.pixels is None else self.pixels.first(inputs)

    def reference(self) -> GraphModule:
        """The fake-quantized graph: what every runtime should compute."""
        return insert_qdq(self.program.graph, fold_weights=True)
