"""Which channels may be removed together, so that every layer that they touch keeps its structure.

A *dependency group* is a set of layers that share one channel axis, for example all that meet in the additions of a residual
stage. A *unit* is a set of channels of that axis that is removed as one:

* no structure: each channel by itself;
* HetConv with part P: P consecutive channels. One of each residue mod P goes, and all that follow move by P, so that
  (m − n) mod P stays what it was for every pair that is left, and the layer is a HetConv of the same P.
* group convolution or group norm with G groups: the channel at one place of each group, so that the groups stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.blocks.masked import MaskedConv2d


@dataclass(frozen=True, slots=True)
class Touch:
    """One layer of a dependency group, and where each channel of the group's axis is in the layer's own.

    ``places[i]`` are the channels of the layer that go when channel i of the axis does.
    """

    name: str
    layer: nn.Module
    output_side: bool
    places: tuple[tuple[int, ...], ...]


def partition(channels: int, touches: Sequence[Touch]) -> tuple[tuple[tuple[int, ...], ...], str]:
    """The units of an axis of ``channels``, and the reason if there are none (else the empty string)."""
    for touch in touches:
        if isinstance(touch.layer, MaskedConv2d) and not isinstance(touch.layer, HetConv2d):
            return (), f"'{touch.name}' is a {type(touch.layer).__name__}, whose pattern does not survive a removal"
    parts = {touch.layer.p for touch in touches if isinstance(touch.layer, HetConv2d)}
    groups = {_groups(touch) for touch in touches} - {1}
    if parts and groups:
        return (), f"HetConv and group convolutions share this axis ('{touches[0].name}')"
    if parts:
        size = math.lcm(*parts)
        units = tuple(tuple(range(start, start + size)) for start in range(0, channels - size + 1, size))
    elif groups:
        count = math.lcm(*groups)
        if channels % count:
            return (), f"{channels} channels do not divide into {count} groups ('{touches[0].name}')"
        span = channels // count
        units = tuple(tuple(place + group * span for group in range(count)) for place in range(span))
    else:
        units = tuple((channel,) for channel in range(channels))
    for touch in touches:
        if not all(_keeps_structure(touch, unit) for unit in units):
            return (), f"'{touch.name}' sees this axis in an order in which no unit keeps its structure"
    return units, ""


def _groups(touch: Touch) -> int:
    layer = touch.layer
    if isinstance(layer, nn.GroupNorm):
        # With a group a channel the number of groups would have to change: such an axis does not pass its trial.
        return 1 if layer.num_groups == layer.num_channels else layer.num_groups
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return 1
    # A depthwise convolution loses a whole group with each channel.
    return 1 if layer.groups == layer.in_channels == layer.out_channels else layer.groups


def _keeps_structure(touch: Touch, unit: tuple[int, ...]) -> bool:
    places = sorted(place for channel in unit for place in touch.places[channel])
    if isinstance(touch.layer, HetConv2d):
        consecutive = places == list(range(places[0], places[0] + len(places)))
        return consecutive and len(places) % touch.layer.p == 0
    groups = _groups(touch)
    if groups == 1:
        return True
    layer = touch.layer
    if isinstance(layer, nn.GroupNorm):
        channels = layer.num_channels
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        channels = layer.out_channels if touch.output_side else layer.in_channels
    span = channels // groups
    by_group = [[place % span for place in places if place // span == group] for group in range(groups)]
    return all(group == by_group[0] for group in by_group)
