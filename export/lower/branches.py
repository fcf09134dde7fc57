"""The branches that a layer may be lowered to, as calibration needs them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgefold.export.fold.structure import read_structure
from edgefold.export.lower.candidates import partition_of, residual
from edgefold.export.lower.rows import row_branches


def branches_of(weight: Tensor, groups: int) -> dict[str, tuple[Tensor, bool]]:
    """See `edgefold.quantize.calibrate.Branches`: the group branch and the 1×1 one, or the parts of a large depthwise kernel."""
    mask = group_branch(weight, groups)
    if mask is None:
        return row_branches(weight, groups)
    return {"group": (mask, True), "point": (~mask, False)}


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
