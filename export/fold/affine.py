"""The affine proof: run the code once, and follow each tensor that depends on the input through every op.

A `Proof` is a dispatch mode. It keeps one or more open `Scope`s, each a piece of the network (a module's call) with one input
tensor; a scope stays sound as long as each op on its dependent tensors is admitted (`edgefold.export.fold.admission`), nothing
random is drawn, its constants are its own, and nothing that existed before the scope is written. One run of the network thus
judges all its modules. Dependence is kept by storage, so that views and writes into views are followed. Each storage is
noted when it is made, so that an address that is used again is never taken for what stood there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter

from edgefold.export.fold.admission import (
    admit,
    is_random,
    is_rounded,
    is_shape_only,
    keeps_own_state,
    operands,
    written_positions,
)
from edgefold.export.fold.cost import CONVOLUTIONS, SCALES, SUMS, macs_of, writes_out
from edgefold.export.fold.field import Field, advance, join, whole
from edgefold.export.fold.modes import DispatchMode
from edgefold.export.fold.read import Form
from edgefold.export.fold.writes import Writes

_ORIGIN = "uses a tensor of unknown origin: neither a parameter or buffer nor made by an op in its call"


@dataclass(slots=True, eq=False)
class Scope:
    """One call under proof: what was found about it so far. ``reason`` is empty while it may be affine."""

    source: Tensor
    start: int = 0
    reason: str = ""
    marks: dict[int, Field | None] = field(default_factory=dict)  # storage -> receptive field
    forms: dict[int, Form] = field(default_factory=dict)  # storage -> how it was put together, where that is known
    macs: int = 0
    ops: int = 0  # ops on dependent tensors
    computed: int = 0  # ops on constants: a mask times a weight, say
    convolutions: int = 0
    scales: int = 0
    sums: int = 0  # of two tensors that depend on the input
    reductions: int = 0
    foreign: dict[int, StorageWeakRef] = field(default_factory=dict)  # constants that neither are parameters nor come from an op
    parameters: set[int] = field(default_factory=set)  # storages of those that it reads

    @property
    def sound(self) -> bool:
        """Whether nothing was refused."""
        return not self.reason

    @property
    def written_out(self) -> bool:
        """Whether it may be a convolution without an op for one: products that are added."""
        return not self.convolutions and writes_out(self.scales, self.sums, self.reductions)


class Proof(DispatchMode):
    """Follows the open scopes through all ops. `edgefold.export.fold.watch.proof` enters it with its watch."""

    supports_higher_order_operators = True  # they are refused by name

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Scope] = []
        self.clock = 0
        self.chance = False  # whether randomness was drawn that no generator tells of
        self.born: dict[int, int] = {}  # storage made by an op -> when
        self.writes = Writes()  # into what existed before the run

    @contextmanager
    def scope(self, source: Tensor) -> Iterator[Scope]:
        """Opens a scope for a call on ``source`` of shape (batch, channels, *space)."""
        self.clock += 1
        scope = Scope(source, self.clock)
        with torch._C.DisableTorchFunction():
            scope.marks[storage_of(source)] = whole(source.ndim - 2) if source.ndim > 2 else None
        self.open.append(scope)
        try:
            yield scope
        finally:
            if scope in self.open:
                self.open.remove(scope)
            if scope.sound and any(_is_gone(reference) for reference in scope.foreign.values()):
                self.refuse((scope,), _ORIGIN)

    def field_of(self, scope: Scope, tensor: Tensor) -> Field | None:
        """The receptive field of a tensor in a scope, if it is known."""
        with torch._C.DisableTorchFunction():
            return scope.marks.get(storage_of(tensor))

    def form_of(self, scope: Scope, tensor: Tensor) -> Form | None:
        """How a tensor was put together from convolutions of the scope's input, if that is known."""
        with torch._C.DisableTorchFunction():
            return scope.forms.get(storage_of(tensor))

    def depends(self, scope: Scope, tensor: Tensor) -> bool:
        """Whether a tensor depends on the scope's input."""
        with torch._C.DisableTorchFunction():
            return storage_of(tensor) in scope.marks

    def refuse(self, scopes: Iterable[Scope], reason: str) -> None:
        """Ends scopes for a reason."""
        for scope in scopes:
            scope.reason = reason
            scope.marks.clear()
            scope.forms.clear()
        self.open = [scope for scope in self.open if scope.sound]

    def leave(self, reason: str, *, chance: bool) -> None:
        """Ends the open scopes, whose code calls what may give something else every time."""
        self.chance = self.chance or chance
        self.refuse(self.open, reason)

    def is_constant(self, scope: Scope, tensor: Tensor, storage: int) -> bool:
        """Whether an operand without a mark is a constant of the scope; ends the scope if it is not."""
        born = self.born.get(storage)
        if born is None:
            if type(tensor) is Parameter:
                scope.parameters.add(storage)
            elif storage not in scope.foreign:
                scope.foreign[storage] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch
        elif born < scope.start:
            self.refuse((scope,), "uses a tensor that was computed outside of its call")
            return False
        return True

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Our own reads of tensors are not the network's.
        with torch._C.DisableTorchFunction():
            if not isinstance(op, OpOverload):
                return self._refuse_higher_order(op, args, kwargs or {})
            return self._follow(op, args, kwargs or {})

    def _refuse_higher_order(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs an op that is given functions, such as ``torch.cond``, and ends all scopes: what the functions do is not seen."""
        self.refuse(self.open, f"calls the higher-order op {op._name}, whose inner code may branch on values")
        out = op(*args, **kwargs)
        self.clock += 1
        for value in operands((out,)):
            if isinstance(value, Tensor):
                self.born[storage_of(value)] = self.clock
        return out

    def _follow(self, op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = [value for value in operands((*args, *kwargs.values())) if isinstance(value, Tensor)]
        written = written_positions(op)
        if written:
            self._before_write(op, args, kwargs, written)
        out = op(*args, **kwargs)
        self.clock += 1
        results = [out] if isinstance(out, Tensor) else [value for value in operands((out,)) if isinstance(value, Tensor)]
        if self.open and is_random(op):
            self.refuse(self.open, f"draws random numbers ({op.namespace}.{op._opname})")
        if self.open and (own := next((tensor for tensor in tensors if _has_own_ops(tensor)), None)) is not None:
            self.refuse(self.open, f"uses a tensor of the class {type(own).__name__}, which defines ops of its own")
        storages = [storage_of(tensor) for tensor in tensors]
        # A tensor made from Python values comes with a storage of its own.
        known = () if op._opname == "lift_fresh" else storages
        made = [storage_of(result) for result in results]
        for storage in made:
            if storage not in known:
                self.born[storage] = self.clock
                for scope in self.open:
                    scope.marks.pop(storage, None)
            for scope in self.open:
                scope.forms.pop(storage, None)
        for scope in tuple(self.open):
            self._judge(scope, op, args, kwargs, list(zip(tensors, storages, strict=True)), list(zip(results, made, strict=True)))
        return out

    def _judge(
        self,
        scope: Scope,
        op: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[tuple[Tensor, int]],
        results: list[tuple[Tensor, int]],
    ) -> None:
        marks = scope.marks
        inputs: list[tuple[Tensor, Field | None]] = []
        for tensor, storage in tensors:
            if storage in marks:
                inputs.append((tensor, marks[storage]))
            elif not self.is_constant(scope, tensor, storage):
                return
        if not inputs:
            scope.computed += 1
            if keeps_own_state(op):
                self.refuse((scope,), f"calls the custom op {op.namespace}.{op._opname}, which may keep state")
            return
        if is_shape_only(op):
            return
        dependent = {id(tensor) for tensor, _ in inputs}
        reason = admit(op, args, kwargs, lambda value: id(value) in dependent)
        reason = reason or self._cut(scope, op, [result for result, _ in results])
        if reason is not None:
            self.refuse((scope,), reason)
            return
        scope.ops += 1
        for result, storage in results:
            found = advance(op, args, inputs, result)
            # Views and pieces that are written one by one share a storage and thus a field.
            marks[storage] = join(marks[storage], found) if storage in marks else found
        scope.macs += macs_of(op, args, [result for result, _ in results])
        scope.convolutions += op._opname in CONVOLUTIONS
        scope.scales += op._opname in SCALES
        scope.sums += op._opname in SUMS and len(inputs) > 1
        scope.reductions += op._opname == "sum"

    def _cut(self, scope: Scope, op: OpOverload, results: list[Tensor]) -> str | None:
        """Why the types of the results cannot hold the values as they are."""
        name = f"{op.namespace}.{op._opname}"
        for dtype in {result.dtype for result in results}:
            if dtype.is_complex:
                return f"turns values into complex numbers ({name})"
            if not dtype.is_floating_point:
                return f"turns values into integers ({name})"
            if is_rounded(dtype, scope.source.dtype):
                return f"rounds values to {str(dtype).removeprefix('torch.')} ({name})"
        return None

    def _before_write(
        self, op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], written: tuple[tuple[int, str], ...]
    ) -> None:
        """Ends the scopes that are older than what is written, and keeps the value of what existed before the run."""
        for position, name in written:
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in operands((target,)):
                if not isinstance(tensor, Tensor):
                    continue
                storage = storage_of(tensor)
                born = self.born.get(storage, -1)
                late = [scope for scope in self.open if born < scope.start]
                self.refuse(late, f"writes into a tensor that it did not make ({op.namespace}.{op._opname})")
                if born < 0:
                    self.writes.before_op(tensor, storage)


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor: equal for its views."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _has_own_ops(tensor: Tensor) -> bool:
    kind = type(tensor)
    return kind is not Tensor and kind is not Parameter and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def _is_gone(reference: StorageWeakRef) -> bool:
    gone: bool = reference.expired()  # type: ignore[no-untyped-call]  # torch
    return gone
