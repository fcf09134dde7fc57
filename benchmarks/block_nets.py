"""The networks of `block_study`: one small plan, in which each block takes the place of every convolution but the first.

    stem     3×3 convolution to 16 channels, stride 2 (28×28 -> 14×14), BatchNorm, ReLU
    body     16 -> 16, 16 -> 32 (stride 2), 32 -> 32, 32 -> 64 (stride 2), 64 -> 64
    head     global mean, linear

A convolution is followed by BatchNorm and ReLU; a unit (shuffle, inverted residual) brings its own. Attention stands after each
block of the body. There is no skip connection but those of the units themselves. A pooling is followed by a 1×1 convolution, as
the depthwise part of a separable convolution is. A locally connected layer is made for the size of the images that reach it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import nn

from edgefold.models.blocks import (
    InvertedResidual,
    LocallyConnected2d,
    ShuffleUnit,
    ShuffleUnitV2,
    conv_factory,
)
from edgefold.models.blocks.choose import ATTENTIONS
from edgefold.models.nets.common import Classifier, conv_bn_act

SIZE: Final = 28  # of the images
WIDTH: Final = 16
BODY: Final = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))  # (inputs, outputs, stride)
EXPAND: Final = 2  # of the inverted residuals
SWEPT: Final = (2, 4, 8)

UNITS: Final[dict[str, Callable[..., nn.Module]]] = {
    "inverted-relu6": partial(InvertedResidual, expand=EXPAND, activation="relu6"),
    "inverted-hardswish": partial(InvertedResidual, expand=EXPAND, activation="hardswish"),
    "shuffle-v2": ShuffleUnitV2,
    **{f"shuffle:{groups}": partial(ShuffleUnit, groups=groups) for groups in SWEPT},
}
ATTENTION: Final = ("se", "eca", "spatial", "cbam")
LOCAL: Final = "locally-connected"
CONVOLUTIONS: Final = (
    "standard",
    *(f"group:{n}" for n in SWEPT),
    "separable",
    *(f"hetconv:{n}" for n in SWEPT),
    *(f"dual:{n}" for n in SWEPT),
    *(f"channel-local:{n}" for n in SWEPT),
    *(f"channel-local-sliding:{n}" for n in SWEPT),
    "average-pool",
    "max-pool",
    LOCAL,
)
NAMES: Final = (*CONVOLUTIONS, *UNITS, *(f"standard+{name}" for name in ATTENTION), "hetconv:4+se")


def family(name: str) -> str:
    """The block without its number: ``hetconv`` of ``hetconv:4``."""
    return "attention" if "+" in name else name.partition(":")[0]


def setting(name: str) -> dict[str, Any]:
    """What tells the networks of one block apart."""
    block, _, attention = name.partition("+")
    kind, colon, number = block.partition(":")
    argument = {"hetconv": "p", "channel-local": "group_size", "channel-local-sliding": "group_size"}.get(kind, "groups")
    return {"block": kind, **({argument: int(number)} if colon else {}), **({"attention": attention} if attention else {})}


def make_network(name: str) -> nn.Module:
    """The network ``name`` of `NAMES`, with random weights, in train mode; (B, 1, 28, 28) -> (B, 10)."""
    block, _, attention = name.partition("+")
    layers: list[nn.Module] = [conv_bn_act(1, WIDTH, stride=2)]
    size = SIZE // 2
    for inputs, outputs, stride in BODY:
        if block in UNITS:
            layers.append(UNITS[block](inputs, outputs, stride=stride))
        else:
            make = partial(LocallyConnected2d, input_size=size) if block == LOCAL else conv_factory(block)
            conv = make(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        if attention:
            layers.append(ATTENTIONS[attention](outputs))
        size = math.ceil(size / stride)
    return Classifier(name, nn.Sequential(*layers), BODY[-1][1], 10, (1, SIZE, SIZE))
