"""Tensor names that say which PyTorch module a tensor comes from.

The converter names a tensor after its op's module stack (see `edgefold.export.passes.module_names`), joins the names of ops that
it fuses by ``;;`` and appends numbers. What is left is ``path`` for a computed tensor and ``path/const`` for a constant.
"""

from __future__ import annotations

from collections import Counter

from edgefold.export.passes.infra import GraphPass
from edgefold.export.passes.tflite_model import TfliteModel


def name_by_module(model: TfliteModel) -> tuple[TfliteModel, bool]:
    """Rename all tensors but inputs and outputs."""
    taken: Counter[str] = Counter()
    ends = {*model.graph.inputs, *model.graph.outputs}
    for index, tensor in enumerate(model.graph.tensors):
        if index in ends:
            continue
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
