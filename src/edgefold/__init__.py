"""Edgefold: lightweight convolutional PyTorch models, shipped to phones and small ARM boards.

    source -> fold -> quantize -> lower -> emit -> verify -> bench -> bundle -> report

Every name below is imported when it is first used: torch and the converters take seconds to load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgefold.artifact import Artifact as Artifact
    from edgefold.artifact import Format as Format
    from edgefold.artifact import Precision as Precision
    from edgefold.artifact import TensorSpec as TensorSpec
    from edgefold.bundle.reader import Bundle as Bundle
    from edgefold.bundle.reader import load_bundle as load_bundle
    from edgefold.device_bench import BenchOptions as BenchOptions
    from edgefold.device_bench import bench as bench
    from edgefold.device_bench import compare as compare
    from edgefold.errors import EdgefoldError as EdgefoldError
    from edgefold.export.fold import FoldResult as FoldResult
    from edgefold.export.program import QuantizedProgram as QuantizedProgram
    from edgefold.export.verify import verify as verify
    from edgefold.pipeline import export_model as export_model
    from edgefold.pipeline import fold as fold
    from edgefold.pipeline import quantize_model as quantize_model
    from edgefold.preprocess import Preprocessing as Preprocessing
    from edgefold.results import Measurement as Measurement
    from edgefold.results import ParityReport as ParityReport
    from edgefold.runtime import run as run
    from edgefold.shipping import ship as ship

_HOME = {
    "Artifact": "edgefold.artifact",
    "BenchOptions": "edgefold.device_bench",
    "Bundle": "edgefold.bundle.reader",
    "EdgefoldError": "edgefold.errors",
    "FoldResult": "edgefold.export.fold",
    "Format": "edgefold.artifact",
    "Measurement": "edgefold.results",
    "ParityReport": "edgefold.results",
    "Precision": "edgefold.artifact",
    "Preprocessing": "edgefold.preprocess",
    "QuantizedProgram": "edgefold.export.program",
    "TensorSpec": "edgefold.artifact",
    "bench": "edgefold.device_bench",
    "compare": "edgefold.device_bench",
    "export_model": "edgefold.pipeline",
    "fold": "edgefold.pipeline",
    "load_bundle": "edgefold.bundle.reader",
    "quantize_model": "edgefold.pipeline",
    "run": "edgefold.runtime",
    "ship": "edgefold.shipping",
    "verify": "edgefold.export.verify",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]  # one table serves both


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgefold")
    if name not in _HOME:
        raise AttributeError(f"module 'edgefold' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
