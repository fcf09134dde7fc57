"""The order in which an ONNX model is rewritten."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_bias import INTEGER_BIAS
from edgefold.export.passes.onnx_clip import INTEGER_CLIP
from edgefold.export.passes.onnx_global_pool import GLOBAL_POOL
from edgefold.export.passes.onnx_half_weights import HALF_WEIGHTS
from edgefold.export.passes.onnx_names import NAME_BY_MODULE
from edgefold.export.passes.onnx_unsigned import UNSIGNED


def _library(name: str, one: ir.passes.InPlacePass) -> GraphPass[ir.Model]:
    def run(model: ir.Model) -> tuple[ir.Model, bool]:
        result = one(model)
        return result.model, result.modified

    return GraphPass(name, run)


CLEAN: tuple[GraphPass[ir.Model], ...] = (
    _library("onnx-share-initializers", DeduplicateInitializersPass()),
    _library("onnx-share-nodes", CommonSubexpressionEliminationPass()),
    _library("onnx-drop-unused", RemoveUnusedNodesPass()),
    NAME_BY_MODULE,
)
HALF: tuple[GraphPass[ir.Model], ...] = (GLOBAL_POOL, HALF_WEIGHTS)
FLOAT: tuple[GraphPass[ir.Model], ...] = (GLOBAL_POOL,)
INTEGER: tuple[GraphPass[ir.Model], ...] = (GLOBAL_POOL, INTEGER_BIAS, INTEGER_CLIP, UNSIGNED)
