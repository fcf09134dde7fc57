"""Unstructured magnitude pruning: the smallest weights of a network become zero (Han et al., NeurIPS 2015).

The zeros make a file smaller once it is compressed. They make none of the three runtimes faster, whose convolutions are dense;
only a measurement can show a gain, and the report claims none. For speed see `edgefold.models.prune`.

Pruned weights stay zero during fine-tuning, by a parametrization that multiplies with a mask; `finish` removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgefold.errors import UsageError
from edgefold.models.blocks.masked import MaskedConv2d


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One layer: its weights, and how many of them are zero. Of masked convolutions the effective weights are counted."""

    name: str
    weights: int
    zeros: int


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """A whole network, weights of convolutions and linear layers."""

    layers: tuple[LayerSparsity, ...]

    @property
    def weights(self) -> int:
        """The weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of zeros, in [0, 1]."""
        return self.zeros / self.weights


class _Keep(nn.Module):
    """Multiplies a weight with a 0/1 mask of its shape."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where the mask has them."""
        return weight * self.kept


def magnitude_prune(module: nn.Module, sparsity: float) -> SparsityReport:
    """Zeroes the given share of all weights of convolutions and linear layers, the smallest of the whole network, in place.

    Each layer is scaled by its root mean square first, so that a layer of small weights is not emptied. At least
    one weight of each output stays, so that no output is cut off. Biases and norms stay.

    Raises:
        UsageError: ``sparsity`` is not in [0, 1), or the network is pruned already; `finish` it first.
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"pruning option sparsity is {sparsity}, expected a number in [0, 1)")
    layers = list(_layers(module))
    if any(parametrize.is_parametrized(layer, "weight") for _, layer, _ in layers):
        raise UsageError(f"{type(module).__name__} is pruned by magnitude already; finish it before pruning it again")
    scores = []
    for _, layer, exists in layers:
        weight = layer.weight.detach().double().abs()
        scaled = weight / weight[exists].square().mean().sqrt().clamp(min=1e-30)
        # The largest weight of each output is out of reach.
        largest = torch.where(exists, scaled, -1.0).flatten(1).argmax(1, keepdim=True)
        scaled = scaled.flatten(1).scatter(1, largest, float("inf")).view_as(scaled)
        scores.append(scaled)
    flat = torch.cat([score[exists] for score, (_, _, exists) in zip(scores, layers, strict=True)])
    count = round(sparsity * len(flat))
    threshold = flat.kthvalue(count).values if count else torch.tensor(-1.0)
    for score, (_, layer, exists) in zip(scores, layers, strict=True):
        kept = ((score > threshold) & exists) | torch.isinf(score)
        parametrize.register_parametrization(layer, "weight", _Keep(kept.to(layer.weight.dtype)))
    return sparsity_report(module)


def prune_in_rounds(
    module: nn.Module, sparsity: float, rounds: int, fine_tune: Callable[[nn.Module, int], None]
) -> SparsityReport:
    """Zeroes weights as `magnitude_prune` does, in place, in rounds that each leave the same share of what was left.

    ``fine_tune(module, round)`` is called after each, from 1. The zeros are part of the weights in the end.

    Raises:
        UsageError: ``rounds`` is below 1, or as in `magnitude_prune`.
    """
    if rounds < 1:
        raise UsageError(f"pruning option rounds is {rounds}, expected at least 1")
    for index in range(1, rounds + 1):
        left = (1 - sparsity) ** (index / rounds) if sparsity < 1 else 0.0
        magnitude_prune(module, 1 - left if index < rounds else sparsity)
        fine_tune(module, index)
        finish(module)
    return sparsity_report(module)


def finish(module: nn.Module) -> None:
    """Makes the zeros part of the weights and removes the masks, in place."""
    for _, layer, _ in _layers(module):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")


def sparsity_report(module: nn.Module) -> SparsityReport:
    """How many weights of each convolution and linear layer are zero, whatever made them so."""
    rows = []
    for name, layer, exists in _layers(module):
        weights = layer.weight.detach()[exists]
        rows.append(LayerSparsity(name, weights.numel(), int((weights == 0).sum())))
    return SparsityReport(tuple(rows))


_Layer = nn.Conv1d | nn.Conv2d | nn.Linear | MaskedConv2d


def _layers(module: nn.Module) -> Iterator[tuple[str, _Layer, Tensor]]:
    """(name, layer, where its weights exist: bool of the weight's shape)."""
    for name, layer in module.named_modules():
        if isinstance(layer, MaskedConv2d):
            yield name, layer, layer.mask.bool()
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            yield name, layer, torch.ones_like(layer.weight, dtype=torch.bool)
