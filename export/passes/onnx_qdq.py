"""Reading and making QuantizeLinear/DequantizeLinear nodes; shared by the ONNX passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True, slots=True)
class Affine:
    """The parameters of a Q or DQ node: real = scale * (integer - zero_point); arrays of one element a channel, or none."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]

    @property
    def per_tensor(self) -> bool:
        """Whether there is one scale for the whole tensor."""
        return self.scale.ndim == 0

    def same(self, other: Affine) -> bool:
        """Whether both describe the same integers."""
        return (
            self.zero_point.dtype == other.zero_point.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def to_integer(self, value: float) -> int:
        """The integer that stands for ``value``; saturating, ties to even. Per tensor only."""
        limits = np.iinfo(self.zero_point.dtype)
        ratio = np.float32(value) / self.scale
        return int(np.clip(np.rint(ratio) + int(self.zero_point), limits.min, limits.max))


def affine_of(node: ir.Node) -> Affine | None:
    """The parameters of a Q or DQ node; ``None`` when they are computed."""
    scale, zero_point = (constant(node.inputs[index]) if len(node.inputs) > index else None for index in (1, 2))
    return None if scale is None or zero_point is None else Affine(scale, zero_point)


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer; ``None`` for a value that is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def add_constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer; the name is made unique."""
    unique, count = name, 0
    data = ir.tensor(array, name=name)
    while unique in model.graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    data.name = unique
    value = ir.Value(name=unique, const_value=data, shape=ir.Shape(array.shape), type=ir.TensorType(data.dtype))
    model.graph.register_initializer(value)
    return value


def producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes ``value`` if it is of one of the kinds."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in kinds and node.domain == "" else None


def only_consumer(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The one node that reads ``value`` if it is of one of the kinds and ``value`` is no graph output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.op_type in kinds and node.domain == "" else None


def is_weight(node: ir.Node) -> bool:
    """Whether a DQ node reads a constant."""
    return constant(node.inputs[0]) is not None


def new_node(
    like: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
) -> ir.Node:
    """A node of the same module as ``like``, not inserted yet.

    One output has the type and shape of that of ``like``; of several, what they are is not said.
    """
    path = (like.name or "").rpartition("/")[0]
    node = ir.node(op_type, inputs, attributes or {}, name=f"{path}/{op_type}", num_outputs=outputs)
    node.metadata_props.update(like.metadata_props)
    if outputs > 1:
        return node
    model = like.outputs[0]
    node.outputs[0].shape = model.shape
    if model.dtype is not None:
        node.outputs[0].dtype = model.dtype
    return node
