"""What each runtime's own tool makes of the same folded model: INT8 files to compare ours with.

onnx        onnxruntime.quantization.quantize_static: Q/DQ, per channel; the tool's default types, and uint8 ones
tflite      ai-edge-quantizer, recipe static_wi8_ai8
executorch  XNNPACKQuantizer, symmetric, per channel, and the XNNPACK partitioner
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgefold.artifact import Format

RECIPES: dict[Format, tuple[str, ...]] = {
    Format.ONNX: ("int8", "uint8"),
    Format.TFLITE: ("static_wi8_ai8",),
    Format.EXECUTORCH: ("symmetric",),
}


def quantize_native(
    format: Format, recipe: str, float_file: Path, graph: GraphModule, calibration: list[Tensor], out: Path
) -> None:
    """Write the INT8 file of one of `RECIPES`.

    Args:
        format: of both files.
        recipe: which of the tool's recipes.
        float_file: our fp32 file, which the ONNX and TFLite tools read.
        graph: the folded graph, which ExecuTorch's tool reads.
        calibration: inputs (1, C, H, W).
        out: the file to write.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if format is Format.ONNX:
            _onnx(recipe, float_file, calibration, out)
        elif format is Format.TFLITE:
            _tflite(float_file, calibration, out)
        else:
            _executorch(graph, calibration, out)


class _Reader:
    def __init__(self, name: str, calibration: list[Tensor]) -> None:
        self._feeds = iter([{name: tensor.numpy()} for tensor in calibration])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next input, as the tool asks for it."""
        return next(self._feeds, None)


def _onnx(recipe: str, float_file: Path, calibration: list[Tensor], out: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(float_file).graph.input[0].name
    kind = QuantType.QInt8 if recipe == "int8" else QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(float_file, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, out, _Reader(name, calibration), per_channel=True, activation_type=kind, weight_type=kind)


def _tflite(float_file: Path, calibration: list[Tensor], out: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    runner = Interpreter(str(float_file)).get_signature_runner()
    (name,) = runner.get_input_details()
    tool = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())
    feeds = {"serving_default": [{name: tensor.numpy()} for tensor in calibration]}
    tool.quantize(tool.calibrate(feeds, num_threads=1)).export_model(str(out), overwrite=True)


def _executorch(graph: GraphModule, calibration: list[Tensor], out: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    example = (calibration[0],)
    module: Any = torch.export.export(copy.deepcopy(graph), example, strict=False).module()
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for tensor in calibration:
            prepared(tensor)
    program = torch.export.export(convert_pt2e(prepared), example, strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    out.write_bytes(bytes(lowered.to_executorch().buffer))
