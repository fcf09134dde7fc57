"""Activations and arithmetic. A constant of one value is given to torch as a number, which its graph passes know best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefold.models.from_onnx.build import Operand
from edgefold.models.from_onnx.layers import with_bias
from edgefold.models.from_onnx.op import OneHandler, Op

# ONNX element types; half precision and double are computed as float32, which is what the network is shipped from.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,
    11: torch.float32,
    16: torch.float32,
}


def plain(function: Callable[..., Any]) -> OneHandler:
    """The handler of an op that is a function of its inputs and nothing else."""

    def handler(op: Op) -> Operand:
        return op.call(function, *(op[index] for index in range(len(op.inputs))))

    return handler


def binary(function: Callable[..., Any]) -> OneHandler:
    """The handler of an op of two inputs that broadcast."""

    def handler(op: Op) -> Operand:
        return op.call(function, op[0], scalar(op[1])) if not op[0].constant else op.call(function, op[0], op[1])

    return handler


def scalar(operand: Operand) -> Any:
    """A constant of one value and no dimension as a number; all else as it is."""
    return operand.value.item() if operand.constant and operand.value.ndim == 0 else operand


def add(op: Op) -> Operand:
    """Add; a constant of one value a channel joins the layer before it."""
    return with_bias(op) or binary(torch.add)(op)


def div(op: Op) -> Operand:
    """Div, of integers towards zero."""
    if op[0].value.is_floating_point():
        return binary(torch.div)(op)
    return op.call(torch.div, op[0], op[1], rounding_mode="trunc")


def mod(op: Op) -> Operand:
    """Mod, with the sign of the divisor, or of the dividend (``fmod``)."""
    return op.call(torch.fmod if op.integer("fmod", 0) else torch.remainder, op[0], op[1])


def variadic(function: Callable[..., Any]) -> OneHandler:
    """The handler of an op that joins any number of inputs two by two."""

    def handler(op: Op) -> Operand:
        total = op[0]
        for index in range(1, len(op.inputs)):
            total = op.call(function, total, op[index])
        return total

    return handler


def mean(op: Op) -> Operand:
    """Mean of any number of inputs."""
    total = variadic(torch.add)(op)
    return total if len(op.inputs) == 1 else op.call(torch.div, total, float(len(op.inputs)))


def clip(op: Op) -> Operand:
    """Clip, with its bounds as inputs or attributes; from 0 to 6 it is ReLU6."""
    low, high = op.number(1, "min"), op.number(2, "max")
    low = None if low is not None and low <= torch.finfo(torch.float32).min else low
    high = None if high is not None and high >= torch.finfo(torch.float32).max else high
    if (low, high) == (0.0, 6.0):
        return op.call(F.relu6, op[0])
    if (low, high) == (0.0, None):
        return op.call(F.relu, op[0])
    if low is None and high is None:
        return op[0]
    if not op[0].value.is_floating_point():
        return op.call(torch.clamp, op[0], *(None if bound is None else int(bound) for bound in (low, high)))
    return op.call(torch.clamp, op[0], low, high)


def hard_sigmoid(op: Op) -> Operand:
    """HardSigmoid; with slope 1/6 it is torch's."""
    alpha, beta = op.decimal("alpha", 0.2) or 0.0, op.decimal("beta", 0.5) or 0.0
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return op.call(F.hardsigmoid, op[0])
    return op.call(torch.clamp, op.call(torch.add, op.call(torch.mul, op[0], alpha), beta), 0.0, 1.0)


def leaky_relu(op: Op) -> Operand:
    """LeakyRelu."""
    return op.call(F.leaky_relu, op[0], op.decimal("alpha", 0.01))


def elu(op: Op) -> Operand:
    """Elu."""
    return op.call(F.elu, op[0], op.decimal("alpha", 1.0))


def gelu(op: Op) -> Operand:
    """Gelu, exact or by tanh."""
    return op.call(F.gelu, op[0], approximate=op.text("approximate", "none"))


def softmax(function: Callable[..., Any]) -> OneHandler:
    """Softmax or LogSoftmax; before opset 13 over all dimensions from the axis on."""

    def handler(op: Op) -> Operand:
        x = op[0]
        axis = op.axis(op.integer("axis", -1 if op.opset >= 13 else 1), len(x.shape))
        if op.opset >= 13 or math.prod(x.shape[axis + 1 :]) == 1:
            return op.call(function, x, axis)
        flat = op.reshape(x, (*x.shape[:axis], math.prod(x.shape[axis:])))
        return op.reshape(op.call(function, flat, axis), x.shape)

    return handler


def power(op: Op) -> Operand:
    """Pow; the result has the type of the base."""
    x, exponent = op[0], scalar(op[1])
    if isinstance(exponent, Operand) or x.constant:
        return op.call(torch.pow, x, op.call(Tensor.to, op[1], x.value.dtype))
    if exponent == 0.5:
        return op.call(torch.sqrt, x)
    return op.call(torch.pow, x, int(exponent) if float(exponent).is_integer() else float(exponent))


def cast(op: Op) -> Operand:
    """Cast between numbers and booleans."""
    to = op.integer("to", 0)
    if to not in DTYPES:
        op.refuse(f"casts to element type {to}")
    x = op[0]
    return x if x.value.dtype == DTYPES[to] else op.call(Tensor.to, x, DTYPES[to])


def where(op: Op) -> Operand:
    """Where."""
    return op.call(torch.where, op[0], op[1], op[2])


def identity(op: Op) -> Operand:
    """Identity, and Dropout in inference."""
    training = op.get(2) if op.kind == "Dropout" else None
    if training is not None and bool(op.constant(2)):
        op.refuse("is in training mode")
    if len(op.node.outputs) > 1 and tuple(op.node.outputs[1].uses()):
        op.refuse("gives its mask")
    return op[0]
