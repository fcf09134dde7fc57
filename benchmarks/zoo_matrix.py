"""Networks x three formats x {fp32, int8}: which files are written, agree with PyTorch and are not slower than fp32.

    python benchmarks/zoo_matrix.py [--models NAME ...] [--resume] [--cap SECONDS]

A cell of fp32 is good where its largest error is at most 1e-4 of the output's range; one of int8 where its SQNR is at most 0.5 dB
below the best file of the runtime's own tool and it is not slower than the fp32 file. A figure that is not there is no good one;
only where the runtime's own tool fails by itself, int8 is judged without it, and the result says so. Each network of ``zoo.txt``
is measured as in `int8_matrix`, with seeded weights except for the trained built-in ones. The result is written after every
network.

Every miss is listed with what is wrong and with its cause from ``zoo_causes.toml``; without one the script ends with exit code 1.
``--resume`` measures what is not there yet or failed, and joins the causes again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from int8_matrix import measure, ratios
from record import earlier, write_result

from edgefold.artifact import Format
from edgefold.network import tool_versions

FP32_ERROR: Final = 1e-4  # of the output's range
BELOW_NATIVE_DB: Final = 0.5
ZOO: Final = Path(__file__).with_name("zoo.txt")  # one source a line, as `edgefold matrix --models` takes it
CAUSES: Final = Path(__file__).with_name("zoo_causes.toml")

Causes = dict[tuple[str, str, str], dict[str, str]]


def misses(cell: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the fp32 and the int8 file of one network and format; a precision without a fault is left out."""
    if "failure" in cell:
        return dict.fromkeys(("fp32", "int8"), cell["failure"])
    found: dict[str, str] = {key: cell["failures"][key] for key in ("fp32", "int8") if key in cell["failures"]}
    if "fp32" not in found:
        error = cell["largest_error_of_range"].get("fp32")
        if error is None:
            found["fp32"] = "its error was not measured"
        elif not error <= FP32_ERROR:  # also where it is NaN
            found["fp32"] = f"off by {error:.1g} of the output's range"
    if "int8" not in found:
        faults = [fault for fault in (_accuracy_fault(cell), _time_fault(cell)) if fault]
        if faults:
            found["int8"] = "; ".join(faults)
    return found


def _accuracy_fault(cell: dict[str, Any]) -> str:
    above = cell.get("sqnr_above_native_db")
    if above is None:
        return "" if without_native(cell) else "was not compared with the runtime's own tool"
    return "" if above >= -BELOW_NATIVE_DB else f"{-above:.1f} dB below the runtime's own tool"


def _time_fault(cell: dict[str, Any]) -> str:
    ratio = cell.get("int8_to_fp32_ratio")
    if ratio is None:
        return "was not timed against fp32"
    return "" if ratio <= 1 else f"takes {ratio:.2f} times as long as fp32"


def without_native(cell: dict[str, Any]) -> str:
    """Why int8 is judged without the runtime's own tool: how every file of it failed. Empty where it is not."""
    failed = {key: cause for key, cause in cell.get("failures", {}).items() if key.startswith("native-")}
    ran = any(key.startswith("native-") for key in cell.get("latency_us", {}))
    return "" if ran else "; ".join(f"{key}: {cause}" for key, cause in failed.items())


def read_causes() -> Causes:
    """The known causes of misses: (model, format, precision) -> ``cause`` and, if there is one, ``upstream``, an address."""
    entries = tomllib.loads(CAUSES.read_text(encoding="utf-8")).get("miss", [])
    return {(entry["model"], entry["format"], entry["precision"]): entry for entry in entries}


def summary(cells: list[dict[str, Any]], causes: Causes) -> dict[str, Any]:
    """How many cells are good, every miss, and which were judged without the runtime's own tool."""
    rows = []
    for cell in cells:
        for precision, fault in misses(cell).items():
            known = causes.get((cell["model"], cell["format"], precision), {})
            row = {"model": cell["model"], "format": cell["format"], "precision": precision, "fault": fault}
            rows.append({**row, "cause": known.get("cause"), "upstream": known.get("upstream")})
    total = 2 * len(cells)
    written = total - sum(2 if "failure" in cell else len({"fp32", "int8"} & cell["failures"].keys()) for cell in cells)
    return {
        "cells": total,
        "written_and_run_share": round(written / max(1, total), 4),
        "good_share": round(1 - len(rows) / max(1, total), 4),
        "misses": rows,
        "judged_without_native": [
            {"model": cell["model"], "format": cell["format"], "why": why} for cell in cells if (why := without_native(cell))
        ],
    }


def provenance() -> dict[str, str | None]:
    """When and with what a cell is measured: date, hash of the tools' versions, and the commit, marked where files differ."""
    here = Path(__file__).parent
    versions = hashlib.sha256(json.dumps(tool_versions(), sort_keys=True).encode()).hexdigest()
    commit = _git(here, "rev-parse", "HEAD")
    if commit and _git(here, "status", "--porcelain", "--", "..", ":!results"):
        commit += " with changes"
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions_sha256": versions, "commit": commit}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    """Measures the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=ZOO.read_text(encoding="utf-8").split(), metavar="NAME", help="instead of those in zoo.txt"
    )
    parser.add_argument("--resume", action="store_true", help="keep what is there and in int8_matrix, but for failures")
    parser.add_argument("--cap", type=float, default=1800.0, metavar="SECONDS", help="time for one network")
    arguments = parser.parse_args()
    causes = read_causes()
    cells: list[dict[str, Any]] = kept() if arguments.resume else []
    known = {cell["model"] for cell in cells}
    for model in arguments.models:
        if model in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, list(Format), Path(folder), arguments.cap)
        origin = provenance()
        cells += [{"model": model, "format": name, "provenance": origin, **cell, **ratios(cell)} for name, cell in found.items()]
        print(model, {cell["format"]: misses(cell) for cell in cells[-len(found) :]}, flush=True)
        _write(cells, causes)
    _write(cells, causes)
    unknown = [row for row in summary(cells, causes)["misses"] if not row["cause"]]
    for row in unknown:
        print(f"no cause in {CAUSES.name}: {row['model']} {row['format']} {row['precision']}: {row['fault']}", file=sys.stderr)
    sys.exit(1 if unknown else 0)


def kept() -> list[dict[str, Any]]:
    """The cells of earlier runs of this script and of `int8_matrix`, but for failed networks; old ones have no provenance."""
    cells: list[dict[str, Any]] = earlier("zoo_matrix").get("measured", [])
    measured = {cell["model"] for cell in cells}
    cells += [cell for cell in earlier("int8_matrix").get("cells", []) if cell["model"] not in measured]
    failed = {cell["model"] for cell in cells if "failure" in cell}
    return [{"provenance": None, **cell} for cell in cells if cell["model"] not in failed]


def _write(cells: list[dict[str, Any]], causes: Causes) -> None:
    write_result("zoo_matrix", {**summary(cells, causes), "measured": cells}, command="python benchmarks/zoo_matrix.py")


if __name__ == "__main__":
    main()
