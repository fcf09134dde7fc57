"""The ways to compute one convolution, read from the zeros of its weight.

With the kernel map of `edgefold.export.fold.structure`, the pairs with full kernels fall apart into groups of
channels. If there is more than one,

    W ⋆ x  =  group(x)  +  point(x),

where group is a group convolution with the full kernels (and the centre taps within the groups), and point a 1×1
convolution with the centre taps outside of them; there is no second term if those are all zero. `dense` computes the
left side, `grouped` the right side, and `split` has one plain convolution a group in place of the group convolution.
A group convolution needs groups of one size: unequal ones are padded with channels of zero weights, where that is no
more work than the dense convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgefold.export.fold.structure import read_structure
from edgefold.export.lower.conv import Conv
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.permute import Wish
from edgefold.export.lower.point import PointPlacement, place_point
from edgefold.export.lower.spaces import Indices
from edgefold.export.plan import KernelMap, Lowering
from edgefold.quantize.scheme import BRANCH_Q, WEIGHT_SCALE

# More slices than this are slower than the group conv everywhere: each costs an op's overhead.
MAX_SPLIT = 16

Partition = tuple[tuple[Indices, Indices], ...]


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compute a layer. ``wish`` is the channel order that it needs; ``partition`` its groups.

    ``geometry`` is that of the layer, the same for all of its options: under it their measured times are found.
    """

    lowering: Lowering
    geometry: LayerGeometry
    partition: Partition = ()
    point: PointPlacement | None = None

    @property
    def padded(self) -> bool:
        """Whether groups of unequal sizes are padded; the channels are then gathered into them and out of them."""
        return self.lowering is Lowering.GROUPED and not self.geometry.equal_groups

    def changes(self, conv: Conv) -> bool:
        """Whether the convolution gets another form than the one that it has."""
        return self.lowering is not Lowering.KEEP and not (self.lowering is Lowering.DENSE and conv.groups == 1)

    def wish(self, conv: Conv) -> Wish | None:
        """The channel order that the option needs, if any."""
        if not self.partition or conv.groups > 1 or self.padded:
            return None
        reads, writes = (tuple(group[side] for group in self.partition) for side in (0, 1))
        return Wish(conv.node, reads, writes, aligned=self.lowering is Lowering.GROUPED)


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """All ways to compute one layer, and why there are no others."""

    conv: Conv
    kernel_map: KernelMap
    options: tuple[Option, ...]
    missing: dict[Lowering, str]

    @property
    def structure(self) -> str:
        """The groups in words, e.g. "4 groups of 16->16 + 1x1"."""
        widest = max(self.options, key=lambda option: len(option.geometry.groups)).geometry
        if not widest.groups:
            return "dense"
        sizes = " and ".join(f"{reads}->{writes}" for reads, writes in dict.fromkeys(widest.groups))
        return f"{len(widest.groups)} groups of {sizes}{' + 1x1' if widest.point else ''}"


def options_of(conv: Conv, weight: Tensor) -> Options:
    """The candidates for a convolution with ``weight`` (N, M / groups, *kernel)."""
    kernel_map = _whole(weight) if conv.groups == 1 and bool((weight != 0).all()) else read_structure(weight, conv.groups)
    if conv.groups > 1:
        return _own_groups(conv, kernel_map)
    missing: dict[Lowering, str] = {Lowering.KEEP: "a mask of zeros has no ops of its own"}
    if len(kernel_map.groups) < 2:
        reason = "the weight has no separate channel groups"
        keep = Option(Lowering.KEEP, _geometry(conv))
        return Options(conv, kernel_map, (keep,), dict.fromkeys((Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT), reason))
    partition = partition_of(kernel_map)
    point = bool(residual(weight, partition).any())
    options = [Option(Lowering.DENSE, _geometry(conv, partition, point))]
    for lowering in (Lowering.GROUPED, Lowering.SPLIT):
        if lowering is Lowering.GROUPED and not options[0].geometry.groupable:
            option: Option | str = "its channel groups are of unequal sizes, and padded ones are more work than a dense layer"
        elif lowering is Lowering.SPLIT and len(partition) > MAX_SPLIT:
            option = f"{len(partition)} groups are more than {MAX_SPLIT}"
        else:
            option = _branches(conv, lowering, partition, kernel_map.tap if point else None)
        if isinstance(option, str):
            missing[lowering] = option
        else:
            options.append(option)
    return Options(conv, kernel_map, tuple(options), missing)


def _whole(weight: Tensor) -> KernelMap:
    """The map of a weight without zeros: one component, which need not be searched for."""
    outs, ins, *kernel = weight.shape
    return KernelMap(outs, ins, tuple(kernel), outs * ins, 0, 0, ((tuple(range(ins)), tuple(range(outs))),))


def _own_groups(conv: Conv, kernel_map: KernelMap) -> Options:
    """A convolution that has groups already: it can also be one dense convolution or several plain ones."""
    reads = np.split(np.arange(conv.in_channels), conv.groups)
    writes = np.split(np.arange(conv.out_channels), conv.groups)
    partition = tuple(zip(reads, writes, strict=True))
    geometry = _geometry(conv, partition)
    keep = Option(Lowering.KEEP, geometry)
    if conv.depthwise:
        reason = "a depthwise convolution is at its cheapest"
        return Options(conv, kernel_map, (keep,), dict.fromkeys((Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT), reason))
    missing = {Lowering.GROUPED: "it is a group convolution as it stands"}
    options = [keep, Option(Lowering.DENSE, geometry)]
    if conv.groups <= MAX_SPLIT:
        options.append(Option(Lowering.SPLIT, geometry, partition))
    else:
        missing[Lowering.SPLIT] = f"{conv.groups} groups are more than {MAX_SPLIT}"
    return Options(conv, kernel_map, tuple(options), missing)


def _branches(conv: Conv, lowering: Lowering, partition: Partition, tap: tuple[int, ...] | None) -> Option | str:
    point = tap is not None
    if point and WEIGHT_SCALE in conv.node.meta and BRANCH_Q not in conv.node.meta:
        return "its two branches have not been calibrated"
    placement = None if tap is None else place_point(conv, tap)
    if point and placement is None:
        return "its 1x1 branch would read behind the end of its input"
    return Option(lowering, _geometry(conv, partition, point), partition, placement)


def _geometry(conv: Conv, partition: Partition = (), point: bool = False) -> LayerGeometry:
    groups = tuple((len(reads), len(writes)) for reads, writes in partition)
    return LayerGeometry(
        conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, conv.dilation, conv.in_space, groups, point
    )  # fmt: skip


def residual(weight: Tensor, partition: Partition) -> Tensor:
    """The weight without the blocks of the groups: what is left for the 1×1 convolution."""
    rest = weight.detach().clone()
    for reads, writes in partition:
        rest[torch.from_numpy(writes)[:, None], torch.from_numpy(reads)[None, :]] = 0
    return rest


def partition_of(kernel_map: KernelMap) -> Partition:
    """The channel groups of a layer with at least two components, for all of its lowerings.

    They are the most groups of equal sizes that hold the components whole: small components share a group, and channels
    without a full kernel fill the groups up. Where there are no such groups, each component is one.
    """
    gcd = math.gcd(kernel_map.in_channels, kernel_map.out_channels)
    for count in range(len(kernel_map.groups), 1, -1):
        packed = (
            None if gcd % count else _pack(kernel_map, count, kernel_map.in_channels // count, kernel_map.out_channels // count)
        )
        if packed is not None:
            return packed
    single = _pack(kernel_map, len(kernel_map.groups), kernel_map.in_channels, kernel_map.out_channels)
    assert single is not None
    return single


def _pack(kernel_map: KernelMap, count: int, in_size: int, out_size: int) -> Partition | None:
    """First fit, the largest component first, into ``count`` groups of at most the sizes given."""
    groups: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
    for reads, writes in sorted(kernel_map.groups, key=lambda group: (-len(group[0]) * len(group[1]), group)):
        # The emptiest one that has room keeps the numbers of components apart as long as there are groups left.
        room = [one for one in groups if len(one[0]) + len(reads) <= in_size and len(one[1]) + len(writes) <= out_size]
        if not room:
            return None
        target = min(room, key=lambda one: len(one[0]) + len(one[1]))
        target[0].extend(reads)
        target[1].extend(writes)
    for side, total, size in ((0, kernel_map.in_channels, in_size), (1, kernel_map.out_channels, out_size)):
        used = {channel for group in groups for channel in group[side]}
        for channel in range(total):
            if channel not in used:
                min((group for group in groups if len(group[side]) < size), key=lambda group: len(group[side]))[side].append(
                    channel
                )
    ordered = sorted((sorted(reads), sorted(writes)) for reads, writes in groups)
    return tuple((np.asarray(reads, dtype=np.int64), np.asarray(writes, dtype=np.int64)) for reads, writes in ordered)
