"""Convolutions by name, for networks whose convolutions can be exchanged.

standard            dense                    hetconv:4                 HetConv with P = 4
group:4             4 groups                 dual:4                    DualConv with 4 groups
separable           depthwise, then 1×1      channel-local:8           each output sees 8 inputs, side by side
average-pool        mean, then 1×1           channel-local-sliding:8   the same in overlapping windows
max-pool            maximum, then 1×1        inverted-residual[:6]     with ReLU6, expanded by 6
shuffle:4           ShuffleNet's unit        inverted-hardswish[:6]    with hard-swish
shuffle-v2          ShuffleNet V2's unit

Attention follows any of them after a plus: ``standard+se``, ``hetconv:4+eca``, ``+channel``, ``+spatial``, ``+cbam``, with the
hard sigmoid, whose INT8 form is exact enough in every runtime. A unit whose channels change at stride 1, which it cannot do
itself, gets a 1×1 convolution, BatchNorm and ReLU in front.

The class of a block stands for the same as its name: ``ShuffleUnit``, ``partial(HetConv2d, p=4)``, ``MaxPool2d``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from torch import nn

from edgefold.errors import UsageError
from edgefold.models.blocks.arguments import IntPair, check_name, check_pair
from edgefold.models.blocks.cbam import CBAM, ChannelAttention
from edgefold.models.blocks.channel_local import ChannelLocalConv2d
from edgefold.models.blocks.dual import DualConv2d
from edgefold.models.blocks.efficient_channel import EfficientChannelAttention
from edgefold.models.blocks.group import GroupConv2d
from edgefold.models.blocks.hetconv import HetConv2d, NaiveHetConv2d
from edgefold.models.blocks.inverted_residual import InvertedResidual
from edgefold.models.blocks.locally_connected import LocallyConnected2d
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.blocks.pooling import AveragePool2d, GlobalAveragePool2d, GlobalMaxPool2d, MaxPool2d
from edgefold.models.blocks.separable import DepthwiseSeparableConv2d
from edgefold.models.blocks.shuffle import ChannelShuffle, ShuffleUnit
from edgefold.models.blocks.shuffle_v2 import ShuffleUnitV2
from edgefold.models.blocks.spatial_attention import SpatialAttention
from edgefold.models.blocks.squeeze_excite import SqueezeExcite
from edgefold.models.blocks.standard import StandardConv2d


class ConvFactory(Protocol):
    """What makes a convolution: the constructor of a block with its own arguments bound."""

    def __call__(
        self, in_channels: int, out_channels: int, kernel_size: IntPair, *, stride: IntPair, padding: IntPair, bias: bool
    ) -> nn.Module:
        """A module (B, M, H, W) -> (B, N, H', W')."""
        ...


def pooled_convolution(
    pool: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    bias: bool = True,
) -> nn.Sequential:
    """A pooling in the place of a separable convolution's depthwise part: (B, M, H, W) -> (B, N, H', W')."""
    window = pool(in_channels, in_channels, kernel_size, stride, padding, dilation)
    return nn.Sequential(window, StandardConv2d(in_channels, out_channels, 1, bias=bias))


def _shuffled(
    unit: Callable[..., nn.Module],
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: IntPair | None = None,
    dilation: IntPair = 1,
    bias: bool = False,
    **own: int,
) -> nn.Module:
    """A shuffle unit, with a 1×1 convolution in front where the channels change at stride 1."""
    if in_channels == out_channels or max(check_pair("conv", "stride", stride)) > 1:
        return unit(in_channels, out_channels, kernel_size, stride, padding, dilation, bias, **own)
    entry = [StandardConv2d(in_channels, out_channels, 1, bias=bias), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*entry, unit(out_channels, out_channels, kernel_size, stride, padding, dilation, bias, **own))


def _attended(
    conv: ConvFactory, attention: Callable[[int], nn.Module], in_channels: int, out_channels: int, *shared: Any, **own: Any
) -> nn.Sequential:
    """A convolution and attention on its outputs."""
    return nn.Sequential(conv(in_channels, out_channels, *shared, **own), attention(out_channels))


# Name -> the block, the name of its own argument, if it has one, and whether that may be left out.
CONVOLUTIONS: Final[dict[str, tuple[Callable[..., nn.Module], str | None, bool]]] = {
    "average-pool": (partial(pooled_convolution, AveragePool2d), None, True),
    "channel-local": (ChannelLocalConv2d, "group_size", False),
    "channel-local-sliding": (partial(ChannelLocalConv2d, window="sliding"), "group_size", False),
    "dual": (DualConv2d, "groups", False),
    "group": (GroupConv2d, "groups", False),
    "hetconv": (HetConv2d, "p", False),
    "inverted-hardswish": (partial(InvertedResidual, activation="hardswish"), "expand", True),
    "inverted-residual": (InvertedResidual, "expand", True),
    "max-pool": (partial(pooled_convolution, MaxPool2d), None, True),
    "separable": (DepthwiseSeparableConv2d, None, True),
    "shuffle": (partial(_shuffled, ShuffleUnit), "groups", False),
    "shuffle-v2": (partial(_shuffled, ShuffleUnitV2), None, True),
    "standard": (StandardConv2d, None, True),
}
_HARD: Final = "hardsigmoid"
ATTENTIONS: Final[dict[str, Callable[[int], nn.Module]]] = {
    "cbam": partial(CBAM, gate_name=_HARD),
    "channel": partial(ChannelAttention, gate_name=_HARD),
    "eca": partial(EfficientChannelAttention, gate_name=_HARD),
    "se": partial(SqueezeExcite, gate_name=_HARD),
    "spatial": lambda channels: SpatialAttention(gate_name=_HARD),
}


# Class -> what takes any channels in its place, as the block's name does.
_COMPLETED: Final[dict[type, ConvFactory]] = {
    AveragePool2d: partial(pooled_convolution, AveragePool2d),
    MaxPool2d: partial(pooled_convolution, MaxPool2d),
    ShuffleUnit: partial(_shuffled, ShuffleUnit),
    ShuffleUnitV2: partial(_shuffled, ShuffleUnitV2),
}
# Class -> the argument without which it cannot be made, and what to write instead.
_INCOMPLETE: Final[dict[type, tuple[str, str]]] = {
    HetConv2d: ("p", "write 'hetconv:4' or partial(HetConv2d, p=4)"),
    NaiveHetConv2d: ("p", "write partial(NaiveHetConv2d, p=4)"),
    MaskedConv2d: ("mask", "write a function that makes the layer with a mask of its weight's shape"),
}
_ONE_SIZE: Final = "is made for images of one size, which a network does not tell its convolutions"
_ATTENTION: Final = "keeps the channels and the size"
# Class -> why it cannot stand for a convolution, and what to write instead.
_UNFIT: Final[dict[type, tuple[str, str]]] = {
    CBAM: (_ATTENTION, "write 'standard+cbam'"),
    ChannelAttention: (_ATTENTION, "write 'standard+channel'"),
    ChannelShuffle: (_ATTENTION, "write 'shuffle:4', the unit around it"),
    EfficientChannelAttention: (_ATTENTION, "write 'standard+eca'"),
    GlobalAveragePool2d: ("takes the whole image", "write 'average-pool'"),
    GlobalMaxPool2d: ("takes the whole image", "write 'max-pool'"),
    LocallyConnected2d: (_ONE_SIZE, f"write one of: {', '.join(CONVOLUTIONS)}"),
    SpatialAttention: (_ATTENTION, "write 'standard+spatial'"),
    SqueezeExcite: (_ATTENTION, "write 'standard+se'"),
}


def conv_factory(conv: str | ConvFactory) -> ConvFactory:
    """The factory that a name such as ``hetconv:4`` or ``standard+se`` stands for; any other factory stays as it is.

    The classes `ShuffleUnit`, `ShuffleUnitV2`, `AveragePool2d` and `MaxPool2d`, alone or as `functools.partial` of them, stand
    for what their names stand for: they cannot change the channels everywhere by themselves.

    Raises:
        UsageError: there is no such convolution or attention, or its number is missing, superfluous or no positive integer; or
            the class is of a block that is no convolution, or lacks an argument.
    """
    if not isinstance(conv, str):
        if callable(conv):
            return _of_class(conv)
        raise UsageError(f"conv is {conv!r}, expected a name ({', '.join(CONVOLUTIONS)}) or the constructor of a block")
    name, plus, attention = conv.partition("+")
    if not plus:
        return _convolution(conv)
    check_name("attention", attention, ATTENTIONS)
    return partial(_attended, _convolution(name), ATTENTIONS[attention])


def _of_class(conv: ConvFactory) -> ConvFactory:
    block, given = (conv.func, conv.keywords) if isinstance(conv, partial) else (conv, {})
    if not isinstance(block, type):
        return conv
    if block in _UNFIT:
        why, instead = _UNFIT[block]
        raise UsageError(f"conv is {block.__name__}, which cannot stand for a convolution: it {why}; {instead}")
    argument, instead = _INCOMPLETE.get(block, (None, ""))
    if argument is not None and argument not in given:
        raise UsageError(f"conv is {block.__name__}, which needs {argument}; {instead}")
    whole = _COMPLETED.get(block)
    if whole is None:
        return conv
    return partial(whole, **given) if given else whole


def _convolution(conv: str) -> ConvFactory:
    name, colon, text = conv.partition(":")
    if name == "locally-connected":
        raise UsageError(f"convolution 'locally-connected' {_ONE_SIZE}; expected one of: {', '.join(CONVOLUTIONS)}")
    check_name("convolution", name, CONVOLUTIONS)
    block, argument, optional = CONVOLUTIONS[name]
    if not colon and optional:
        return block
    if argument is None:
        raise UsageError(f"convolution '{conv}' has a number, but '{name}' takes none; write '{name}'")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"convolution '{conv}' needs a positive integer for {argument}; write for example '{name}:4'")
    return partial(block, **{argument: int(text)})
