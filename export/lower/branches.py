"""The two branches of a layer, as calibration needs them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgefold.export.fold.structure import read_structure
from edgefold.export.lower.candidates import partition_of, residual


def group_branch(weight: Tensor, groups: int) -> Tensor | None:
    """The taps of the group branch of a conv weight (N, M / groups, *kernel), as a bool mask of the weight's shape.

    ``None`` where the layer has one branch only: no channel groups, or nothing outside of them.
    """
    if groups > 1:
        return None
    kernel_map = read_structure(weight, groups)
    if len(kernel_map.groups) < 2:
        return None
    partition = partition_of(kernel_map)
    if not bool(residual(weight, partition).any()):
        return None
    return residual(torch.ones_like(weight), partition) == 0
