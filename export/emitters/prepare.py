"""The part that all emitters share: from a lowered program to the graph and the tensor specs that its file will have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgefold.artifact import Format, Precision, TensorSpec
from edgefold.errors import UsageError
from edgefold.export.emitters.base import EmitOptions, checked_options
from edgefold.export.emitters.batches import capacity, trial
from edgefold.export.emitters.integer_only import refuse_float_ops
from edgefold.export.passes.adaptive_pool import ADAPTIVE_POOL, UNEVEN_POOL
from edgefold.export.passes.constant_first import CONSTANT_FIRST
from edgefold.export.passes.counted_padding import COUNTED_PADDING
from edgefold.export.passes.dynamic_batch import dynamic_batch
from edgefold.export.passes.global_mean import GLOBAL_MEAN
from edgefold.export.passes.hard_swish_tables import HARD_SWISH_TABLES
from edgefold.export.passes.infra import clone, run_passes
from edgefold.export.passes.integer_pools import INTEGER_POOLS
from edgefold.export.passes.io_layout import IO_CHANNELS_LAST, TO_NHWC, is_image
from edgefold.export.passes.module_names import STACK_AS_PATH
from edgefold.export.passes.nearest_resize import NEAREST_RESIZE
from edgefold.export.passes.plain_broadcasts import PLAIN_BROADCASTS
from edgefold.export.passes.plain_softplus import PLAIN_SOFTPLUS
from edgefold.export.passes.pool_windows import POOL_WINDOWS
from edgefold.export.passes.row_means import ROW_MEANS
from edgefold.export.passes.saturation import SATURATION, SPLIT_CLIPS
from edgefold.export.passes.splits_as_slices import SPLITS_AS_SLICES
from edgefold.export.passes.tflite_transposed_edges import TRANSPOSED_EDGES
from edgefold.export.program import LoweredProgram
from edgefold.quantize.insert import insert_qdq
from edgefold.quantize.scheme import JOINED_FLOAT, Q, QParams
from edgefold.quantize.weights import RoundedWeight, round_weights
from edgefold.schemes import scheme_of

BATCH = "batch"  # what a dynamic first dimension is called in a file


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph of ATen ops (with quantize and dequantize nodes where it is quantized) and what its file shall declare.

    The graph's own inputs and outputs are still float32; ``inputs`` and ``outputs`` have the types asked for. ``weights`` are
    those that became float32 numbers on a grid because the converter shall not see integers. Where the batch is dynamic,
    ``capacity`` is how many samples the file shall have room for (``None`` without a limit), the examples hold one sample, and
    ``trial`` has the samples, in torch's layout, that the file is tried with.
    """

    graph: GraphModule
    example_inputs: tuple[Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    weights: tuple[RoundedWeight, ...] = ()
    dynamic_batch: bool = False
    capacity: int | None = None
    random_calibration: bool = False
    trial: tuple[Tensor, ...] = ()

    def export(self) -> ExportedProgram:
        """The graph as the converters read it."""
        if not self.dynamic_batch:
            return torch.export.export(self.graph, self.example_inputs, strict=False)
        # A converter may take the example's size for the limit, and the size 1 for a constant.
        count = self.capacity or 2
        examples = tuple(tensor.expand(count, *tensor.shape[1:]).contiguous() for tensor in self.example_inputs)
        batch = torch.export.Dim(BATCH, min=1, max=self.capacity)
        # The graph's forward takes its inputs by position.
        return torch.export.export(self.graph, examples, dynamic_shapes=tuple({0: batch} for _ in examples), strict=False)


def prepare(lowered: LoweredProgram, options: EmitOptions, *, fold_weights: bool, run_time_scales: bool = False) -> Prepared:
    """Apply the layout, insert quantization, and say what the ends will be.

    Args:
        fold_weights: see `edgefold.quantize.insert.insert_qdq`.
        run_time_scales: see there.

    Raises:
        UsageError: the options do not go with the precision, or integer ends are asked for where an end is not quantized.
        UnsupportedError: a dynamic batch is asked for, and an op needs a fixed one.
    """
    options = checked_options(lowered.format, lowered.precision, options)
    scheme = scheme_of(lowered.precision)
    program = lowered.program
    graph = clone(program.graph)
    examples = tuple(tensor.detach().contiguous() for tensor in program.example_inputs)
    add_values(graph, examples)
    if scheme.integer_only:
        refuse_float_ops(graph, lowered.precision)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    results = output_values(graph)
    max_batch = options.max_batch if options.dynamic_batch and lowered.format is Format.EXECUTORCH else None
    samples = trial(graph, examples, max_batch) if options.dynamic_batch else ()
    room = capacity(graph, max_batch) if max_batch else None
    inputs = tuple(_spec(node, name, options, max_batch) for node, name in zip(placeholders, program.input_names, strict=True))
    if options.pixels is not None:
        inputs = (replace(inputs[0], pixel_mean=options.pixels.mean, pixel_std=options.pixels.std), *inputs[1:])
    outputs = tuple(_spec(node, name, options, max_batch) for node, name in zip(results, program.output_names, strict=True))
    if options.layout == "nhwc":
        examples = tuple(
            tensor.permute(TO_NHWC).contiguous() if is_image(node) else tensor
            for node, tensor in zip(placeholders, examples, strict=True)
        )
        graph, _ = run_passes(graph, (IO_CHANNELS_LAST,))
    graph, _ = run_passes(graph, (ADAPTIVE_POOL, GLOBAL_MEAN))
    if lowered.format is Format.TFLITE:
        graph, _ = run_passes(graph, (POOL_WINDOWS, NEAREST_RESIZE))
    if scheme.integer_ends:  # of 8 bits: kernels with activations of 16 are plain loops for either op
        graph, _ = run_passes(graph, (INTEGER_POOLS,))
    if lowered.format is Format.TFLITE:
        graph, _ = run_passes(graph, (CONSTANT_FIRST, TRANSPOSED_EDGES, PLAIN_BROADCASTS, PLAIN_SOFTPLUS))
    if lowered.format is Format.EXECUTORCH:
        graph, _ = run_passes(graph, (ROW_MEANS, COUNTED_PADDING, PLAIN_SOFTPLUS, SPLITS_AS_SLICES))
        if not lowered.plan.whole:  # the other runtimes round a sum and a product
            graph, _ = run_passes(graph, (HARD_SWISH_TABLES,))
    if options.dynamic_batch:
        if lowered.format is Format.TFLITE:
            graph, modified = run_passes(graph, (UNEVEN_POOL,))
            if modified:
                add_values(graph, examples)
        graph = dynamic_batch(graph, examples)
        examples = tuple(tensor[:1] for tensor in examples)
    if scheme.calibrated:
        clips = (SATURATION, SPLIT_CLIPS) if lowered.format is Format.EXECUTORCH else (SATURATION,)
        graph, _ = run_passes(graph, clips)
    weights: tuple[RoundedWeight, ...] = ()
    if scheme.rounded and not scheme.calibrated and not fold_weights:
        weights = round_weights(graph)
    elif scheme.rounded:
        graph = insert_qdq(graph, fold_weights=fold_weights, run_time_scales=run_time_scales)
    graph, _ = run_passes(graph, (STACK_AS_PATH,))
    return Prepared(
        graph,
        examples,
        inputs,
        outputs,
        lowered.precision,
        weights,
        options.dynamic_batch,
        room,
        options.random_calibration,
        samples,
    )


def add_values(graph: GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Set ``meta["val"]`` of every node to a tensor without storage: rewrites need not keep it up to date."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    FakeTensorProp(graph, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*examples)


def output_values(graph: GraphModule) -> list[Node]:
    """The nodes that the graph returns, one an output; a node that is returned twice is there twice."""
    values = graph.graph.output_node().args[0]
    assert isinstance(values, tuple | list)
    return [value for value in values if isinstance(value, Node)]


def _spec(node: Node, name: str, options: EmitOptions, max_batch: int | None) -> TensorSpec:
    value: Tensor = node.meta["val"]
    image = is_image(node)
    shape = tuple(value.permute(TO_NHWC).shape if image and options.layout == "nhwc" else value.shape)
    if options.dynamic_batch:
        shape = (-1, *shape[1:])
    layout = options.layout if image else "torch"
    if options.io == "float32" or not value.is_floating_point():
        return TensorSpec(name, shape, str(value.dtype).removeprefix("torch."), layout, max_batch=max_batch)
    params: QParams | None = node.meta.get(Q)
    if params is None and JOINED_FLOAT in node.meta:
        raise UsageError(
            f"--io {options.io}: '{name}' is joined in float, since the network was quantized for float32 ends; "
            f"quantize it with io='{options.io}'"
        )
    if params is None:
        raise UsageError(f"--io {options.io}: '{name}' is not quantized in this network; use --io float32")
    zero_point = params.zero_point + (128 if options.io == "uint8" else 0)
    return TensorSpec(name, shape, options.io, layout, params.scale, zero_point, max_batch=max_batch)
