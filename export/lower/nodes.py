"""What a node's recorded value says about it."""

from __future__ import annotations

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


def record_values(module: GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Sets ``meta["val"]`` of every node to a tensor of its shape and type, without storage, unless all have one."""
    if all("val" in node.meta for node in module.graph.nodes if node.op != "output"):
        return
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*examples)
