"""How far the bench's own verdicts and figures can be trusted on this machine.

* A/A: two copies of one file, compared. A verdict other than "no difference" is false; at most 5 % may be. * A/B: the second
file does 3 % more work (103 layers instead of 100). "slower" must be found in at least 90 %. Every second trial, A/A and
  A/B alike, runs beside a process that keeps one core busy.
* Repeats: two measurements of one file, one after the other; at least 95 % of the pairs should agree within 2 %.
* Our LiteRT median against `litert-benchmark` of ai-edge-litert on the same file, alternating; within 2 %.

    python benchmarks/bench_quality.py [--trials 200]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from edgefold.device_bench import BenchOptions, bench, compare
from edgefold.results import Verdict

LAYERS, CHANNELS, SIZE, EXTRA = 100, 16, 14, 3
COMPARING = BenchOptions(processes=12, min_time_s=0.1, max_secs=120)
MEASURING = BenchOptions(processes=5, min_time_s=0.2, max_secs=60)
TOOL_RUNS = 5


def chain(layers: int, path: Path) -> Path:
    """A chain of equal 3x3 convolutions as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / math.sqrt(9 * CHANNELS)).astype(np.float32)
    names = ["input", *(f"hidden_{i}" for i in range(layers - 1)), "output"]
    nodes = [helper.make_node("Conv", [names[i], "weight"], [names[i + 1]], pads=[1, 1, 1, 1]) for i in range(layers)]
    shape = [1, CHANNELS, SIZE, SIZE]
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output"))
    graph = helper.make_graph(nodes, "chain", [given], [result], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@contextmanager
def busy_core() -> Iterator[None]:
    """One more process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def verdicts(a: Path, b: Path, trials: int) -> list[dict[str, Any]]:
    """Comparisons of two files, every second one under load."""
    rows = []
    for trial in range(trials):
        loaded = trial % 2 == 1
        with busy_core() if loaded else nullcontext():
            found = compare(a, b, options=COMPARING)
        row = {"loaded": loaded, "verdict": found.verdict.value, "ratio": round(found.ratio.value, 5)}
        rows.append(row | {"low": round(found.ratio.low, 5), "high": round(found.ratio.high, 5)})
        print(f"{b.name} {trial + 1}/{trials}: {found.verdict.value}, ratio {found.ratio.value:.4f}", flush=True)
    return rows


def repeats(path: Path, pairs: int) -> list[float]:
    """Larger over smaller median of each pair, minus one."""
    spreads = []
    for _ in range(pairs):
        medians = sorted(bench(path, options=MEASURING).median_ns for _ in range(2))
        spreads.append(medians[1] / medians[0] - 1)
    return spreads


def litert_file(path: Path) -> Path:
    """A few milliseconds of convolutions as TFLite: the tool tells hundredths of a millisecond."""
    import torch
    from torch import nn

    from edgefold import export_model

    layers = [layer for _ in range(12) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    torch.manual_seed(0)
    return export_model(nn.Sequential(*layers).eval(), torch.zeros(1, 32, 28, 28), format="tflite", out=path).path


def own_tool(path: Path) -> dict[str, Any]:
    """Medians of ours and of LiteRT's own tool in turns, in ns."""
    ours, theirs = [], []
    tool = Path(sys.executable).with_name("litert-benchmark")
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TOOL_RUNS):
            ours.append(bench(path, options=MEASURING).median_ns)
            report = Path(folder) / f"{turn}.json"
            argv = [str(tool), "--model", str(path), "--num_runs", "1000", "--warmup_runs", "200", "--result_json", str(report)]
            subprocess.run(argv, check=True, capture_output=True)
            theirs.append(1e6 * float(median_ms(json.loads(report.read_text()))))
    ratio = statistics.median(ours) / statistics.median(theirs)
    return {"file": path.name, "ours_ns": ours, "litert_benchmark_ns": theirs, "ratio": ratio}


def median_ms(report: Any) -> float:
    """The median in the tool's report, wherever in it that stands."""
    if isinstance(report, dict):
        for key, value in report.items():
            if isinstance(value, int | float) and ("median" in key or "p50" in key):
                return float(value)
            if isinstance(value, dict) and (found := median_ms(value)) > 0:
                return found
    return 0.0


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        a, copy, b = (
            chain(LAYERS, folder / "a.onnx"),
            chain(LAYERS, folder / "copy.onnx"),
            chain(LAYERS + EXTRA, folder / "b.onnx"),
        )
        same, more = verdicts(a, copy, trials), verdicts(a, b, trials)
        spreads = repeats(a, max(2, trials // 10))
        litert = own_tool(litert_file(folder / "chain.tflite"))
    false = sum(row["verdict"] != Verdict.NO_DIFFERENCE for row in same)
    found = sum(row["verdict"] == Verdict.SLOWER for row in more)
    figures = {
        "trials": trials,
        "load_average_before": list(before),
        "false_verdict_share": false / trials,
        "slowdown_found_share": found / trials,
        "slowdown_found_share_loaded": sum(r["verdict"] == Verdict.SLOWER for r in more if r["loaded"]) / max(1, trials // 2),
        "repeats_within_2_percent_share": sum(spread <= 0.02 for spread in spreads) / len(spreads),
        "repeat_spreads": spreads,
        "litert": litert,
        "same": same,
        "three_percent_more_work": more,
    }
    print(json.dumps({key: value for key, value in figures.items() if key not in ("same", "three_percent_more_work")}, indent=1))
    print(write_result("bench_quality", figures, command=f"python benchmarks/bench_quality.py --trials {trials}"))


if __name__ == "__main__":
    main()
