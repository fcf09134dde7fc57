"""Which values of a graph are quantized, together with which others, and with which range.

The rules (for integer kernels that all three runtimes have):

* A value is quantized when an integer op makes it or takes it.
* An activation that is alone after a conv, linear, add or mul (ReLU, ReLU6, any clamp) is fused into it: the range is taken after
  the clip. A scale taken before it wastes the integers on values that the clip removes.
* Ops that only move values (pooling by maximum, reshape, slice, concat) share one set of parameters with their inputs.
* A constant that is added, subtracted or multiplied may be one number.
* Sigmoid, tanh and softmax have the ranges that the integer kernels fix: [0, 1) and [-1, 1), in 16 bits all [-1, 1). Values that
  share parameters have such a range where all of them lie in it; `edgefold.export.passes.own_ranges` parts the others.
* A clone takes its input's values to other parameters.
* A concat on the way to an output stays float where `edgefold.quantize.joins` says so, and so does what moves its values on.
* Everything else stays float.

`annotate` says so as data; `EdgefoldQuantizer` says the same to PT2E (`prepare_pt2e`, `prepare_qat_pt2e`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgefold.quantize.graph import constant_of, is_constant
from edgefold.quantize.pt2e import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from edgefold.quantize.scheme import FIXED, INT8, INT16, JOINED_FLOAT, Grid, QParams

_ATEN = torch.ops.aten
CONVS: Final = frozenset({_ATEN.conv1d.default, _ATEN.conv2d.default})
WEIGHTED: Final = CONVS | {_ATEN.linear.default}
CLIPS: Final = frozenset(
    {_ATEN.relu.default, _ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.clamp.default, _ATEN.clamp_min.default}
)
_BINARY: Final = frozenset({_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor})
_UNARY: Final = CLIPS | {
    _ATEN.adaptive_avg_pool1d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.clone.default,
    _ATEN.hardsigmoid.default,
    _ATEN.hardswish.default,
    _ATEN.leaky_relu.default,
    _ATEN.mean.dim,
    _ATEN.prelu.default,
}
_FUSES_CLIP: Final = WEIGHTED | {_ATEN.add.Tensor, _ATEN.mul.Tensor}
_MOVES: Final = frozenset(
    {
        _ATEN.avg_pool2d.default,
        _ATEN.cat.default,
        _ATEN.constant_pad_nd.default,
        _ATEN.expand.default,
        _ATEN.flatten.using_ints,
        _ATEN.index_select.default,
        _ATEN.max_pool1d.default,
        _ATEN.max_pool2d.default,
        _ATEN.pad.default,
        _ATEN.permute.default,
        _ATEN.pixel_shuffle.default,
        _ATEN.reshape.default,
        _ATEN.slice.Tensor,
        _ATEN.squeeze.dim,
        _ATEN.squeeze.dims,
        _ATEN.transpose.int,
        _ATEN.unsqueeze.default,
        _ATEN.upsample_nearest2d.vec,
        _ATEN.view.default,
    }
)
SPLITS: Final[frozenset[object]] = frozenset({_ATEN.chunk.default, _ATEN.split.Tensor, _ATEN.split_with_sizes.default})
# Those of the moves that neither add values nor leave any out by their size: at an output they cost the same in float.
INTEGER_MOVES: Final = SPLITS | {
    _ATEN.cat.default,
    _ATEN.flatten.using_ints,
    _ATEN.index_select.default,
    _ATEN.permute.default,
    _ATEN.reshape.default,
    _ATEN.slice.Tensor,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.transpose.int,
    _ATEN.unsqueeze.default,
    _ATEN.view.default,
}
_FIXED: Final[dict[object, QParams]] = {
    _ATEN.sigmoid.default: QParams(1 / 256, -128),
    _ATEN.softmax.int: QParams(1 / 256, -128),
    _ATEN._softmax.default: QParams(1 / 256, -128),
    _ATEN.tanh.default: QParams(1 / 128, 0),
}
_PADS: Final = frozenset({_ATEN.constant_pad_nd.default, _ATEN.pad.default})
_FIXED_16: Final = QParams(1 / 32768, 0, INT16.qmin, INT16.qmax)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Names of nodes of one graph.

    ``groups`` are the quantized values, those that share parameters together, each in graph order; ``fixed`` gives the
    parameters of the groups (by first name) whose range the kernels fix; ``weighted`` are the convs and linears;
    ``constants`` are the single numbers that an integer op adds or multiplies; ``gates`` are the groups (by first name) of
    clipped values that only multiply others, as in hard-swish.
    """

    groups: tuple[tuple[str, ...], ...]
    fixed: dict[str, QParams]
    weighted: tuple[str, ...]
    constants: tuple[str, ...] = ()  # single numbers that integer ops take
    gates: frozenset[str] = frozenset()


def annotate(graph: GraphModule, keep_float: frozenset[str] = frozenset(), grid: Grid = INT8) -> Annotation:
    """What of a graph is quantized.

    Args:
        graph: ATen graph, float32, after fold.
        keep_float: names of convs and linears that stay float.
        grid: the integers of activations.
    """
    nodes: list[Node] = [node for node in graph.graph.nodes if _is_activation(node)]
    integer = {node for node in nodes if node.name not in keep_float and is_integer_op(node)}
    wanted: dict[Node, None] = {}
    for node in nodes:
        if node in integer:
            for source in node.all_input_nodes:
                if _is_activation(source):
                    wanted[source] = None
            wanted[node] = None
    fused = {node for node in wanted if is_fused_with_clip(node)}
    parents = {node: node for node in wanted if node not in fused}
    for node in integer:
        if node.target in _MOVES or node.target is operator.getitem:
            for source in node.all_input_nodes:
                source = _split_source(source)
                if node in parents and source in parents:
                    parents[_root(parents, node)] = _root(parents, source)
    members: dict[Node, list[Node]] = {}
    for node in nodes:
        if node in parents and node.target not in SPLITS:
            members.setdefault(_root(parents, node), []).append(node)
    groups = tuple(tuple(node.name for node in group) for group in members.values())
    ranges = {group[0].name: fixed_range(group, grid) for group in members.values()}
    fixed = {name: params for name, params in ranges.items() if params is not None}
    weighted = tuple(node.name for node in nodes if node in integer and node.target in WEIGHTED)
    constants = (source for node in nodes if node in integer and node.target in _BINARY for source in node.all_input_nodes)
    gates = frozenset(group[0].name for group in members.values() if all(map(_is_gate, group)))
    return Annotation(groups, fixed, weighted, tuple(dict.fromkeys(node.name for node in constants if is_constant(node))), gates)


def is_fused_with_clip(node: Node) -> bool:
    """Whether a conv, linear, add or mul is followed by a clip alone, with which integer kernels fuse it."""
    users = list(node.users)
    return node.target in _FUSES_CLIP and len(users) == 1 and users[0].target in CLIPS


def fixed_params(node: Node, grid: Grid = INT8) -> QParams | None:
    """The parameters that integer kernels (or the pixels that come in) fix for a node by itself; ``None`` where nothing does."""
    if FIXED in node.meta:
        params: QParams = node.meta[FIXED]
        return params
    return (_FIXED[node.target] if grid is INT8 else _FIXED_16) if node.target in _FIXED else None


def fixed_range(group: Sequence[Node], grid: Grid = INT8) -> QParams | None:
    """The fixed parameters of values that share theirs: those of all that compute anything, if no move leaves the range."""
    moves = [node for node in group if node.target in _MOVES or node.target is operator.getitem]
    found = {fixed_params(node, grid) for node in group if node not in moves}
    params = found.pop() if len(found) == 1 else None
    return params if params is not None and all(_stays_in(node, params) for node in moves) else None


class EdgefoldQuantizer(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """The annotation of a graph, told to PT2E.

    Args:
        annotation: what is quantized.
        activation: constructor of the observer (or fake quantizer) of an activation.
        weight: constructor of that of a weight, per output channel; ``None`` leaves weights alone.
    """

    def __init__(
        self, annotation: Annotation, activation: Callable[..., object], weight: Callable[..., object] | None = None
    ) -> None:
        super().__init__()
        self._annotation = annotation
        self._activation = activation
        self._weight = weight

    def annotate(self, model: GraphModule) -> GraphModule:
        """Sets PT2E's annotation on each node of ``model``."""
        nodes = {node.name: node for node in model.graph.nodes}
        outputs: dict[str, QuantizationSpecBase] = {}
        for first, *others in self._annotation.groups:
            outputs[first] = self._activation_spec(first)
            outputs.update(dict.fromkeys(others, SharedQuantizationSpec(nodes[first])))
        for name, node in nodes.items():
            inputs: dict[Node, QuantizationSpecBase] = {}
            if self._weight is not None and name in self._annotation.weighted:
                inputs[node.args[1]] = QuantizationSpec(
                    dtype=torch.int8,
                    observer_or_fake_quant_ctr=self._weight,
                    quant_min=-127,
                    quant_max=127,
                    qscheme=torch.per_channel_symmetric,
                    ch_axis=0,
                )
            if inputs or name in outputs:
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=outputs.get(name), _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the annotation was made from the graph itself."""

    def _activation_spec(self, name: str) -> QuantizationSpecBase:
        fixed = self._annotation.fixed.get(name)
        if fixed is not None:
            return FixedQParamsQuantizationSpec(
                dtype=fixed.dtype,
                scale=fixed.scale,
                zero_point=fixed.zero_point,
                quant_min=fixed.qmin,
                quant_max=fixed.qmax,
                qscheme=torch.per_tensor_affine,
            )
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=self._activation,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )


def _is_activation(node: object) -> bool:
    """Whether a node's value is a float tensor (or a tuple of them) that depends on the input."""
    if not isinstance(node, Node) or node.op not in ("placeholder", "call_function"):
        return False
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return isinstance(first, torch.Tensor) and first.is_floating_point()


def is_integer_op(node: Node) -> bool:
    """Whether integer kernels compute a node, unless it is kept in float by choice."""
    if node.op != "call_function" or JOINED_FLOAT in node.meta:
        return False
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, Node) and _is_activation(source) and source.target in SPLITS
    if node.target in WEIGHTED:
        return is_constant(node.args[1])
    if node.target in _BINARY:
        return all(_is_activation(argument) or _is_number(argument) for argument in node.args[:2])
    return node.target in _UNARY or node.target in _MOVES or node.target in SPLITS or node.target in _FIXED


def _is_gate(node: Node) -> bool:
    """Whether a value lies between bounds, and only multiplies others."""
    bounds = [bound for bound in node.args[1:] if bound is not None]
    return node.target is _ATEN.clamp.default and len(bounds) == 2 and {user.target for user in node.users} == {_ATEN.mul.Tensor}


def _stays_in(node: Node, params: QParams) -> bool:
    """Whether a move of values in a range makes none outside it: padding has a value."""
    if node.target not in _PADS:
        return True
    low, high = (params.scale * (end - params.zero_point) for end in (params.qmin - 1, params.qmax + 1))
    return all(low <= value <= high for value in node.args[2:] if isinstance(value, int | float))


def _is_number(node: object) -> bool:
    """Whether a node reads a constant of one element."""
    module = node.graph.owning_module if is_constant(node) else None
    return module is not None and constant_of(module, node).numel() == 1  # type: ignore[arg-type]  # a node, if there is a module


def _split_source(node: Node) -> Node:
    source = node.args[0] if node.target in SPLITS else node
    assert isinstance(source, Node)
    return source


def _root(parents: dict[Node, Node], node: Node) -> Node:
    while parents[node] is not node:
        node = parents[node]
    return node
