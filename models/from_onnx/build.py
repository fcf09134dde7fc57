"""The graph under construction: ONNX values as operands, torch calls as nodes of an `torch.fx` graph.

An operand is a constant, which has its real value, or the result of a node, which has the shape and type only (a fake tensor). A
call of constants is computed at once, so that whole chains of shapes disappear; any other becomes a node. The names of a file
become attribute paths and never code: everything but letters, digits, ``_`` and ``.`` is replaced.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from edgefold.errors import ModelError

MAX_ELEMENTS: Final = 2**28  # of one value: 1 GB of float32
_MAX_FOLDED_BYTES: Final = 2**30  # of all constants that are computed


@dataclass(frozen=True, slots=True)
class Operand:
    """One value. ``node`` is ``None`` for a constant; ``name`` is that of an initializer."""

    value: Tensor
    node: Node | None = None
    name: str = ""

    @property
    def constant(self) -> bool:
        """Whether its value is known."""
        return self.node is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(self.value.shape)


class Builder:
    """Collects modules, constants and nodes."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.root = nn.Module()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._paths: dict[str, bool] = {}  # path -> whether something lies there, or only below it
        self._kept: dict[int, tuple[Tensor, Node]] = {}  # id of a constant -> itself, so that the id stays its own, and its node
        self._folded_bytes = 0

    def input(self, name: str, example: Tensor) -> Operand:
        """A new input."""
        place = identifier(name)
        taken = {node.target for node in self.graph.nodes if node.op == "placeholder"}
        while place in taken:
            place += "_"
        return Operand(self._fake.from_tensor(example), self.graph.placeholder(place))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Operand:
        """The result of a torch function, whose arguments may hold operands.

        Raises:
            ModelError: the result is too large.
        """
        operands = _operands((args, tuple(kwargs.values())))
        with torch.no_grad(), self._fake:
            shape_only = function(*_map(args, lambda one: one.value), **_map(kwargs, lambda one: one.value))
        if isinstance(shape_only, Tensor):
            self._check(shape_only)
        if all(operand.constant for operand in operands):
            for tensor in shape_only if isinstance(shape_only, (tuple, list)) else (shape_only,):
                self._folded_bytes += tensor.numel() * tensor.element_size()
            if self._folded_bytes > _MAX_FOLDED_BYTES:
                raise ModelError("its constants would take more than 1 GB when they are computed")
            with torch.no_grad():
                return Operand(function(*_map(args, lambda one: one.value), **_map(kwargs, lambda one: one.value)))
        made = self.graph.call_function(function, _map(args, self._argument), _map(kwargs, self._argument))
        return Operand(shape_only, made)

    def part(self, whole: Operand, index: int) -> Operand:
        """One tensor of a call that gave several."""
        import operator

        if whole.node is None:
            return Operand(whole.value[index])
        return Operand(whole.value[index], self.graph.call_function(operator.getitem, (whole.node, index)))

    def module(self, path: str, module: nn.Module, operand: Operand) -> Operand:
        """The result of a module, which gets the path or, where it is taken, one like it."""
        assert operand.node is not None
        module.eval()
        with torch.no_grad(), self._fake:
            value = module(operand.value)
        self._check(value)
        place = self.place(path)
        self._attach(place, module)
        return Operand(value, self.graph.call_module(place, (operand.node,)))

    def module_of(self, operand: Operand) -> nn.Module | None:
        """The module whose result an operand is, if it is one's."""
        if operand.node is None or operand.node.op != "call_module":
            return None
        return self.root.get_submodule(str(operand.node.target))

    def finish(self, outputs: dict[str, Operand]) -> GraphModule:
        """The module: one output is given as it is, several as a dict by name."""
        nodes = {name: self._argument(operand) for name, operand in outputs.items()}
        self.graph.output(nodes if len(nodes) > 1 else next(iter(nodes.values())))
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        module = GraphModule(self.root, self.graph, class_name="OnnxModel")
        module.delete_all_unused_submodules()
        return module.eval()

    def place(self, name: str) -> str:
        """A free attribute path for a name of the file."""
        path = ".".join(
            part for part in re.sub(r"[^\w.]", "_", name.strip("/").replace("/", "."), flags=re.ASCII).split(".") if part
        )
        path = path or "unnamed"
        parents = [path[: match.start()] for match in re.finditer(r"\.", path)]
        if any(self._paths.get(parent) for parent in parents) or hasattr(nn.Module, path.partition(".")[0]):
            path = "_" + path.replace(".", "_")
        free, number = path, 1
        while free in self._paths or hasattr(nn.Module, free):
            number += 1
            free = f"{path}_{number}"
        for match in re.finditer(r"\.", free):
            self._paths.setdefault(free[: match.start()], False)
        self._paths[free] = True
        return free

    def _attach(self, path: str, value: nn.Module | Tensor) -> None:
        parent, _, last = path.rpartition(".")
        owner = self.root
        for part in parent.split(".") if parent else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            owner.register_buffer(last, value)

    def _argument(self, operand: Operand) -> Node:
        """The node of an operand; a constant becomes an attribute: a parameter if it is a float of the file's own."""
        if operand.node is not None:
            return operand.node
        found = self._kept.get(id(operand.value))
        if found is None:
            path = self.place(operand.name or "constant")
            own = bool(operand.name) and operand.value.is_floating_point()
            self._attach(path, nn.Parameter(operand.value) if own else operand.value)
            found = self._kept[id(operand.value)] = (operand.value, self.graph.get_attr(path))
        return found[1]

    def _check(self, value: Tensor) -> None:
        if value.numel() > MAX_ELEMENTS:
            raise ModelError(f"its result of shape {tuple(value.shape)} has more than {MAX_ELEMENTS} values")


def identifier(name: str) -> str:
    """A Python identifier like a name."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{found}" if not found or found[0].isdigit() or keyword.iskeyword(found) else found


def _operands(value: Any) -> list[Operand]:
    if isinstance(value, Operand):
        return [value]
    if isinstance(value, (tuple, list)):
        return [operand for each in value for operand in _operands(each)]
    return []


def _map(value: Any, replace: Callable[[Operand], Any]) -> Any:
    """The same value with every operand in it replaced; sequences and dicts keep their kinds."""
    if isinstance(value, Operand):
        return replace(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map(each, replace) for each in value)
    if isinstance(value, dict):
        return {key: _map(each, replace) for key, each in value.items()}
    return value


def sizes(shape: Sequence[int]) -> list[int]:
    """Sizes as torch's calls take them."""
    return [int(size) for size in shape]
