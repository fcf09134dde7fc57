"""What ``--portable`` costs in ONNX Runtime on this CPU: int8 weights of full range against uint8 ones, layer by layer.

Each layer is a dense convolution whose weights keep their full range. It is written twice, for this machine and portable, and
both files take turns A B B A in one process (`edgefold.device_bench.race`), on one thread. On a CPU without VNNI both
files are the same, and the ratio is 1.

    python benchmarks/weight_types.py
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from record import write_result
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.export.capture import capture
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.program import Program
from edgefold.quantize.calibrate import attach, calibrate

LAYERS: Final = ((32, 3, 28), (64, 1, 14), (64, 3, 14), (128, 1, 28), (128, 3, 14), (256, 3, 14))  # channels, kernel, size
RACE: Final = RaceOptions(processes=4, blocks=8)


def program(channels: int, kernel: int, size: int) -> Program:
    """Two seeded convolutions, calibrated, with the full range of int8 in their weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(2)]
    image = torch.randn(1, channels, size, size)
    captured = capture(nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval(), image)
    convs = frozenset(node.name for node in captured.graph.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    table = calibrate(captured.graph, [(image,)], observer="minmax", full_range=convs)
    return Program(attach(captured.graph, table), captured.example_inputs, captured.input_names, captured.output_names)


def measure(channels: int, kernel: int, size: int, host: Runner) -> dict[str, Any]:
    """The times of both files of one layer."""
    lowered = lower(program(channels, kernel, size), format=Format.ONNX, precision=Precision.INT8)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        files = [
            get_emitter(Format.ONNX).emit(lowered, EmitOptions(portable=portable), Path(folder) / f"{portable}.onnx")
            for portable in (True, False)
        ]
        found = race([make_case(file, seed=0) for file in files], host, Launchers(host), RACE)
    return {
        "channels": channels,
        "kernel": kernel,
        "size": size,
        "portable_ns": round(found.median_ns(0)),
        "this_cpu_ns": round(found.median_ns(1)),
        "portable_over_this_cpu": asdict(found.ratio(0, 1)),
    }


def main() -> None:
    """Measures all layers."""
    torch.set_num_threads(1)
    with open_runner("host") as host:
        layers = []
        for layer in LAYERS:
            layers.append(measure(*layer, host))
            print(layers[-1], flush=True)
    write_result("weight_types", {"layers": layers}, command="python benchmarks/weight_types.py")


if __name__ == "__main__":
    main()
