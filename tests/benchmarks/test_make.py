"""`make bench` runs the benchmarks, and not the modules and the worker beside them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_bench_runs_what_writes_a_result_and_nothing_else() -> None:
    told = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loop = next(line for line in told.splitlines() if "for script in" in line)
    found = {Path(word).stem for word in loop.partition(";")[0].split()[3:]}
    assert {"int8_matrix", "fold_speed", "lowering_costs", "agreement"} <= found
    assert not {"int8_cell", "int8_models", "record", "forms"} & found, "int8_cell is a worker of int8_matrix and takes arguments"
    assert {path.stem for path in (ROOT / "benchmarks/results").glob("*.json")} >= found - {"lowering_costs"}
