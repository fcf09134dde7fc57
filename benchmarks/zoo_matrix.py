"""Networks x three formats x {fp32, int8}: which files are written, agree with PyTorch and are not slower than fp32.

    python benchmarks/zoo_matrix.py [--models NAME ...] [--resume] [--cap SECONDS]

A cell of fp32 is good where its largest error is at most 1e-4 of the output's range; one of int8 where its SQNR is at most 0.5 dB
below the best file of the runtime's own tool and it is not slower than the fp32 file. Each network of ``zoo.txt`` is measured as
in `int8_matrix`, with seeded weights except for the built-in ones. The result is written after every network;
a miss has its cause.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

from int8_matrix import measure, ratios
from record import earlier, write_result

from edgefold.artifact import Format

FP32_ERROR: Final = 1e-4  # of the output's range
BELOW_NATIVE_DB: Final = 0.5
ZOO: Final = Path(__file__).with_name("zoo.txt")  # one source a line, as `edgefold matrix --models` takes it


def misses(cell: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the fp32 and the int8 file of one network and format; a precision without a fault is left out."""
    found: dict[str, str] = {}
    for precision in ("fp32", "int8"):
        if "failure" in cell:
            found[precision] = cell["failure"]
        elif precision in cell["failures"]:
            found[precision] = cell["failures"][precision]
    if "fp32" not in found and cell["largest_error_of_range"]["fp32"] > FP32_ERROR:
        found["fp32"] = f"off by {cell['largest_error_of_range']['fp32']:.1g} of the output's range"
    if "int8" not in found:
        faults = []
        if cell.get("sqnr_above_native_db", 0.0) < -BELOW_NATIVE_DB:
            faults.append(f"{-cell['sqnr_above_native_db']:.1f} dB below the runtime's own tool")
        if cell.get("int8_to_fp32_ratio", 0.0) > 1:
            faults.append(f"takes {cell['int8_to_fp32_ratio']:.2f} times as long as fp32")
        if faults:
            found["int8"] = "; ".join(faults)
    return found


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How many cells are good, and every miss."""
    rows = [
        {"model": cell["model"], "format": cell["format"], "precision": precision, "cause": cause}
        for cell in cells
        for precision, cause in misses(cell).items()
    ]
    total = 2 * len(cells)
    written = total - sum(2 if "failure" in cell else len({"fp32", "int8"} & cell["failures"].keys()) for cell in cells)
    return {
        "cells": total,
        "written_and_run_share": round(written / max(1, total), 4),
        "good_share": round(1 - len(rows) / max(1, total), 4),
        "misses": rows,
    }


def main() -> None:
    """Measures the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=ZOO.read_text(encoding="utf-8").split(), metavar="NAME", help="instead of those in zoo.txt"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what is there and in int8_matrix, but for failures",
    )
    parser.add_argument("--cap", type=float, default=1800.0, metavar="SECONDS", help="time for one network")
    arguments = parser.parse_args()
    cells: list[dict[str, Any]] = []
    if arguments.resume:
        cells = earlier("zoo_matrix").get("measured", [])
        measured = {cell["model"] for cell in cells}
        cells += [cell for cell in earlier("int8_matrix").get("cells", []) if cell["model"] not in measured]
        failed = {cell["model"] for cell in cells if "failure" in cell}
        cells = [cell for cell in cells if cell["model"] not in failed]
    known = {cell["model"] for cell in cells}
    for model in arguments.models:
        if model in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, list(Format), Path(folder), arguments.cap)
        cells += [{"model": model, "format": name, **cell, **ratios(cell)} for name, cell in found.items()]
        print(model, {cell["format"]: misses(cell) for cell in cells[-len(found) :]}, flush=True)
        write_result("zoo_matrix", {**summary(cells), "measured": cells}, command="python benchmarks/zoo_matrix.py")


if __name__ == "__main__":
    main()
