"""What a network writes while it runs: tensors from before the run, and attributes of its modules. Both can be given back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgefold.export.fold.shadow import is_plain_layer

_ABSENT: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """An attribute that was set; ``inside`` are the keys of the calls in which that was done."""

    owner: int  # the id of a module
    name: str
    inside: set[int] = field(default_factory=set)


class Writes:
    """The writes of one run. It is told of each before it is done."""

    def __init__(self) -> None:
        self.storages: set[int] = set()  # of tensors that were written
        self.settings: list[Setting] = []
        self._values: dict[int, _Values] = {}
        self._data: dict[int, tuple[Tensor, Tensor]] = {}
        self._attributes: dict[tuple[int, str], tuple[nn.Module, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.storages or self.settings)

    def before_op(self, tensor: Tensor, storage: int) -> None:
        """Of an op that writes into a tensor."""
        self.storages.add(storage)
        if id(tensor) not in self._values:
            self._values[id(tensor)] = _Values(tensor)

    def before_data(self, tensor: Tensor, storage: int) -> None:
        """Of an assignment to ``tensor.data``, which no op does."""
        self.storages.add(storage)
        if id(tensor) not in self._data:
            self._data[id(tensor)] = (tensor, tensor.data)

    def before_attribute(self, module: nn.Module, name: str) -> None:
        """Of an attribute of a module that is set."""
        self.settings.append(Setting(id(module), name))
        if is_plain_layer(module):  # others are shadows
            self._attributes.setdefault((id(module), name), (module, _held(module, name)))

    def restore(self) -> None:
        """Gives back what was there before the run, as often as it is asked to."""
        for (_, name), (module, held) in self._attributes.items():
            if held is _ABSENT:
                if _held(module, name) is not _ABSENT:
                    delattr(module, name)
            else:
                setattr(module, name, held)
        for tensor, data in self._data.values():
            tensor.data = data
        for values in self._values.values():
            values.restore()

    def written(self) -> dict[int, Tensor]:
        """Copies of the tensors that were written, as they are now, by the ids of these."""
        tensors = [*(one.tensor for one in self._values.values()), *(tensor for tensor, _ in self._data.values())]
        return {id(tensor): tensor.clone() for tensor in tensors}

    def set_from_outside(self, key: int, owners: Collection[int]) -> str:
        """What of these modules was set while the call ``key`` did not run; empty if nothing was."""
        return next((one.name for one in self.settings if key not in one.inside and one.owner in owners), "")


class _Values:
    """The shape and the values of a tensor that is about to be written."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._values = tensor, tensor.clone()
        self._geometry = (tensor.size(), tensor.stride(), tensor.storage_offset())

    def restore(self) -> None:
        """Gives them back; ops such as ``transpose_`` change the shape alone."""
        with torch.no_grad():
            if (self.tensor.size(), self.tensor.stride(), self.tensor.storage_offset()) != self._geometry:
                self.tensor.as_strided_(*self._geometry)
            self.tensor.copy_(self._values)


def _held(module: nn.Module, name: str) -> Any:
    """What a module holds by a name, without its own code for attributes."""
    places = (vars(module), module._parameters, module._buffers, module._modules)
    return next((place[name] for place in places if name in place), _ABSENT)
