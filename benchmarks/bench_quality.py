"""How far the bench's own verdicts and figures can be trusted on this machine.

* A/A: two copies of one file, compared. A verdict other than "no difference" is false; at most 5 % may be.
* A/B: the second file does 3 % more work (103 layers instead of 100). "slower" must be found in at least 90 %; every second A/A
  trial is followed by an A/B trial.
* Half of the trials of each kind run beside a process that never rests, on the same cores.
* Repeats: two measurements of one file, one after the other; at least 95 % of the pairs should agree within 2 %. What the
  machine allows stands beside it: pairs of the same length of nothing but a fixed number of multiplications in the cache.
* Our LiteRT median against `litert-benchmark` of ai-edge-litert and against a bare loop around LiteRT's C API
  (`litert_loop.cpp`, compiled here with g++) on the same file, in turns; within 2 %.

A trial is what `edgefold compare` does by default, of small files: half a minute. The result is written after each, and
``--resume`` goes on from there; where that was another machine, ``cpus`` names each part's.

    python benchmarks/bench_quality.py [--trials 200] [--max-minutes 180] [--resume]
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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, write_result

from edgefold.artifact import Artifact, Format, Precision, TensorSpec, sha256_of
from edgefold.device_bench import BenchOptions, bench, compare
from edgefold.device_bench.native_bundle import NATIVE
from edgefold.device_bench.runners import open_runner
from edgefold.results import Verdict

LAYERS, CHANNELS, SIZE, EXTRA = 100, 8, 7, 3
MEASURING = BenchOptions(processes=5, min_time_s=0.2, max_secs=20)
PAIRS, TOOL_RUNS = 40, 9
RUNS, WARM_UP_RUNS = 1000, 200


def chain(layers: int, path: Path) -> Artifact:
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
    specs = [TensorSpec(name, tuple(shape), "float32") for name in ("input", "output")]
    return Artifact(path, Format.ONNX, Precision.FP32, sha256_of(path), (specs[0],), (specs[1],))


@contextmanager
def busy_core() -> Iterator[None]:
    """One more process that never rests, on the cores that this one may use."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def trial(a: Artifact, b: Artifact, number: int) -> dict[str, Any]:
    """One comparison of two files, every second one under load."""
    loaded = number % 2 == 1
    start = time.monotonic()
    with busy_core() if loaded else nullcontext():
        found = compare(a, b)
    print(f"{b.path.name} {number}: {found.verdict}, ratio {found.ratio.value:.4f}{' loaded' * loaded}", flush=True)
    figures = {
        "ratio": found.ratio.value,
        "low": found.ratio.low,
        "high": found.ratio.high,
        "median_ns": found.baseline.median_ns,
        "load_1min": found.candidate.device.load_1min or 0.0,
        "seconds": time.monotonic() - start,
    }
    return {"loaded": loaded, "verdict": found.verdict.value} | {key: float(f"{value:.5g}") for key, value in figures.items()}


def share(rows: Sequence[dict[str, Any]], verdict: Verdict, loaded: bool | None = None) -> float:
    """How many of the comparisons ended in this verdict."""
    some = [row for row in rows if loaded in (None, row["loaded"])]
    return sum(1 for row in some if row["verdict"] == verdict) / max(1, len(some))


def within(spreads: Sequence[float], limit: float = 0.02) -> float:
    """How many of the spreads are at most this."""
    return sum(spread <= limit for spread in spreads) / max(1, len(spreads))


def repeat(artifact: Artifact) -> float:
    """Larger over smaller median of two measurements, minus one."""
    low, high = sorted(bench(artifact, options=MEASURING).median_ns for _ in range(2))
    return high / low - 1


def fixed_work() -> float:
    """The same of a loop of matrix products, for the time that `MEASURING` measures: what the core's own speed varies by."""
    matrix = np.random.default_rng(0).random((64, 64), np.float32)

    def median_ns() -> float:
        times: list[int] = []
        while sum(times) < 1e9 * MEASURING.processes * MEASURING.min_time_s:
            start = time.perf_counter_ns()
            for _ in range(200):
                matrix @ matrix
            times.append(time.perf_counter_ns() - start)
        return statistics.median(times)

    low, high = sorted(median_ns() for _ in range(2))
    return high / low - 1


def litert_file(path: Path) -> Path:
    """A few milliseconds of convolutions as TFLite: the tool tells hundredths of a millisecond."""
    import torch
    from torch import nn

    from edgefold import export_model

    layers = [layer for _ in range(12) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    torch.manual_seed(0)
    return export_model(nn.Sequential(*layers).eval(), torch.zeros(1, 32, 28, 28), format="tflite", out=path).path


def bare_loop(folder: Path) -> Path:
    """The program `litert_loop.cpp`, compiled against the library that ours runs too."""
    import ai_edge_litert

    program, library = folder / "litert_loop", Path(ai_edge_litert.__path__[0]).resolve()
    argv = ["g++", "-O2", "-std=c++17", f"-I{NATIVE / 'src'}", str(Path(__file__).with_name("litert_loop.cpp"))]
    argv += [str(library / "libLiteRt.so"), f"-Wl,-rpath,{library},--allow-shlib-undefined", "-o", str(program)]
    subprocess.run(argv, check=True)
    return program


def own_tool(path: Path) -> dict[str, Any]:
    """Medians of ours, of LiteRT's own tool and of the bare loop in turns, in ns."""
    ours: list[float] = []
    tool_ns: list[float] = []
    loop_ns: list[float] = []
    tool = Path(sys.executable).with_name("litert-benchmark")
    runs = ["--num_runs", str(RUNS), "--warmup_runs", str(WARM_UP_RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        loop = bare_loop(Path(folder))
        for turn in range(TOOL_RUNS):
            ours.append(bench(path, options=MEASURING).median_ns)
            report = Path(folder) / f"{turn}.json"
            argv = [str(tool), "--model", str(path), *runs, "--result_json", str(report)]
            subprocess.run(argv, check=True, capture_output=True)
            tool_ns.append(1e6 * float(median_ms(json.loads(report.read_text()))))
            done = subprocess.run([str(loop), str(path), str(WARM_UP_RUNS), str(RUNS)], check=True, capture_output=True)
            loop_ns.append(float(done.stdout))
            print(f"LiteRT {turn}: {ours[-1]:.0f}, its tool {tool_ns[-1]:.0f}, bare loop {loop_ns[-1]:.0f} ns", flush=True)
    return {
        "file": path.name,
        "ours_ns": ours,
        "litert_benchmark_ns": tool_ns,
        "ratio": ratio(ours, tool_ns),
        "bare_c_loop": {"median_ns": loop_ns, "ratio": ratio(ours, loop_ns)},
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of neighbours in time: the machine's speed may jump between the turns."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def median_ms(report: Any) -> float:
    """The median in the tool's report, wherever in it that stands."""
    if isinstance(report, dict):
        for key, value in report.items():
            if isinstance(value, int | float) and ("median" in key or "p50" in key):
                return float(value)
            if isinstance(value, dict) and (found := median_ms(value)) > 0:
                return found
    return 0.0


def figures(rows: dict[str, list[Any]]) -> dict[str, Any]:
    """What the rows amount to."""
    same, more = rows["same"], rows["three_percent_more_work"]
    return {
        "same_trials": len(same),
        "more_work_trials": len(more),
        "minutes": sum(row["seconds"] for row in same + more) / 60,
        "false_verdict_share": share(same, Verdict.FASTER) + share(same, Verdict.SLOWER),
        "slowdown_found_share": share(more, Verdict.SLOWER),
        "slowdown_found_share_quiet": share(more, Verdict.SLOWER, loaded=False),
        "slowdown_found_share_loaded": share(more, Verdict.SLOWER, loaded=True),
        "repeats_within_2_percent_share": within(rows["repeat_spreads"]),
        "fixed_work_within_2_percent_share": within(rows["fixed_work_spreads"]),
    }


def main() -> None:
    """Runs everything; the result is written after each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of A/A; half as many of A/B (default: 200)")
    parser.add_argument("--max-minutes", type=float, default=180, help="no trial begins after this time (default: 180)")
    parser.add_argument("--resume", action="store_true", help="go on after the trials that are in the result")
    arguments = parser.parse_args()
    rows: dict[str, list[Any]] = {
        "same": [],
        "three_percent_more_work": [],
        "repeat_spreads": [],
        "fixed_work_spreads": [],
        "litert": [],
    }
    cpus: dict[str, list[str]] = {key: [] for key in rows}
    if arguments.resume:
        found = json.loads((RESULTS / "bench_quality.json").read_text(encoding="utf-8"))
        rows = {key: found[key] for key in rows}
        cpus = {key: found["cpus"][key] for key in rows}
    with open_runner("host") as host:
        here = host.info().cpu or "unknown"
    same, more, spreads = rows["same"], rows["three_percent_more_work"], rows["repeat_spreads"]
    end = time.monotonic() + 60 * arguments.max_minutes

    def keep(part: str, row: Any) -> None:
        rows[part].append(row)
        if here not in cpus[part]:
            cpus[part].append(here)

    def save() -> Path:
        cores = {"cores": sorted(os.sched_getaffinity(0))}
        return write_result(
            "bench_quality", figures(rows) | cores | {"cpus": cpus} | rows, command="python benchmarks/bench_quality.py"
        )

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        a, copy = chain(LAYERS, folder / "a.onnx"), chain(LAYERS, folder / "copy.onnx")
        b = chain(LAYERS + EXTRA, folder / "more.onnx")
        while len(same) < arguments.trials and time.monotonic() < end:
            if len(more) < (len(same) + 1) // 2:
                keep("three_percent_more_work", trial(a, b, len(more)))
            else:
                keep("same", trial(a, copy, len(same)))
            save()
        while len(spreads) < PAIRS:
            keep("repeat_spreads", repeat(a))
            keep("fixed_work_spreads", fixed_work())
            found_spread, fixed_spread = (100 * rows[part][-1] for part in ("repeat_spreads", "fixed_work_spreads"))
            print(f"repeat {len(spreads)}: {found_spread:.2f} % apart, fixed work {fixed_spread:.2f} %", flush=True)
        if not rows["litert"]:
            keep("litert", own_tool(litert_file(folder / "chain.tflite")))
    print(json.dumps(figures(rows), indent=1))
    print(save())


if __name__ == "__main__":
    main()
