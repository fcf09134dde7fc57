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
from edgefold.pipeline import fold, quantize_model
from edgefold.runtime.worker import MODELS

NAME: Final = "depthwise_rows"
LAYERS: Final = 4
# Kernel, channels, side of the image, stride: those of StarNet, EdgeNeXt, ConvNeXt and FastViT at 160 x 160, and larger kernels.
GEOMETRIES: Final = (
    (7, 24, 40, 1),
    (7, 48, 20, 1),
    (7, 96, 10, 1),
    (7, 192, 5, 1),
    (7, 48, 40, 2),
    (9, 48, 20, 1),
    (11, 48, 20, 1),
)


def network(kernel: int, channels: int, stride: int) -> nn.Module:
    """The layers, with seeded weights; with a stride above 1 it is one layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS if stride == 1 else 1):
        layers += [nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def measure(kernel: int, channels: int, size: int, stride: int, format: Format, folder: Path) -> dict[str, Any]:
    """The times of one geometry in one runtime, in us."""
    samples = [torch.randn(1, channels, size, size) for _ in range(4)]
    folded = fold(network(kernel, channels, stride), samples[0])
    quantized = quantize_model(folded, samples[0], calibration=samples)
    models: dict[str, Any] = {}
    for precision, program in ((Precision.FP32, folded.program), (Precision.INT8, quantized.program)):
        for form in ("whole", "rows"):
            lowered = lower(program, format=format, precision=precision, whole=form == "whole")
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
        "stride": stride,
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
        for geometry in GEOMETRIES:
            for format in (Format.TFLITE, Format.EXECUTORCH):
                rows.append(measure(*geometry, format, Path(folder)))
                print(rows[-1], flush=True)
    print(write_result(NAME, {"layers": LAYERS, "rows": rows}, command=f"python benchmarks/{NAME}.py"))


if __name__ == "__main__":
    main()
