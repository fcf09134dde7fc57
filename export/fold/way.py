"""Which way the code of a network takes: the ops that it runs, on what, with which numbers.

Code around a layer may ask for its class, its attributes or its children, and take another way with the folded one. The
outputs for the example inputs need not show it (a clamp beyond their range). So the network runs twice: with folded layers that
only answer the calls of its modules, which stay as they are, and with folded layers in the place of the modules. Two runs that
apply the same ops to the same operands are one program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from edgefold.export.fold.admission import operands, written_positions
from edgefold.export.fold.affine import storage_of
from edgefold.export.fold.modes import DispatchMode


class Way(DispatchMode):
    """Sums up the ops that run while it is entered.

    An operand counts as the op that wrote its memory last, as the input that it is, or else as its memory itself, which the
    weights of a network share with those of its shadow. Tensors made from Python values count with these.
    """

    supports_higher_order_operators = True

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._sum = hashlib.blake2b()
        self._steps = 0
        self._origin = {storage_of(tensor): f"input {index}" for index, tensor in enumerate(inputs)}

    @property
    def mark(self) -> bytes:
        """Equal for runs of the same ops."""
        return self._sum.digest()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            self._add((str(op), self._seen(args), [(name, self._seen(value)) for name, value in kwargs.items()]))
            out = op(*args, **kwargs)
            self._steps += 1
            known = isinstance(op, OpOverload)
            if known and op._opname == "lift_fresh":
                self._add(out.tolist())
            written = (
                [args[index] if index < len(args) else kwargs.get(name) for index, name in written_positions(op)] if known else []
            )
            for value in operands((out, *written)):
                if isinstance(value, Tensor):
                    self._origin[storage_of(value)] = f"op {self._steps}"
                    self._add(self._seen(value))
        return out

    def _add(self, value: Any) -> None:
        self._sum.update(repr(value).encode())

    def _seen(self, value: Any) -> Any:
        """The value as something whose text is the same in both runs."""
        if isinstance(value, Tensor):
            storage = storage_of(value)
            return (self._origin.get(storage, storage), value.dtype, value.shape, value.stride(), value.storage_offset())
        if isinstance(value, list | tuple):
            return [self._seen(member) for member in value]
        return value if isinstance(value, _PLAIN) else type(value)


_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
