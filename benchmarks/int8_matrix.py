"""INT8 against fp32 and against each runtime's own tool: networks x formats, time and accuracy.

    python benchmarks/int8_matrix.py [--models NAME ...] [--formats NAME ...] [--resume] [--keep FOLDER] [--cap SECONDS]

Each network has a process of its own (`int8_cell`) with a time cap; a cell that fails is recorded with its cause. The result is
written after every network; ``--resume`` keeps the cells that are there and measures the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from record import earlier, write_result

from edgefold.artifact import Format

MODELS: Final = (
    "hetnet-fmnist",
    *(
        f"timm:{name}"
        for name in (
            "lcnet_050",
            "mobilenetv3_small_050",
            "mobilenetv2_050",
            "efficientnet_lite0",
            "mobileone_s0",
            "repghostnet_050",
            "ghostnet_050",
            "mobilenetv1_100",
            "mobilenetv2_100",
            "mobilenetv3_small_100",
            "mobilenetv3_large_100",
            "mnasnet_small",
            "fbnetc_100",
            "hardcorenas_a",
            "tinynet_e",
            "rexnet_100",
            "resnet18",
            "regnetx_002",
            "regnety_002",
            "repvgg_a0",
            "efficientnet_b0",
            "semnasnet_075",
            "spnasnet_100",
        )
    ),
    *(f"torchvision:{name}" for name in ("squeezenet1_1", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mnasnet0_5")),
)
CELL: Final = Path(__file__).with_name("int8_cell.py")


def measure(model: str, formats: list[Format], folder: Path, cap_s: float) -> dict[str, dict[str, Any]]:
    """The cells of one model, by format; a cell that failed has its cause."""
    argv = [sys.executable, str(CELL), model, str(folder), *(format.value for format in formats)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=cap_s)
    except subprocess.TimeoutExpired:
        cause = f"not done within {cap_s:g} s"
    else:
        if done.returncode == 0:
            cells: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
            return cells
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()[-1:] or ["no message"]
        cause = f"signal {-done.returncode}" if done.returncode < 0 else lines[-1][:400]
    return {format.value: {"failure": cause} for format in formats}


def ratios(cell: dict[str, Any]) -> dict[str, float]:
    """Time of INT8 against fp32 and against the fastest file of the runtime's tool, and SQNR against its most accurate one."""
    times, sqnr = cell.get("latency_us", {}), cell.get("sqnr_db", {})
    found: dict[str, float] = {}
    if "int8" in times and "fp32" in times:
        found["int8_to_fp32_ratio"] = times["int8"] / times["fp32"]
    natives = [key for key in times if key.startswith("native-")]
    if "int8" in times and natives:
        found["int8_to_native_ratio"] = times["int8"] / min(times[key] for key in natives)
        found["sqnr_above_native_db"] = sqnr["int8"] - max(sqnr[key] for key in natives)
    return {key: round(value, 4) for key, value in found.items()}


def summary(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Geometric means and counts of each format."""
    found: dict[str, dict[str, Any]] = {}
    for format in Format:
        rows = [ratios(cell) for cell in cells if cell["format"] == format.value]
        to_float = [row["int8_to_fp32_ratio"] for row in rows if "int8_to_fp32_ratio" in row]
        to_native = [row["int8_to_native_ratio"] for row in rows if "int8_to_native_ratio" in row]
        above = [row["sqnr_above_native_db"] for row in rows if "sqnr_above_native_db" in row]
        if to_float:
            found[format.value] = {
                "models": len(to_float),
                "geomean_int8_to_fp32_ratio": round(_geomean(to_float), 3),
                "slower_than_fp32": sum(ratio > 1 for ratio in to_float),
                "geomean_int8_to_native_ratio": round(_geomean(to_native), 3) if to_native else None,
                "slower_than_native_by_5_percent": sum(ratio > 1.05 for ratio in to_native),
                "half_a_db_below_native": sum(difference < -0.5 for difference in above),
            }
    return found


def _geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    """Measures the cells that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME", help="built-in, timm:NAME or torchvision:NAME"
    )
    parser.add_argument("--formats", nargs="+", default=list(Format), type=Format, choices=list(Format), metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="keep the cells that are there, the failed ones excepted")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the model files here")
    parser.add_argument("--cap", type=float, default=1200.0, metavar="SECONDS", help="time for one network")
    arguments = parser.parse_args()
    cells: list[dict[str, Any]] = []
    if arguments.resume:
        cells = [cell for cell in earlier("int8_matrix").get("cells", []) if "failure" not in cell]
    known = {(cell["model"], cell["format"]) for cell in cells}
    for model in arguments.models:
        formats = [format for format in arguments.formats if (model, format.value) not in known]
        if not formats:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.keep or Path(temporary)) / model.replace(":", "-")
            found = measure(model, formats, folder, arguments.cap)
        cells += [{"model": model, "format": name, **cell, **ratios(cell)} for name, cell in found.items()]
        for cell in cells[-len(found) :]:
            print({key: value for key, value in cell.items() if key != "inspection"}, flush=True)
        write_result("int8_matrix", {"summary": summary(cells), "cells": cells}, command="python benchmarks/int8_matrix.py")


if __name__ == "__main__":
    main()
