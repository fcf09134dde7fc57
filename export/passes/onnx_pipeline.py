"""The order in which an ONNX model is rewritten."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

from edgefold.artifact import Precision
from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_bias import INTEGER_BIAS
from edgefold.export.passes.onnx_clip import INTEGER_CLIP
from edgefold.export.passes.onnx_constant_casts import CONSTANT_CASTS
from edgefold.export.passes.onnx_dynamic import DYNAMIC_INPUTS
from edgefold.export.passes.onnx_float_layers import KEEP_FLOAT_LAYERS
from edgefold.export.passes.onnx_global_pool import GLOBAL_POOL
from edgefold.export.passes.onnx_half_weights import HALF_WEIGHTS
from edgefold.export.passes.onnx_names import NAME_BY_MODULE
from edgefold.export.passes.onnx_pads import CONVOLUTION_PADS, INTEGER_PADS
from edgefold.export.passes.onnx_unsigned import UNSIGNED, UNSIGNED_ACTIVATIONS


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
_CALIBRATED = (INTEGER_BIAS,)
_NUMBERS: dict[Precision, tuple[GraphPass[ir.Model], ...]] = {
    Precision.FP16: (HALF_WEIGHTS,),
    Precision.INT8: _CALIBRATED,
    Precision.INT8_FULL: _CALIBRATED,
    Precision.INT8_DYNAMIC: (DYNAMIC_INPUTS,),
}


def pipeline(precision: Precision, *, exact_products: bool = False) -> tuple[GraphPass[ir.Model], ...]:
    """The passes of a precision, before the ends get their types.

    With ``exact_products`` the file is for a CPU that adds 8-bit products without saturation.
    """
    passes = _NUMBERS.get(precision, ())
    if passes is _CALIBRATED:
        # The bounds of a clip, and what pads an image, are integers of the type that they are beside in the end.
        unsigned = UNSIGNED_ACTIVATIONS if exact_products else UNSIGNED
        passes = (*passes, unsigned, INTEGER_CLIP, INTEGER_PADS, KEEP_FLOAT_LAYERS)
    return (CONSTANT_CASTS, GLOBAL_POOL, CONVOLUTION_PADS, *passes)
