"""Quantization-aware training: the canonical network, trained on while it computes as INT8 would.

The graph and its annotation are those of calibration, told to PT2E's `prepare_qat_pt2e` with fake quantizers of ours:

* activations keep the parameters of the calibrated table, so the result fits the same table;
* weights are rounded to the grid of their current scale per output channel, by the rule of calibration;
* gradients pass the rounding unchanged and stop where a value was clipped (straight-through estimator, Jacob et al., CVPR 2018).

Zeros of a weight stay zero: they are the structure that lowering reads.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgefold.errors import UsageError
from edgefold.quantize.annotate import WEIGHTED, EdgefoldQuantizer, annotate
from edgefold.quantize.calibrate import ScaleTable
from edgefold.quantize.graph import constant_of, is_constant
from edgefold.quantize.insert import WEIGHT_QMAX, WEIGHT_QMIN
from edgefold.quantize.pairs import full_scale, weight_scale
from edgefold.quantize.pt2e import FakeQuantizeBase, prepare_qat_pt2e
from edgefold.quantize.scheme import QParams


class ActivationFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]  # torchao is untyped
    """Rounds an activation to the grid of fixed parameters, set with `fix`."""

    def __init__(self, dtype: torch.dtype = torch.int8, **_: object) -> None:
        super().__init__()
        self.dtype = dtype
        self.params = QParams(1.0, 0)

    def fix(self, params: QParams) -> None:
        """Sets the parameters."""
        self.params = params

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantizes ``x``, of any shape."""
        p = self.params
        return torch.fake_quantize_per_tensor_affine(x, p.scale, p.zero_point, p.qmin, p.qmax)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each of shape (1,)."""
        return torch.tensor([self.params.scale]), torch.tensor([self.params.zero_point], dtype=torch.int64)


class WeightFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]  # torchao is untyped
    """Rounds a weight (N, ...) to the symmetric grids of its output channels as they are now."""

    def __init__(self, dtype: torch.dtype = torch.int8, **_: object) -> None:
        super().__init__()
        self.dtype = dtype
        self.scale = torch.ones(1)
        self.full_range = False

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantizes ``x``."""
        rule = full_scale if self.full_range else weight_scale
        self.scale = rule(x.detach()).clamp_min(1e-12)
        zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zeros, 0, WEIGHT_QMIN, WEIGHT_QMAX)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points, each of shape (N,)."""
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


def prepare_qat(graph: GraphModule, table: ScaleTable) -> nn.Module:
    """A trainable copy of the canonical graph that computes as its INT8 form.

    Args:
        graph: captured for the batch size of the training.
        table: the scales of the same network, from calibration.

    Raises:
        UsageError: the table is of another network.
    """
    annotation = annotate(graph)
    missing = [first for first, *_ in annotation.groups if first not in table.activations]
    if missing:
        raise UsageError(f"the table of scales has nothing for '{missing[0]}'; calibrate this network before training it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes inside torchao
        quantizer = EdgefoldQuantizer(annotation, ActivationFakeQuantize, WeightFakeQuantize)
        prepared = prepare_qat_pt2e(_trainable(graph), quantizer)
    assert isinstance(prepared, GraphModule)
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationFakeQuantize):
            source = node.args[0]
            assert isinstance(source, Node)
            module.fix(table.activations[source.name])
        elif isinstance(module, WeightFakeQuantize):
            module.full_range = any(user.name in table.full_range for user in node.users)
    for parameter in prepared.parameters():
        if parameter.requires_grad:
            _keep_zeros(parameter)
    return prepared


def trained_weights(prepared: nn.Module, graph: GraphModule) -> Mapping[str, Tensor]:
    """The trained weights and biases by the names that ``graph``, captured for any batch size, has for them."""
    state = dict(prepared.named_parameters()) | dict(prepared.named_buffers())
    names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    return {name: state[name].detach() for name in names if name in state}


def load_weights(graph: GraphModule, weights: Mapping[str, Tensor]) -> GraphModule:
    """A copy of ``graph`` with other weights.

    Raises:
        UsageError: a weight is of another shape.
    """
    result = copy.deepcopy(graph)
    for node in result.graph.nodes:
        if node.op == "get_attr" and str(node.target) in weights:
            value, current = weights[str(node.target)], constant_of(result, node)
            if value.shape != current.shape:
                raise UsageError(f"weight '{node.target}' has shape {tuple(value.shape)}, expected {tuple(current.shape)}")
            current.copy_(value)
    return result


def _trainable(graph: GraphModule) -> GraphModule:
    """A copy whose weights and biases are parameters with gradients, under their own names: fold leaves constants."""
    result = copy.deepcopy(graph)
    for node in result.graph.nodes:
        if node.target not in WEIGHTED:
            continue
        for constant in node.args[1:3]:
            if is_constant(constant):
                path, _, name = str(constant.target).rpartition(".")
                owner = result.get_submodule(path)
                value = nn.Parameter(constant_of(result, constant).clone())
                owner._buffers.pop(name, None)
                owner._parameters[name] = value
    return result


def _keep_zeros(parameter: nn.Parameter) -> None:
    if parameter.ndim < 2:
        return
    mask = parameter.detach() != 0
    parameter.register_hook(lambda gradient: gradient * mask)  # type: ignore[no-untyped-call]  # torch has no types for it
