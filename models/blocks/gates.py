"""The gates of attention: functions from any number to [0, 1] that scale channels or places.

``sigmoid`` is what the papers use. ``hardsigmoid``, clip(x/6 + 1/2, 0, 1), is piecewise linear and keeps its accuracy in INT8
(MobileNetV3, Howard et al., ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from edgefold.models.blocks.arguments import check_name

GATES: Final[dict[str, Callable[[], nn.Module]]] = {"hardsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid}


def gate(name: str) -> nn.Module:
    """The gate ``name``.

    Raises:
        UsageError: there is no such gate.
    """
    check_name("gate", name, GATES)
    return GATES[name]()
