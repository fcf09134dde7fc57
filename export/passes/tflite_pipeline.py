"""The order in which a TFLite model is rewritten."""

from __future__ import annotations

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel
from edgefold.export.passes.tflite_names import NAME_BY_MODULE

FLOAT: tuple[GraphPass[TfliteModel], ...] = (NAME_BY_MODULE,)
