"""A HetConv written as its paper's loop: Edgefold's route against exporting the loop as it is.

For HetConv2d(C, C, 3, p=4) in loop form (C*C one-channel convs) at 28x28: CPU seconds to export, ops and bytes of the file, and
latency (one thread, interleaved), for each format. The straight route is each runtime's own exporter.

    python benchmarks/loop_route.py [--channels 16 32] [--skip-straight]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from record import write_result
from torch import nn

import edgefold
from edgefold.artifact import Format
from edgefold.device_bench import BenchOptions, compare
from edgefold.export.inspect import inspect
from edgefold.models.blocks.hetconv import HetConv2d, NaiveHetConv2d

SIZE, P = 28, 4
OPTIONS = BenchOptions(processes=6, min_samples=64, min_time_s=0.3)


def _cpu_s() -> float:
    """CPU time of this process and of those that it waited for, which other work on the machine does not touch."""
    return sum(os.times()[:4])


def straight_onnx(module: nn.Module, example: torch.Tensor, out: Path) -> None:
    """ONNX by torch's exporter."""
    torch.onnx.export(module, (example,), out, dynamo=True, external_data=False, verbose=False)


def straight_tflite(module: nn.Module, example: torch.Tensor, out: Path) -> None:
    """TFLite by litert-torch."""
    import litert_torch

    litert_torch.convert(module, (example,)).export(str(out))


def straight_executorch(module: nn.Module, example: torch.Tensor, out: Path) -> None:
    """ExecuTorch by its own recipe: XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, (example,))
    out.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


STRAIGHT: dict[Format, Callable[[nn.Module, torch.Tensor, Path], None]] = {
    Format.ONNX: straight_onnx,
    Format.TFLITE: straight_tflite,
    Format.EXECUTORCH: straight_executorch,
}


def measure(channels: int, folder: Path, *, straight: bool) -> dict[str, Any]:
    """The figures of one layer."""
    torch.manual_seed(0)
    loop = NaiveHetConv2d.from_masked(HetConv2d(channels, channels, 3, padding=1, p=P)).eval()
    example = torch.randn(1, channels, SIZE, SIZE)
    start = _cpu_s()
    folded = edgefold.fold(loop, example)
    fold_s = _cpu_s() - start
    rows: dict[str, Any] = {}
    for format in Format:
        start = _cpu_s()
        artifact = edgefold.export_model(folded, example, format=format, out=folder / f"folded-{channels}")
        row: dict[str, Any] = {"export_cpu_s": _cpu_s() - start, **describe(artifact.path)}
        if straight:
            path = folder / f"straight-{channels}{format.suffix}"
            start = _cpu_s()
            STRAIGHT[format](loop, example, path)
            row["straight"] = {"export_cpu_s": _cpu_s() - start, **describe(path)}
            found = compare(path, artifact.path, "host", OPTIONS).ratio
            row["latency_over_straight"] = asdict(found)
        rows[format.value] = row
        print(channels, format.value, row, flush=True)
    total_s = fold_s + sum(row["export_cpu_s"] for row in rows.values())
    return {"channels": channels, "fold_cpu_s": fold_s, "fold_and_export_cpu_s": total_s, "formats": rows}


def describe(path: Path) -> dict[str, int]:
    """Ops and bytes of a file."""
    found = inspect(path)
    return {"nodes": found.nodes, "convs": found.convs, "size_bytes": found.size_bytes}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--skip-straight", action="store_true", help="only Edgefold's own route")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        layers = [measure(channels, Path(folder), straight=not arguments.skip_straight) for channels in arguments.channels]
    print(write_result("loop_route", {"p": P, "size": SIZE, "layers": layers}, command="python benchmarks/loop_route.py"))


if __name__ == "__main__":
    main()
