"""One ONNX node as the functions that translate ops see it: operands, attributes with defaults, and one way to refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from edgefold.errors import UnsupportedError
from edgefold.models.from_onnx.build import Builder, Operand

if TYPE_CHECKING:
    import onnx_ir as ir

Result = Operand | tuple[Operand, ...]
Handler = Callable[["Op"], Result]
OneHandler = Callable[["Op"], Operand]


@dataclass(frozen=True, slots=True)
class Op:
    """A node with its inputs; an optional input that is left out is ``None``."""

    node: ir.Node
    inputs: tuple[Operand | None, ...]
    opset: int
    builder: Builder
    place: str  # "node 'NAME'", for messages
    path: str  # of the module that it may become

    @property
    def kind(self) -> str:
        """The op's name."""
        return self.node.op_type

    def refuse(self, reason: str) -> NoReturn:
        """Raises the `UnsupportedError` for a form of the op that is not read."""
        raise UnsupportedError(f"{self.kind} in {self.place} {reason}; export the model anew without it")

    def __getitem__(self, index: int) -> Operand:
        """An input that must be there."""
        found = self.get(index)
        if found is None:
            self.refuse(f"lacks its input {index}")
        return found

    def get(self, index: int) -> Operand | None:
        """An input, if it is there."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Tensor:
        """The value of an input that must be known when the model is read."""
        operand = self[index]
        if not operand.constant:
            self.refuse(f"computes its input {index} at run time, expected a constant")
        return operand.value

    def ints(self, index: int, attribute: str = "") -> list[int] | None:
        """Integers from a constant input or, as in older opsets, an attribute; ``None`` where there are none."""
        if self.get(index) is not None:
            return [int(value) for value in self.constant(index).reshape(-1).tolist()]
        return self.int_list(attribute) if attribute else None

    def number(self, index: int, attribute: str, default: float | None = None) -> float | None:
        """A number from a constant input or an attribute."""
        if self.get(index) is not None:
            return float(self.constant(index))
        return self.decimal(attribute, default)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self._attribute(name, "as_int", default))

    def decimal(self, name: str, default: float | None) -> float | None:
        """A float attribute."""
        found = self._attribute(name, "as_float", default)
        return None if found is None else float(found)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self._attribute(name, "as_string", default))

    def int_list(self, name: str, default: list[int] | None = None) -> list[int] | None:
        """An attribute of several integers."""
        found = self._attribute(name, "as_ints", default)
        return None if found is None else [int(value) for value in found]

    def _attribute(self, name: str, method: str, default: Any) -> Any:
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        try:
            return getattr(attribute, method)()
        except (TypeError, ValueError, AttributeError):
            self.refuse(f"has an attribute '{name}' of a wrong type")

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Operand:
        """See `Builder.call`."""
        return self.builder.call(function, *args, **kwargs)

    def reshape(self, operand: Operand, shape: tuple[int, ...] | list[int]) -> Operand:
        """The same values in another shape.

        Where the first size stays it is the batch: it is not written into the module, nor are sizes of channels where torch can
        do without. So the module takes other batches, and its channels can be pruned.
        """
        shape, old = tuple(shape), operand.shape
        if shape == old:
            return operand
        if len(shape) > 1 and len(old) > 1 and shape[0] == old[0] and 0 not in shape:
            if len(shape) == 2:
                return self.call(torch.flatten, operand, 1)
            if shape == (*old, *[1] * (len(shape) - len(old))):
                return self.call(torch.unflatten, operand, -1, (-1, *shape[len(old) :]))
            return self.call(torch.reshape, operand, (-1, *shape[1:]))
        return self.call(torch.reshape, operand, shape)

    def module(self, module: nn.Module, operand: Operand) -> Operand:
        """The result of a module of this op's own name; a constant is put through at once."""
        if operand.constant:
            return self.builder.call(module.eval(), operand)
        return self.builder.module(self.path, module, operand)

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= value < rank:
            self.refuse(f"has axis {value} for a value of {rank} dimensions")
        return value % rank

    def axes(self, values: list[int], rank: int) -> list[int]:
        """Axes counted from the front."""
        return [self.axis(value, rank) for value in values]
