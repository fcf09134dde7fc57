"""Large depthwise convolutions in XNNPACK: whole, as the converters write them, and by rows.

    python benchmarks/depthwise_rows.py

Four convolutions of one geometry, each with a ReLU, in LiteRT and ExecuTorch, fp32 and INT8. The files of a geometry run in turn
in one process, on one thread; a sample is the CPU time of one call, and the lowest of all rounds counts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from int8_cell import lowest_ns
from record import write_result
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.lower.rows import row_parts
from edgefold.export.plan import Lowering
from edgefold.export.program import Program
from edgefold.pipeline import fold, quantize_model
from edgefold.quantize.graph import module_path
from edgefold.runtime.worker import MODELS

NAME: Final = "depthwise_rows"
LAYERS: Final = 4
# Kernel, channels, side of the image: those of StarNet, EdgeNeXt, ConvNeXt and FastViT at 160 x 160, and larger kernels.
GEOMETRIES: Final = ((7, 24, 40), (7, 48, 20), (7, 96, 10), (7, 192, 5), (9, 48, 20), (11, 48, 20))


def network(kernel: int, channels: int) -> nn.Module:
    """The layers, with seeded weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def whole(program: Program) -> dict[str, Lowering]:
    """Each layer as it stands."""
    return {module_path(node): Lowering.KEEP for node in program.graph.graph.nodes if node.op == "call_function"}


def measure(kernel: int, channels: int, size: int, format: Format, folder: Path) -> dict[str, Any]:
    """The times of one geometry in one runtime, in us."""
    samples = [torch.randn(1, channels, size, size) for _ in range(4)]
    folded = fold(network(kernel, channels), samples[0])
    quantized = quantize_model(folded, samples[0], calibration=samples)
    models: dict[str, Any] = {}
    for precision, program in ((Precision.FP32, folded.program), (Precision.INT8, quantized.program)):
        for form, lowering in (("whole", whole(program)), ("rows", "auto")):
            lowered = lower(program, format=format, precision=precision, lowering=lowering)
            out = folder / f"{precision}-{form}{format.suffix}"
            get_emitter(format).emit(lowered, EmitOptions(force=True), out)
            model = models[f"{precision}-{form}"] = MODELS[format.value]()
            model.load(str(out), 1)
            model.bind([samples[0].numpy()])
    times = {name: round(ns / 1000, 1) for name, ns in lowest_ns(models).items()}
    gains = {precision: round(times[f"{precision}-whole"] / times[f"{precision}-rows"], 2) for precision in ("fp32", "int8")}
    parts = len(row_parts((kernel, kernel)))
    return {
        "kernel": kernel,
        "channels": channels,
        "size": size,
        "format": format.value,
        "parts": parts,
        "us": times,
        "gain": gains,
    }


def main() -> None:
    """Measures all geometries."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        for kernel, channels, size in GEOMETRIES:
            for format in (Format.TFLITE, Format.EXECUTORCH):
                rows.append(measure(kernel, channels, size, format, Path(folder)))
                print(rows[-1], flush=True)
    print(write_result(NAME, {"layers": LAYERS, "rows": rows}, command=f"python benchmarks/{NAME}.py"))


if __name__ == "__main__":
    main()
