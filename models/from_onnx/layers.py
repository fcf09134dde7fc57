"""Ops with weights: they become modules, so that folding, quantization and training find them by name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.op import Op
from edgefold.models.from_onnx.windows import windows

Conv = nn.Conv1d | nn.Conv2d


def conv(op: Op) -> Operand:
    """Conv in one or two dimensions, with groups, dilations and any pads."""
    x, weight, bias = op[0], op.constant(1), op.constant(2) if op.get(2) else None
    w = windows(op, tuple(weight.shape[2:]), x.shape[2:])
    groups = op.integer("group", 1)
    outputs, share = weight.shape[:2]
    if groups < 1 or outputs % groups or x.shape[1] != share * groups:
        op.refuse(f"has a weight of shape {tuple(weight.shape)} and {groups} groups for an input of shape {x.shape}")
    if not w.even:
        x = op.call(F.pad, x, w.pads)
    kind: Any = nn.Conv1d if len(w.kernel) == 1 else nn.Conv2d
    padding = w.before if w.even else (0,) * len(w.kernel)
    module = kind(share * groups, outputs, w.kernel, w.stride, padding, w.dilation, groups, bias is not None, device="meta")
    return op.module(_with(module, weight, bias), x)


def conv_transpose(op: Op) -> Operand:
    """ConvTranspose; uneven pads are cropped from the full result."""
    x, weight, bias = op[0], op.constant(1), op.constant(2) if op.get(2) else None
    rank, groups = weight.ndim - 2, op.integer("group", 1)
    if op.node.attributes.get("output_shape") is not None or op.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        op.refuse("gives its output's size, expected pads")
    w = windows(op, tuple(weight.shape[2:]), x.shape[2:])
    extra = tuple(op.int_list("output_padding") or [0] * rank)
    if len(extra) != rank or any(e >= max(s, d) for e, s, d in zip(extra, w.stride, w.dilation, strict=True)):
        op.refuse("has an output_padding that does not fit its strides")
    kind: Any = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
    padding = w.before if w.even else (0,) * rank
    inputs, outputs = weight.shape[0], weight.shape[1] * groups
    module = kind(inputs, outputs, w.kernel, w.stride, padding, extra, groups, bias is not None, w.dilation, device="meta")
    y = op.module(_with(module, weight, bias), x)
    return y if w.even else op.call(F.pad, y, [-pad for pad in w.pads])


def gemm(op: Op) -> Operand:
    """Gemm: a linear layer where its weight is constant and its bias is one value an output."""
    x, alpha, beta = op[0], op.decimal("alpha", 1.0) or 0.0, op.decimal("beta", 1.0) or 0.0
    if op.integer("transA", 0):
        x = op.call(torch.t, x)
    if not op[1].constant:
        op.refuse("has a weight that is computed at run time")
    weight = op.constant(1) if op.integer("transB", 0) else op.constant(1).t()
    weight = weight if alpha == 1 else weight * alpha
    bias = op.get(2)
    if bias is None or beta == 0:
        return linear(op, x, weight, None)
    if bias.constant and bias.value.numel() in (1, len(weight)) and bias.value.numel() == max(bias.shape[-1:], default=1):
        return linear(op, x, weight, (bias.value * beta if beta != 1 else bias.value).reshape(-1).expand(len(weight)))
    scaled = bias if beta == 1 else op.call(torch.mul, bias, beta)
    return op.call(torch.add, linear(op, x, weight, None), scaled)


def matmul(op: Op) -> Operand:
    """MatMul: a linear layer where the second operand is a constant matrix."""
    x, weight = op[0], op[1]
    if not x.constant and weight.constant and weight.value.ndim == 2 and len(x.shape) >= 2:
        return linear(op, x, weight.value.t(), None)
    return op.call(torch.matmul, x, weight)


def linear(op: Op, x: Operand, weight: Tensor, bias: Tensor | None) -> Operand:
    """A linear layer; ``weight`` is (outputs, inputs)."""
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        op.refuse(f"has a weight of shape {tuple(weight.shape)} for an input of shape {x.shape}")
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return op.module(_with(module, weight, bias), x)


def batch_norm(op: Op) -> Operand:
    """BatchNormalization with fixed statistics."""
    if op.integer("training_mode", 0) or len(op.node.outputs) > 1:
        op.refuse("is in training mode")
    if op.integer("spatial", 1) != 1:
        op.refuse("has statistics for each place")
    x = op[0]
    kinds: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    if len(x.shape) not in kinds:
        op.refuse(f"works on {len(x.shape)} dimensions, expected two to four")
    module = kinds[len(x.shape)](x.shape[1], eps=op.decimal("epsilon", 1e-5) or 0.0)
    parts = {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}
    with torch.no_grad():
        for name, index in parts.items():
            value = op.constant(index)
            if value.shape != (x.shape[1],):
                op.refuse(f"has statistics of shape {tuple(value.shape)} for an input of shape {x.shape}")
            getattr(module, name).copy_(value)
    return op.module(module, x)


def instance_norm(op: Op) -> Operand:
    """InstanceNormalization."""
    return op.call(F.instance_norm, op[0], weight=op[1], bias=op[2], eps=op.decimal("epsilon", 1e-5))


def layer_norm(op: Op) -> Operand:
    """LayerNormalization over the last dimensions."""
    if len(op.node.outputs) > 1:
        op.refuse("gives its statistics")
    x = op[0]
    shape = x.shape[op.axis(op.integer("axis", -1), len(x.shape)) :]
    if op[1].shape != shape:
        op.refuse(f"has a scale of shape {op[1].shape} for {shape}")
    return op.call(F.layer_norm, x, shape, op[1], op.get(2), op.decimal("epsilon", 1e-5))


def prelu(op: Op) -> Operand:
    """PRelu: a module where the slope is one value, or one a channel."""
    x, slope = op[0], op[1]
    if slope.constant and len(x.shape) >= 2:
        spatial = (1,) * (len(x.shape) - 2)
        if slope.value.numel() == 1 or slope.shape == (x.shape[1], *spatial):
            module = nn.PReLU(slope.value.numel(), device="meta")
            module.weight = nn.Parameter(slope.value.reshape(-1))
            return op.module(module, x)
    return op.call(torch.where, op.call(torch.ge, x, 0), x, op.call(torch.mul, x, slope))


def with_bias(op: Op) -> Operand | None:
    """An Add of one constant an output channel after a layer without bias: that layer with the bias; else ``None``."""
    for layer, other, source in ((0, 1, op.node.inputs[0]), (1, 0, op.node.inputs[1])):
        operand, value = op[layer], op[other]
        module = op.builder.module_of(operand)
        if not value.constant or not isinstance(module, nn.Linear | Conv) or module.bias is not None:
            continue
        if source is None or len(tuple(source.uses())) != 1 or source.is_graph_output():
            continue
        channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        shape = (channels,) if isinstance(module, nn.Linear) else (channels, *(1,) * (len(operand.shape) - 2))
        if tuple(value.shape[max(0, len(value.shape) - len(shape)) :]) == shape and value.value.numel() == channels:
            module.bias = nn.Parameter(value.value.reshape(-1))
            return operand
    return None


def _with(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The module with these weights; it was made without any, so that none are initialised in vain."""
    module.register_parameter("weight", nn.Parameter(weight.contiguous()))
    module.register_parameter("bias", None if bias is None else nn.Parameter(bias.contiguous()))
    return module
