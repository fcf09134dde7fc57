"""Sums of two quantized values as XNNPACK computes them, so that formats agree.

ONNX Runtime adds in float32 and rounds halves to even. XNNPACK adds integers: each operand is multiplied by its scale over that
of the sum, as a number of 21 bits, and halves are rounded up (``xnn_init_qs8_add_minmax_scalar_params``). The few elements that
come out a step apart become many in a deep network. In float64 XNNPACK's integers and their sums are exact.

Sums with a constant, as in hard-swish, have 256 results. They stay sums of ONNX Runtime, which come out the same once the
constant is off by a small share of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    Affine,
    add_constant,
    affine_of,
    constant,
    new_node,
    only_consumer,
    producer,
)

_MARGIN = 1e-4  # from a half, in steps: more than the float32 sums of two integers are wrong by
_NUDGES = tuple(sorted(np.arange(-50, 51) * 1e-4, key=abs))  # in steps
_BITS = 20  # the larger of the two multipliers is at least 2^20


@dataclass(frozen=True, slots=True)
class _Sum:
    """An Add between DequantizeLinear and QuantizeLinear nodes."""

    add: ir.Node
    quantize: ir.Node
    operands: tuple[tuple[ir.Value, Affine], ...]  # integers, and what they stand for
    result: Affine


def fixed_point_adds(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite every sum of two quantized values that is quantized itself, with one scale each."""
    modified = False
    for node in list(model.graph):
        one = _sum(node)
        if one is not None:
            if not _nudge(model, one):
                _rewrite(model, one)
            modified = True
    return model, modified


def multipliers(first: np.float32, second: np.float32, result: np.float32) -> tuple[int, int, int]:
    """XNNPACK's integer multipliers of two operands with these scales, and the bits that their sum is shifted by."""
    ratios = (np.float32(first / result), np.float32(second / result))
    shift = _BITS - (int(np.frexp(max(ratios))[1]) - 1)
    one, two = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    return one, two, shift


def _sum(node: ir.Node) -> _Sum | None:
    if node.op_type != "Add" or node.domain != "":
        return None
    quantize = only_consumer(node.outputs[0], QUANTIZE)
    result = None if quantize is None else affine_of(quantize)
    sources = [producer(value, DEQUANTIZE) for value in node.inputs]
    if quantize is None or result is None or not result.per_tensor:
        return None
    operands = []
    for source in sources:
        affine = None if source is None else affine_of(source)
        if source is None or affine is None or not affine.per_tensor or source.inputs[0] is None:
            return None
        if affine.zero_point.dtype not in (np.int8, np.uint8):
            return None
        operands.append((source.inputs[0], affine))
    return _Sum(node, quantize, tuple(operands), result)


def _nudge(model: ir.Model, one: _Sum) -> bool:
    """Give a constant operand a scale with which ONNX Runtime's sums are XNNPACK's; says whether there is one."""
    place = next((index for index, (value, _) in enumerate(one.operands) if constant(value) is not None), None)
    if place is None:
        return False
    (value, number), (_, other) = one.operands[place], one.operands[1 - place]
    added = np.unique(constant(value)).astype(np.int64) - int(number.zero_point)  # type: ignore[arg-type]  # it is a constant
    if len(added) != 1 or not added[0]:
        return False
    limits, bounds = np.iinfo(other.zero_point.dtype), np.iinfo(one.result.zero_point.dtype)
    integers = np.arange(limits.min, limits.max + 1) - int(other.zero_point)
    *factors, shift = multipliers(*(np.float32(affine.scale) for affine in (other, number, one.result)))
    theirs = np.floor(np.ldexp(np.float64(integers * factors[0] + added * factors[1]), -shift) + 0.5)
    sums = (integers * float(other.scale) + added * float(number.scale)) / float(one.result.scale)
    zero = int(one.result.zero_point)
    inside = (sums > bounds.min - zero - 1) & (sums < bounds.max - zero + 1)
    for nudge in _NUDGES:
        moved = sums + nudge
        if ((np.rint(moved) == theirs) & (np.abs(moved - np.floor(moved) - 0.5) > _MARGIN))[inside].all():
            break
    else:
        return False
    source = producer(one.add.inputs[place], DEQUANTIZE)
    assert source is not None
    scale = np.array(float(number.scale) + nudge * float(one.result.scale) / float(added[0]), np.float32)
    own = new_node(source, DEQUANTIZE, [value, add_constant(model, "nudged_scale", scale), source.inputs[2]])
    model.graph.insert_before(one.add, own)
    one.add.replace_input_with(place, own.outputs[0])
    return True


def _rewrite(model: ir.Model, one: _Sum) -> None:
    (_, first), (_, second) = one.operands
    *factors, shift = multipliers(*(np.float32(affine.scale) for affine in (first, second, one.result)))
    limits = np.iinfo(one.result.zero_point.dtype)
    offset = 0.5 + int(one.result.zero_point)
    nodes, terms = [], []

    def step(kind: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.DOUBLE) -> ir.Value:
        attributes = {"to": int(dtype)} if kind == "Cast" else {}
        node = new_node(one.add, kind, list(inputs), attributes)
        node.outputs[0].dtype = dtype
        nodes.append(node)
        return node.outputs[0]

    def number(name: str, value: float) -> ir.Value:
        return add_constant(model, name, np.array(value, np.float64))

    for (value, affine), factor in zip(one.operands, factors, strict=True):
        exact = np.ldexp(float(factor), -shift)
        offset -= exact * int(affine.zero_point)
        term = step("Mul", step("Cast", value), number("multiplier", exact))
        term.shape = value.shape
        terms.append(term)
    total = step("Add", step("Add", *terms), number("offset", offset))
    whole = step("Clip", step("Floor", total), number("least", limits.min), number("most", limits.max))
    result = step("Cast", whole, dtype=ir.DataType.from_numpy(one.result.zero_point.dtype))
    model.graph.insert_before(one.add, nodes)
    ir.convenience.replace_all_uses_with(one.quantize.outputs[0], result)
    model.graph.remove([one.quantize, one.add], safe=True)


def _none_left(model: ir.Model) -> str | None:
    found = [one for node in model.graph if (one := _sum(node)) is not None]
    names = [one.add.name for one in found if all(constant(value) is None for value, _ in one.operands)]
    return f"'{names[0]}' is left" if names else None


FIXED_POINT_ADDS: GraphPass[ir.Model] = GraphPass("onnx-fixed-point-adds", fixed_point_adds, ensures=(_none_left,))
