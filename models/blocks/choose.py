"""Convolutions by name, for networks whose convolutions can be exchanged.

standard            dense                    hetconv:4           HetConv with P = 4
group:4             4 groups                 dual:4              DualConv with 4 groups
separable           depthwise, then 1×1      channel-local:8     each output sees 8 inputs
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from torch import nn

from edgefold.errors import UsageError, unknown_name
from edgefold.models.blocks.arguments import IntPair
from edgefold.models.blocks.channel_local import ChannelLocalConv2d
from edgefold.models.blocks.dual import DualConv2d
from edgefold.models.blocks.group import GroupConv2d
from edgefold.models.blocks.hetconv import HetConv2d
from edgefold.models.blocks.separable import DepthwiseSeparableConv2d
from edgefold.models.blocks.standard import StandardConv2d


class ConvFactory(Protocol):
    """What makes a convolution: the constructor of a block with its own arguments bound."""

    def __call__(
        self, in_channels: int, out_channels: int, kernel_size: IntPair, *, stride: IntPair, padding: IntPair, bias: bool
    ) -> nn.Module:
        """A module (B, M, H, W) -> (B, N, H', W')."""
        ...


# Name -> the block, and the name of its own argument, if it has one.
CONVOLUTIONS: Final[dict[str, tuple[type[nn.Module], str | None]]] = {
    "channel-local": (ChannelLocalConv2d, "group_size"),
    "dual": (DualConv2d, "groups"),
    "group": (GroupConv2d, "groups"),
    "hetconv": (HetConv2d, "p"),
    "separable": (DepthwiseSeparableConv2d, None),
    "standard": (StandardConv2d, None),
}


def conv_factory(conv: str | ConvFactory) -> ConvFactory:
    """The factory that a name such as ``hetconv:4`` stands for; a factory stays as it is.

    Raises:
        UsageError: there is no such convolution, or its number is missing, superfluous or no positive integer.
    """
    if not isinstance(conv, str):
        return conv
    name, colon, text = conv.partition(":")
    if name not in CONVOLUTIONS:
        raise unknown_name("convolution", name, CONVOLUTIONS)
    block, argument = CONVOLUTIONS[name]
    if argument is None:
        if colon:
            raise UsageError(f"convolution '{conv}' has a number, but '{name}' takes none; write '{name}'")
        return block
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"convolution '{conv}' needs a positive integer for {argument}; write for example '{name}:4'")
    return partial(block, **{argument: int(text)})
