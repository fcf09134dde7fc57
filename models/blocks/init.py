"""How the blocks draw their first weights."""

from __future__ import annotations

import math

import torch
from torch import nn


def kaiming(convolution: nn.Conv2d | nn.Conv1d | nn.Linear, gain: float = math.sqrt(2.0)) -> None:
    """Weights from N(0, gain² / fan_in), the fan-in being the connections of one output; the bias zero.

    ``gain`` is √2 where a ReLU follows (He et al., ICCV 2015) and 1 where nothing or a linear layer does.
    """
    with torch.no_grad():
        fan_in = convolution.weight[0].numel()
        convolution.weight.normal_(0.0, gain / math.sqrt(fan_in))
        if convolution.bias is not None:
            convolution.bias.zero_()
