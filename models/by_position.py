"""Networks that take inputs by name, as networks that take them by their place, as everything after a source does."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from edgefold.errors import ModelError


def take_by_position(module: nn.Module, names: tuple[str, ...], source: str) -> None:
    """Makes ``module`` itself take the inputs ``names`` in this order; its layers keep their names.

    Args:
        module: of the user's code.
        names: of arguments of its ``forward``.
        source: what the error calls it.

    Raises:
        ModelError: ``forward`` has no such argument, or needs one that is not among them.
    """
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ModelError(
            f"'{source}' has example inputs {', '.join(names)}, but its forward is {signature}: {error}; "
            "give one example for each input, by the names that forward has"
        ) from error
    kind = type(module)

    def forward(self: nn.Module, *inputs: Tensor) -> Any:
        return kind.forward(self, **dict(zip(names, inputs, strict=True)))

    places = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(places)  # type: ignore[attr-defined]  # the inputs keep their names
    members = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    # A class of its own, and no attribute of the module, since a copy of the module would keep a method of the original.
    module.__class__ = type(kind.__name__, (kind,), members)


def refuse_by_name_only(module: nn.Module, source: str) -> None:
    """Raises a `ModelError` for a ``forward`` that needs an input by name; for one that was given inputs without names."""
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ModelError(
                f"forward of '{source}' takes '{name}' by name only, but the example inputs have no names; "
                f"give them as a dictionary, as in {{'{name}': tensor}}"
            )


class ByPosition(nn.Module):
    """An exported program that takes its last inputs by name, as one that takes all by their place."""

    def __init__(self, program: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.program = program
        self.names = names

    def forward(self, *inputs: Tensor) -> Any:
        """What the program gives for its inputs in their order."""
        first = len(inputs) - len(self.names)
        return self.program(*inputs[:first], **dict(zip(self.names, inputs[first:], strict=True)))
