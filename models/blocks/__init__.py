"""The convolutional blocks, one file each, with formulas for their parameters and multiply-accumulates.

Convolutions are made as ``Block(in_channels, out_channels, kernel_size, stride, padding, dilation, bias, …)``, the block's own
arguments last. Poolings take them too, so that one can stand where a convolution does; global poolings take the channels only.

Attention, the channel shuffle and the global poolings multiply, permute or summarise what is there. Their output has the channels
of their input, so that an ``out_channels`` could hold one value only, and no window moves over the image that a stride, a padding
or a dilation could change. Attention over channels is therefore made as ``Block(channels, …)``; spatial attention and the shuffle
work on any number of channels and take their own arguments only. A kernel size there is an argument of the block's own.

Formulas are named ``<block>_parameters`` and ``<block>_macs``; papers count one multiply-accumulate as one FLOP. Constructors and
formulas raise a `UsageError` for arguments that are impossible. Each block's docstring says how its weights are first drawn, and
each module's where the block is from.
"""

from edgefold.models.blocks.cbam import (
    CBAM,
    ChannelAttention,
    cbam_macs,
    cbam_parameters,
    channel_attention_macs,
    channel_attention_parameters,
)
from edgefold.models.blocks.channel_local import (
    ChannelLocalConv2d,
    channel_local_inputs,
    channel_local_macs,
    channel_local_parameters,
)
from edgefold.models.blocks.choose import ConvFactory, conv_factory
from edgefold.models.blocks.dual import DualConv2d, dual_macs, dual_parameters
from edgefold.models.blocks.efficient_channel import (
    EfficientChannelAttention,
    eca_kernel_size,
    eca_macs,
    eca_parameters,
)
from edgefold.models.blocks.group import GroupConv2d, group_macs, group_parameters
from edgefold.models.blocks.hetconv import (
    HetConv2d,
    NaiveHetConv2d,
    hetconv_full,
    hetconv_macs,
    hetconv_mask,
    hetconv_parameters,
)
from edgefold.models.blocks.inverted_residual import (
    InvertedResidual,
    inverted_residual_macs,
    inverted_residual_parameters,
)
from edgefold.models.blocks.locally_connected import (
    LocallyConnected2d,
    locally_connected_macs,
    locally_connected_parameters,
)
from edgefold.models.blocks.masked import MaskedConv2d
from edgefold.models.blocks.pooling import (
    AveragePool2d,
    GlobalAveragePool2d,
    GlobalMaxPool2d,
    MaxPool2d,
    pooling_macs,
    pooling_operations,
    pooling_parameters,
)
from edgefold.models.blocks.separable import DepthwiseSeparableConv2d, separable_macs, separable_parameters
from edgefold.models.blocks.shuffle import (
    ChannelShuffle,
    ShuffleUnit,
    channel_shuffle,
    channel_shuffle_macs,
    channel_shuffle_parameters,
    shuffle_unit_macs,
    shuffle_unit_parameters,
)
from edgefold.models.blocks.shuffle_v2 import ShuffleUnitV2, shuffle_unit_v2_macs, shuffle_unit_v2_parameters
from edgefold.models.blocks.spatial_attention import (
    SpatialAttention,
    spatial_attention_macs,
    spatial_attention_parameters,
)
from edgefold.models.blocks.squeeze_excite import SqueezeExcite, squeeze_excite_macs, squeeze_excite_parameters
from edgefold.models.blocks.standard import StandardConv2d, standard_macs, standard_parameters

__all__ = [
    "CBAM",
    "AveragePool2d",
    "ChannelAttention",
    "ChannelLocalConv2d",
    "ChannelShuffle",
    "ConvFactory",
    "DepthwiseSeparableConv2d",
    "DualConv2d",
    "EfficientChannelAttention",
    "GlobalAveragePool2d",
    "GlobalMaxPool2d",
    "GroupConv2d",
    "HetConv2d",
    "InvertedResidual",
    "LocallyConnected2d",
    "MaskedConv2d",
    "MaxPool2d",
    "NaiveHetConv2d",
    "ShuffleUnit",
    "ShuffleUnitV2",
    "SpatialAttention",
    "SqueezeExcite",
    "StandardConv2d",
    "cbam_macs",
    "cbam_parameters",
    "channel_attention_macs",
    "channel_attention_parameters",
    "channel_local_inputs",
    "channel_local_macs",
    "channel_local_parameters",
    "channel_shuffle",
    "channel_shuffle_macs",
    "channel_shuffle_parameters",
    "conv_factory",
    "dual_macs",
    "dual_parameters",
    "eca_kernel_size",
    "eca_macs",
    "eca_parameters",
    "group_macs",
    "group_parameters",
    "hetconv_full",
    "hetconv_macs",
    "hetconv_mask",
    "hetconv_parameters",
    "inverted_residual_macs",
    "inverted_residual_parameters",
    "locally_connected_macs",
    "locally_connected_parameters",
    "pooling_macs",
    "pooling_operations",
    "pooling_parameters",
    "separable_macs",
    "separable_parameters",
    "shuffle_unit_macs",
    "shuffle_unit_parameters",
    "shuffle_unit_v2_macs",
    "shuffle_unit_v2_parameters",
    "spatial_attention_macs",
    "spatial_attention_parameters",
    "squeeze_excite_macs",
    "squeeze_excite_parameters",
    "standard_macs",
    "standard_parameters",
]
