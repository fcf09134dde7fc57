"""What each lowering of a HetConv layer costs in the three runtimes: makes the cost table of this machine's class of CPU.

The method is that of ``edgefold fold --costs`` (see `edgefold.device_bench.costs`): all forms of a layer in one process, in
interleaved turns on one thread, the fastest turn counts; a layer whose two copies of the dense form differ by more than
`MAX_NOISE` is left out of the table.

    python benchmarks/lowering_costs.py [--layers N]

writes the table into ``export/lower/tables`` after each layer, keeps what is there already, and records the run under
``results``, one file a class.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any, Final

import torch
from record import earlier, write_result

from edgefold.artifact import Format
from edgefold.device_bench.costs import PRECISIONS, knows, measure_layer
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.runners import open_runner
from edgefold.export.lower.costs import CostTable
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.tables import cpu_class, cpu_features

TABLES: Final = Path(__file__).parents[1] / "export/lower/tables"


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
    het(16, 32, 4, 32, 2),
    het(32, 64, 4, 16, 2),
    het(64, 128, 4, 16),
    het(128, 256, 4, 8),
    het(256, 512, 4, 4),
)


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
    record = f"lowering_costs-{name}"
    figures: list[dict[str, Any]] = earlier(record).get("layers", [])  # a run measures only what the table lacks
    with open_runner("host") as host:
        cpu, launchers = host.info().cpu, Launchers(host)
        table = CostTable.load(path) if path.exists() else CostTable(f"table {name}", cpu, 1, {})
        wanted = [(layer, form, precision) for layer in LAYERS[: arguments.layers] for form in Format for precision in PRECISIONS]
        for geometry, form, precision in wanted:
            if knows(table, geometry, form, precision):
                continue
            found = measure_layer(geometry, form, precision, host, launchers)
            figures.append(
                {
                    "layer": str(geometry),
                    "format": form.value,
                    "precision": precision.value,
                    "cpu_ns": {lowering.value: round(ns) for lowering, ns in found.times_ns.items()},
                    "noise_ratio": round(found.noise, 4),
                    "kept": found.kept,
                    "load_1min": round(os.getloadavg()[0], 2),
                }
            )
            print(figures[-1], flush=True)
            if found.kept:
                table = table.merged(found.table(table.source, host.info()))
                path.write_text(table.to_json(), encoding="utf-8")
            write_result(record, {"layers": figures}, command="python benchmarks/lowering_costs.py")


if __name__ == "__main__":
    main()
