"""What the upstream benchmark programs print, in their own words, and scripts that print it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.tools import bench_with_tool, read_benchmark_model, read_executor_runner, read_perf_test
from edgefold.errors import RuntimeFailure, UsageError
from edgefold.results import Code, Measurement, Run, from_dict, to_dict

TFLITE = """INFO: Graph: [m.tflite]
INFO: count=50 first=1512 curr=1450 min=1438 max=1530 avg=1457.5 std=9
INFO: Inference timings in us: Init: 5685, First inference: 1853, Warmup (avg): 1446.25, Inference (avg): 1457.5
"""
ONNX = """Session creation time cost: 0.0213 s
First inference time cost: 2 ms
Total inference time cost: 0.15 s
Total inference requests: 100
Average inference time cost: 1.5 ms
"""
EXECUTORCH = "I 00:00:00.1 executorch:executor_runner.cpp:300] Model executed successfully 100 time(s) in 123.400000 ms.\n"
QUICK = BenchOptions(processes=2, gate_max_s=0)


def test_each_kind_is_read() -> None:
    assert read_benchmark_model(TFLITE) == Run((1_457_500,), 5_685_000, 1_853_000, (1_446_250,))
    assert read_perf_test(ONNX) == Run((1_500_000,), 21_300_000, 2_000_000, ())
    assert read_executor_runner(EXECUTORCH) == Run((1_234_000,), None, None, ())


@pytest.mark.parametrize("read", [read_benchmark_model, read_perf_test, read_executor_runner])
def test_anything_else_is_not(read: object) -> None:
    assert callable(read)
    assert read("") is None
    assert read("Model executed successfully 0 time(s) in 0 ms. Average: 3 ms") is None


@pytest.mark.parametrize(
    ("model", "text", "median_ns", "arguments"),
    [
        ("tiny.tflite", TFLITE, 1_457_500, "--num_threads=1"),
        ("tiny.onnx", ONNX, 1_500_000, "-x 1 -y 1 -I"),
        ("tiny.pte", EXECUTORCH, 1_234_000, "--cpu_threads=1"),
    ],
)
def test_a_tool_is_sent_and_run(tiny: Path, tmp_path: Path, model: str, text: str, median_ns: int, arguments: str) -> None:
    tool, log = tmp_path / "my-tool", tmp_path / "log"
    tool.write_text(f"#!/bin/sh\necho \"$@\" >>'{log}'\ncat <<'END'\n{text}END\n")
    tool.chmod(0o755)
    result = bench_with_tool(tiny / model, tool, options=QUICK)
    assert result.median_ns == median_ns
    assert len(result.runs) == 2
    assert {Code.FEW_SAMPLES, Code.OUTPUT_UNCHECKED} <= set(result.codes)
    lines = log.read_text().splitlines()
    assert all(arguments in line for line in lines)
    assert len(lines) == 3  # one more, that is watched
    # What it does not tell is no zero.
    assert (result.peak_rss_bytes, result.base_rss_bytes, result.pss_bytes) == (None, None, None)
    assert (result.load_ns is None) == (result.first_ns is None) == (model == "tiny.pte")
    assert from_dict(Measurement, json.loads(json.dumps(to_dict(result)))) == result


def test_tools_that_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    with pytest.raises(UsageError, match="does not exist; give the path of a benchmark program"):
        bench_with_tool(tiny / "tiny.onnx", tool)
    tool.write_text("#!/bin/sh\necho 'no such option' >&2; exit 2\n")
    tool.chmod(0o755)
    with pytest.raises(RuntimeFailure, match=r"exit code 2, it said: no such option\); expected onnxruntime_perf_test"):
        bench_with_tool(tiny / "tiny.onnx", tool, options=QUICK)
    with pytest.raises(UsageError, match="cores cannot be chosen with a tool"):
        bench_with_tool(tiny / "tiny.onnx", tool, options=BenchOptions(cores="0"))
