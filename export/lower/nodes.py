"""What a node's recorded value says about it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node


def shape_of(node: object) -> tuple[int, ...] | None:
    """The shape of a tensor, None for anything else."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def is_float(node: Node) -> bool:
    """Whether a node gives a tensor of real numbers."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def are_constants(node: Node, *places: int) -> bool:
    """Whether the operands at these places, as far as they are there, are constants, which can follow an order."""
    found = (node.args[place] for place in places if place < len(node.args))
    return all(item is None or (isinstance(item, Node) and item.op == "get_attr") for item in found)


def places_of(node: Node, operand: Node) -> list[int]:
    """Where an op has an operand among its arguments: it may be both bounds of a clip."""
    return [place for place, argument in enumerate(node.args) if argument is operand]


def ints_of(value: Any) -> list[int]:
    """An argument that is one number or several."""
    return [int(value)] if isinstance(value, int) else [int(one) for one in value]


def record_values(module: GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Sets ``meta["val"]`` of every node to a tensor of its shape and type, without storage, unless all have one."""
    if all("val" in node.meta for node in module.graph.nodes if node.op != "output"):
        return
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*examples)
