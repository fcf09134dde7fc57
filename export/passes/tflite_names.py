"""Tensor names that say which PyTorch module a tensor comes from.

The converter names a tensor after its op's module stack (see `edgefold.export.passes.module_names`), joins the names of ops that
it fuses by ``;;`` and appends numbers. What is left is ``path`` for a computed tensor and ``path/const`` for a constant.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel

_LAYERS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def name_by_module(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Rename all tensors but inputs and outputs; of those with one path, what its layer computes has it without a number."""
    taken: Counter[str] = Counter()
    ends = {*model.graph.inputs, *model.graph.outputs}
    layers = {operator.outputs[0] for kind in _LAYERS for operator in model.operators(kind)}
    for index in sorted({*range(len(model.graph.tensors))} - ends, key=lambda index: index not in layers):
        tensor = model.tensor(index)
        base = main_path((tensor.name or b"").decode(errors="replace")) or "main"
        if model.root.buffers[tensor.buffer].data is not None:
            base += "/const"
        taken[base] += 1
        tensor.name = base if taken[base] == 1 else f"{base}_{taken[base] - 1}"
    return model, True


def main_path(name: str) -> str:
    """The module path in a converter's tensor name; of fused ops, the first to run, which the converter names last."""
    return name.split(";;")[-1].partition(";")[0]


NAME_BY_MODULE: GraphPass[TfliteModel] = GraphPass("tflite-name-by-module", name_by_module)
