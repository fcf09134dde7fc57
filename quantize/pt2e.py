"""The names of PT2E (torchao) that quantization uses, imported without what torchao logs for its own developers."""

import importlib
import logging
from typing import Any

_logger = logging.getLogger("torch.utils._pytree")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    _root = "torchao.quantization.pt2e"
    _quantizer: Any = importlib.import_module(f"{_root}.quantizer")
    _quantize: Any = importlib.import_module(f"{_root}.quantize_pt2e")
    _observer: Any = importlib.import_module(f"{_root}.observer")
    _fake: Any = importlib.import_module(f"{_root}.fake_quantize")
finally:
    _logger.setLevel(_level)

FakeQuantizeBase = _fake.FakeQuantizeBase
FixedQParamsQuantizationSpec = _quantizer.FixedQParamsQuantizationSpec
ObserverBase = _observer.ObserverBase
QuantizationAnnotation = _quantizer.QuantizationAnnotation
QuantizationSpec = _quantizer.QuantizationSpec
QuantizationSpecBase = _quantizer.QuantizationSpecBase
Quantizer = _quantizer.Quantizer
SharedQuantizationSpec = _quantizer.SharedQuantizationSpec
prepare_pt2e = _quantize.prepare_pt2e
prepare_qat_pt2e = _quantize.prepare_qat_pt2e
