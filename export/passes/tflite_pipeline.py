"""The order in which a TFLite model is rewritten."""

from __future__ import annotations

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_half_weights import HALF_WEIGHTS
from edgefold.export.passes.tflite_model import TfliteModel
from edgefold.export.passes.tflite_names import NAME_BY_MODULE

PLAIN: tuple[GraphPass[TfliteModel], ...] = (NAME_BY_MODULE,)
HALF: tuple[GraphPass[TfliteModel], ...] = (HALF_WEIGHTS, NAME_BY_MODULE)
