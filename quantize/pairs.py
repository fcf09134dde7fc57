"""Weights whose products cannot saturate in 16 bits.

x86 CPUs without VNNI multiply unsigned activations with signed weights by VPMADDUBSW: a[k] w[k] + a[k+1] w[k+1] in 16 bits, with
saturation. That is the fastest integer product that they have (1.3 to 1.8 times as fast here as products in 32 bits), and it is
wrong where the sum leaves [-32768, 32767]. With activations up to 255 it cannot, for whatever activations, if in each pair

    sum of the positive weights <= 128    and    sum of the negative weights >= -128.

A pair holds neighbours in the order in which the kernel multiplies: taps of the filter, in each the input channels. The usual
remedy, 7 bits for every weight, costs 6 dB; a scale that only makes the worst pair fit costs next to nothing where a layer's
large weights are rare, and never more than that. Where all layers together would cost more than `ALLOWED_LOSS_DB`, those that
lose most keep the full range; ONNX Runtime gets them as uint8, which is exact and slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

PAIR_LIMIT: Final = 128
ALLOWED_LOSS_DB: Final = 0.5  # of SQNR, for the whole network


def largest_pair(weight: Tensor) -> Tensor:
    """The largest sum of like signs in a pair of each output channel, float64 (N,), for a weight (N, M, *kernel) or (N, M)."""
    rows = weight.double().movedim(1, -1).flatten(1)  # (N, taps * M)
    if rows.shape[1] % 2:
        rows = torch.nn.functional.pad(rows, (0, 1))
    pairs = rows.reshape(len(rows), -1, 2)
    return torch.maximum(pairs.clamp_min(0).sum(2).amax(1), (-pairs).clamp_min(0).sum(2).amax(1))


def is_pair_safe(weight: Tensor) -> bool:
    """Whether no product with an integer weight saturates."""
    return bool((largest_pair(weight) <= PAIR_LIMIT).all())


def full_scale(weight: Tensor) -> Tensor:
    """The scale (N,) of each output channel with which its largest magnitude is 127."""
    return weight.flatten(1).abs().amax(dim=1) / 127


def weight_scale(weight: Tensor) -> Tensor:
    """The scale (N,) of each output channel: its largest magnitude is 127, or less where a pair needs it.

    Depthwise weights have no pairs: their kernels multiply in more bits.
    """
    scale = full_scale(weight)
    return pair_safe_scale(weight, scale) if weight.shape[1] > 1 else scale


def pair_safe_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """The smallest scales (N,), not below ``scale``, with which the rounded weight is pair-safe.

    Rounding moves a pair's sum by up to one, hence a scale for a limit of one less.
    """
    return torch.maximum(scale, (largest_pair(weight) / (PAIR_LIMIT - 1)).to(scale.dtype))


def layers_of_full_range(losses: dict[str, float], sqnr_db: Callable[[frozenset[str]], float]) -> frozenset[str]:
    """The fewest layers that must keep the full range of their weights for a loss of at most `ALLOWED_LOSS_DB`.

    Args:
        losses: the noise that pair-safe scales add to a layer's weights over the power of these, for all layers.
        sqnr_db: the network's SQNR with the full range in some layers.
    """
    order: Sequence[str] = sorted((name for name, loss in losses.items() if loss > 0), key=lambda name: -losses[name])
    goal = sqnr_db(frozenset(order)) - ALLOWED_LOSS_DB
    few, enough = -1, len(order)
    while enough - few > 1:
        middle = (few + enough) // 2
        if sqnr_db(frozenset(order[:middle])) >= goal:
            enough = middle
        else:
            few = middle
    return frozenset(order[:enough])
