"""What each lowering of a HetConv layer costs in the three runtimes: makes the cost table of this machine's class of CPU.

Every form of a layer is emitted by the project's own emitters, all forms are loaded into one process, and they run in turn, so
that a change of the machine's state meets all of them. A sample is the CPU time of one call on one thread, which is what
the wall clock shows on an idle core and does not count the time that other processes take; the lowest sample of all rounds
counts. The dense form is loaded twice, and a layer whose two copies differ by more than `MAX_NOISE` is left out of the table.

    python benchmarks/lowering_costs.py [--layers N]

writes the table into ``export/lower/tables`` after each layer, keeps what is there already, and records the run under
``results``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from record import RESULTS, write_result

from edgefold.artifact import Artifact, Format, Precision
from edgefold.device_bench.runners import open_runner
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.candidates import MAX_SPLIT
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.layer import lowered_layer, repeats
from edgefold.export.lower.tables import cpu_class, cpu_features
from edgefold.export.plan import Lowering
from edgefold.runtime.worker import MODELS

TABLES: Final = Path(__file__).parents[1] / "export/lower/tables"
ROUNDS: Final = 40
ROUND_NS: Final = 4_000_000  # for each form
MAX_NOISE: Final = 0.05


def het(inputs: int, outputs: int, p: int, size: int, stride: int = 1) -> LayerGeometry:
    """A 3x3 HetConv with 'same' padding."""
    groups = ((inputs // p, outputs // p),) * p
    return LayerGeometry(inputs, outputs, (3, 3), (stride,) * 2, (1, 1), (1, 1), (size, size), groups, True)


# The layers of the built-in network, of ResNet-18 at 224x224, of VGG-16 at 32x32 and of ResNet-20.
LAYERS: Final = (
    het(32, 32, 4, 14),
    het(64, 64, 4, 7),
    het(16, 32, 4, 28, 2),
    het(32, 64, 4, 14, 2),
    het(64, 128, 4, 7, 2),
    het(128, 128, 4, 4),
    het(256, 256, 8, 14),
    het(128, 128, 4, 28),
    het(64, 64, 4, 56),
    het(512, 512, 8, 7),
    het(128, 128, 8, 28),
    het(256, 256, 4, 8),
    het(64, 64, 4, 32),
    het(128, 128, 4, 16),
    het(512, 512, 4, 4),
    het(512, 512, 4, 2),
    het(16, 16, 4, 32),
    het(32, 32, 4, 16),
    het(64, 64, 4, 8),
)


def forms(geometry: LayerGeometry) -> list[Lowering]:
    """The lowerings to measure."""
    return [Lowering.DENSE, Lowering.GROUPED, *([Lowering.SPLIT] if len(geometry.groups) <= MAX_SPLIT else [])]


def loaded(artifact: Artifact, inputs: np.ndarray[Any, Any]) -> Any:
    """The file in its runtime, with its input bound, after one call."""
    model = MODELS[artifact.format.value]()
    model.load(str(artifact.path), 1)
    model.bind([inputs])
    model.invoke()
    return model


def lowest_ns(models: list[Any]) -> list[float]:
    """The lowest CPU time of a call of each model, over rounds in which every model has its turn."""
    best = [float("inf")] * len(models)
    for _ in range(ROUNDS):
        for place, model in enumerate(models):
            until = time.process_time_ns() + ROUND_NS
            while True:
                start = time.process_time_ns()
                model.invoke()
                end = time.process_time_ns()
                best[place] = min(best[place], end - start)
                if end > until:
                    break
    return best


def measure(geometry: LayerGeometry, format: Format, precision: Precision) -> tuple[dict[Lowering, float], float, str]:
    """The time of each form of one layer in ns, the noise (how far two copies of one file differ), and the runtime."""
    inputs = np.random.default_rng(0).standard_normal((1, geometry.in_channels, *geometry.space), dtype=np.float32)
    names = forms(geometry)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = [
            get_emitter(format).emit(
                lowered_layer(geometry, name, format, precision), EmitOptions(), Path(folder) / f"{name}{format.suffix}"
            )
            for name in names
        ]
        models = [loaded(artifact, inputs) for artifact in [*artifacts, artifacts[0]]]
        *times, again = lowest_ns(models)
    noise = abs(again / times[0] - 1.0)
    return {name: ns / repeats(geometry) for name, ns in zip(names, times, strict=True)}, noise, models[0].runtime


def earlier_figures() -> list[dict[str, Any]]:
    """What earlier runs recorded: a run measures only what the table lacks."""
    path = RESULTS / "lowering_costs.json"
    layers: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["layers"] if path.exists() else []
    return layers


def main() -> None:
    """Measures the layers that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="how many of the layers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = cpu_class(platform.machine(), cpu_features())
    if name is None:
        raise SystemExit(f"there is no class for this CPU ({platform.machine()}); add one to export/lower/tables/__init__.py")
    path = TABLES / f"{name}.json"
    with open_runner("host") as host:
        cpu = host.info().cpu
    table = CostTable.load(path) if path.exists() else CostTable(f"table {name}", cpu, 1, {})
    figures = earlier_figures()
    before = len(figures)
    for geometry in LAYERS[: arguments.layers]:
        for format in Format:
            for precision in (Precision.FP32, Precision.INT8):
                if table.cost_ns(geometry, Lowering.DENSE, format, precision) is not None:
                    continue
                times, noise, runtime = measure(geometry, format, precision)
                kept = noise <= MAX_NOISE
                figures.append(
                    {
                        "layer": str(geometry),
                        "format": format.value,
                        "precision": precision.value,
                        "cpu_ns": {lowering.value: round(ns) for lowering, ns in times.items()},
                        "noise_ratio": round(noise, 4),
                        "kept": kept,
                        "load_1min": round(os.getloadavg()[0], 2),
                    }
                )
                print(figures[-1], flush=True)
                if kept:
                    entries = {(str(geometry), lowering, format, precision): ns for lowering, ns in times.items()}
                    table = table.merged(CostTable(table.source, table.cpu, 1, {format.value: runtime}, entries))
                    path.write_text(table.to_json(), encoding="utf-8")
                gc.collect()
    if len(figures) > before:
        write_result("lowering_costs", {"layers": figures}, command="python benchmarks/lowering_costs.py")


if __name__ == "__main__":
    main()
