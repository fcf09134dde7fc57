"""The ends of a TFLite model: names, signature, metadata."""

from __future__ import annotations

from typing import Any

from edgefold.artifact import TensorSpec
from edgefold.errors import RuntimeFailure
from edgefold.export.passes.tflite_model import TfliteModel, schema, type_name

SIGNATURE = "serving_default"
_KEPT_METADATA = frozenset({"min_runtime_version"})


def name_ends(model: TfliteModel, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Give inputs and outputs their names, as tensors and in the one signature."""
    signature = schema().SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = _name(model, list(model.graph.inputs), inputs)
    signature.outputs = _name(model, list(model.graph.outputs), outputs)
    model.root.signatureDefs = [signature]


def set_metadata(model: TfliteModel, name: str, text: str, description: str) -> None:
    """Store ``text`` under ``name`` and drop the converter's own notes."""
    entries = [entry for entry in model.root.metadata or [] if entry.name.decode() in _KEPT_METADATA]
    entry = schema().MetadataT()
    entry.name = name
    entry.buffer = model.add_buffer(text.encode())
    model.root.metadata = [*entries, entry]
    model.root.description = description


def check_ends(model: TfliteModel, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Refuses a file that declares other ends than promised.

    Raises:
        RuntimeFailure: with what the file declares.
    """
    for kind, indices, specs in (("input", model.graph.inputs, inputs), ("output", model.graph.outputs, outputs)):
        found = tuple((_declared(model.tensor(i)), type_name(model.tensor(i).type)) for i in indices)
        expected = tuple((spec.shape, spec.dtype) for spec in specs)
        if found != expected:
            raise RuntimeFailure(f"TFLite file declares {kind}s {found}, expected {expected}; please report this bug")


def _declared(tensor: Any) -> tuple[int, ...]:
    """The shape, with -1 for what is open."""
    sizes = tensor.shape if tensor.shapeSignature is None or not len(tensor.shapeSignature) else tensor.shapeSignature
    return tuple(int(size) for size in sizes)


def _name(model: TfliteModel, indices: list[int], specs: tuple[TensorSpec, ...]) -> list[object]:
    entries = []
    for index, spec in zip(indices, specs, strict=True):
        model.tensor(index).name = spec.name
        entry = schema().TensorMapT()
        entry.name, entry.tensorIndex = spec.name, index
        entries.append(entry)
    return entries
