"""What Edgefold writes into each file about the file itself, as one JSON string.

::

    {"schema": "edgefold.artifact/1", "producer": "edgefold 0.1.0", "precision": "int8",
     "inputs": [{"name": ..., "shape": [...], "dtype": ..., "layout": ..., "scale": ..., "zero_point": ...}], "outputs": [...]}

It is held by ONNX in ``metadata_props["edgefold"]``, by TFLite in the metadata buffer ``edgefold``, and by ExecuTorch in the
constant method ``edgefold_metadata``; there ``"modules"`` maps debug handles to module paths, which the others have as names.
``"x86": "vnni"`` stands in an ONNX file whose sums may saturate on x86 CPUs without VNNI, unless ONNX Runtime's session option
``session.x64quantprecision`` is 1. ``"calibration": "random"`` stands in a file whose scales come from random data.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from edgefold.artifact import Precision, TensorSpec
from edgefold.errors import ArtifactError

KEY = "edgefold"
PTE_METHOD = "edgefold_metadata"
SCHEMA = "edgefold.artifact/1"


def encode(
    precision: Precision,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    modules: dict[int, str] | None = None,
    *,
    needs_vnni: bool = False,
    random_calibration: bool = False,
) -> str:
    """The JSON string; fields that are not set are left out.

    ``modules`` maps the handles of a format that has no names for its ops to module paths; ``needs_vnni`` is meant for x86 CPUs,
    ``random_calibration`` says that the scales come from random data.
    """
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "producer": producer(),
        "precision": precision.value,
        "inputs": [_plain(spec) for spec in inputs],
        "outputs": [_plain(spec) for spec in outputs],
    }
    if needs_vnni:
        data["x86"] = "vnni"
    if random_calibration:
        data["calibration"] = "random"
    if modules:
        data["modules"] = {str(handle): path for handle, path in modules.items()}
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def decode(text: str) -> tuple[Precision, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Precision, inputs and outputs from the JSON string.

    Raises:
        ArtifactError: not such a string, or of another schema.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ArtifactError(f"metadata has schema '{data['schema']}', expected '{SCHEMA}'; write the file again")
        inputs, outputs = (tuple(_spec(entry) for entry in data[key]) for key in ("inputs", "outputs"))
        return Precision(data["precision"]), inputs, outputs
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"metadata is not that of an edgefold file ({error}); write the file again") from error


def producer() -> str:
    """``edgefold`` and its version."""
    return f"edgefold {version('edgefold')}"


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if value is not None}


def _spec(entry: dict[str, Any]) -> TensorSpec:
    return TensorSpec.from_dict(entry)
