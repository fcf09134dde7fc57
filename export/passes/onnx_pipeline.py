"""The order in which an ONNX model is rewritten."""

from __future__ import annotations

import onnx_ir as ir

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.onnx_names import NAME_BY_MODULE

FLOAT: tuple[GraphPass[ir.Model], ...] = (NAME_BY_MODULE,)
