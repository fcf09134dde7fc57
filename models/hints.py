"""Hints: outputs of a teacher's inner layers, towards which those of a student are pulled (FitNets, Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgefold.errors import UsageError, unknown_name


class Hints:
    """Watches pairs of layers while it is entered as a context, and keeps what they put out last.

    Args:
        student: has the first layer of each pair.
        teacher: has the second.
        pairs: layer names, as in ``named_modules``.

    Raises:
        UsageError: a name is no layer.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)
        self._layers: list[tuple[nn.Module, nn.Module]] = []
        for first, second in self.pairs:
            self._layers.append((_layer("student", student, first), _layer("teacher", teacher, second)))
        self._handles: list[RemovableHandle] = []
        self._seen: dict[tuple[int, int], Tensor] = {}  # (pair, 0 student or 1 teacher) -> (B, C, …)

    def __enter__(self) -> Self:
        for pair, layers in enumerate(self._layers):
            for side, layer in enumerate(layers):
                self._handles.append(layer.register_forward_hook(self._keep((pair, side))))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def _keep(self, key: tuple[int, int]) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._seen[key] = output

        return hook

    def regressors(self, run: Callable[[], None]) -> nn.ModuleList:
        """One convolution of size 1 a pair, from the student's channels to the teacher's; ``run`` passes a batch through both.

        Raises:
            UsageError: a layer is never called, or the outputs of a pair are no maps (B, C, H, W) or (B, C, T), or differ in
                size.
        """
        run()
        made = nn.ModuleList()
        for index, (first, second) in enumerate(self.pairs):
            for side, (whose, name) in enumerate((("student", first), ("teacher", second))):
                if (index, side) not in self._seen:  # an exported program's graph has the layers' weights, and calls none
                    raise UsageError(
                        f"hint '{first}' -> '{second}': layer '{name}' of the {whose} is never called (a .pt2 file holds one "
                        "graph and no layers that run); choose a layer that runs, or give the network's Python source"
                    )
            ours, theirs = self._seen[index, 0], self._seen[index, 1]
            if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
                raise UsageError(
                    f"hint '{first}' -> '{second}' names a layer that gives no tensor; choose layers that give one map"
                )
            if ours.ndim not in (3, 4) or ours.ndim != theirs.ndim or ours.shape[2:] != theirs.shape[2:]:
                raise UsageError(
                    f"hint '{first}' -> '{second}' compares maps of shape {tuple(ours.shape[1:])} and {tuple(theirs.shape[1:])}, "
                    "expected (C, H, W) with the same H and W, or (C, T); choose layers at the same resolution"
                )
            convolution = nn.Conv2d if ours.ndim == 4 else nn.Conv1d
            made.append(convolution(ours.shape[1], theirs.shape[1], 1))
        return made

    def loss(self, regressors: nn.ModuleList) -> Tensor:
        """The mean squared difference of the maps of the last pass, summed over the pairs; a scalar."""
        terms = [
            (regressor(self._seen[index, 0]) - self._seen[index, 1].detach()).square().mean()
            for index, regressor in enumerate(regressors)
        ]
        total: Tensor = sum(terms[1:], start=terms[0])
        return total


def _layer(whose: str, network: nn.Module, name: str) -> nn.Module:
    layers = dict(network.named_modules())
    if name not in layers or not name:
        raise unknown_name(f"layer of the {whose}", name, [layer for layer in layers if layer])
    layer: nn.Module = layers[name]
    return layer
