"""A dispatch mode with types, and without the wrapping for `torch.compile` that costs a third of the time of a call."""

from __future__ import annotations

from typing import Any, Self

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's modes have no types
    """Base of the modes here: every op that runs while it is entered goes to ``__torch_dispatch__``."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Leaves ``__torch_dispatch__`` as it is written: nothing is compiled under these modes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's modes have no types

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]  # PyTorch's modes have no types
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # PyTorch's modes have no types
