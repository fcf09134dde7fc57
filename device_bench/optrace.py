"""The times of ops as each runtime writes them, read into one kind of row.

ONNX Runtime tells each node by its name or, where it has put it into a blocked layout, by that of its output; modules and
multiply-accumulates come from the file, since the shapes in the trace are padded to blocks and lack packed weights. Only nodes
without a name, in files of other makers, are taken as the trace has them.
XNNPACK, in ExecuTorch and LiteRT, tells kernels without modules: convolutions and matrix products run in the order of the
file, so they get the modules, multiply-accumulates and bytes of its own ops; all others get none.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgefold.device_bench.inspection import Work
from edgefold.errors import RuntimeFailure
from edgefold.runtime.protocol import last_line

ETDUMP_TIMEOUT_S = 300.0
# Names under which XNNPACK and ExecuTorch tell ops with multiply-accumulates; everything else is matched by nothing.
WITH_MACS = re.compile(r"^(?:Convolution|Deconvolution|Fully Connected|Batch Matrix Multiply)")
# What XNNPACK calls the kernels of TFLite's ops that may be slow in integers.
KERNELS = {
    "RESIZE_BILINEAR": "Resize Bilinear",
    "PAD": "Constant Pad",
    "PADV2": "Constant Pad",
    "GELU": "GELU",
    "HARD_SWISH": "HardSwish",
    "SOFTMAX": "Softmax",
    "MUL": "Multiply",
    "MEAN": "Mean",
    "SQUARED_DIFFERENCE": "Squared Difference",
    "RSQRT": "Reciprocal Square Root",
}
# Rows of an ETDump that hold other rows.
FRAMES = ("Method::init", "Program::load_method", "Method::execute", "DELEGATE_CALL", "OPERATOR_CALL")
KERNEL = "_kernel_time"
# What ONNX Runtime puts behind a name when it replaces a node by one of another layout, or by one that is fused.
BLOCKED = re.compile(r"(?:_nchwc)?(?:_token_\d+)?$")


@dataclass(frozen=True, slots=True)
class Row:
    """One op in the order of execution. ``position`` is that in a .tflite, -1 for ops inside a delegate."""

    name: str
    op: str
    ns: float
    module: str = ""
    macs: int = 0
    moved_bytes: int = 0
    position: int = -1


def read_ort_trace(path: Path, known: Mapping[str, Work] | None = None) -> list[Row]:
    """The median time of each node in ONNX Runtime's trace; ``known`` is what the file says of its nodes, by their names.

    Raises:
        RuntimeFailure: it is no such trace.
    """
    try:
        events = [event for event in json.loads(path.read_text(encoding="utf-8")) if event.get("cat") == "Node"]
        times: dict[str, list[int]] = {}
        arguments: dict[str, dict[str, Any]] = {}
        for event in events:
            if event["name"].endswith(KERNEL):
                name = event["name"].removesuffix(KERNEL)
                times.setdefault(name, []).append(1000 * event["dur"])
                arguments[name] = event["args"]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise RuntimeFailure(f"ONNX Runtime's trace cannot be read ({error}); is it of another version?") from error
    rows = []
    for name, all_ns in times.items():
        work = (known or {}).get(BLOCKED.sub("", name)) or Work(
            module_of(name), _macs_of_node(arguments[name]), 0, delegated=False
        )
        sizes = [int(arguments[name].get(key, 0)) for key in ("activation_size", "output_size", "parameter_size")]
        moved = sizes[0] + sizes[1] + max(sizes[2], work.moved_bytes)
        rows.append(Row(name, arguments[name]["op_name"], statistics.median(all_ns), work.module, work.macs, moved))
    return rows


def module_of(node: str) -> str:
    """The module's path at the beginning of a node's name (``features.0/Conv_token_3``); empty where there is none."""
    path, slash, _ = node.partition("/")
    return path if slash else ""


def _macs_of_node(arguments: dict[str, Any]) -> int:
    """Multiply-accumulates of a node by the shapes in the trace, which some layouts pad."""
    inputs, outputs = (_shapes(arguments.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
    # The first input is the activation; the next of the same rank is the weight, after scales and zero points.
    weight = next((shape for shape in inputs[1:] if len(shape) > 1), None)
    if weight is None or not outputs:
        return 0
    kind = arguments["op_name"]
    if "ConvTranspose" in kind:
        return math.prod(inputs[0]) * math.prod(weight[1:])
    if "Conv" in kind:
        return math.prod(outputs[0]) * math.prod(weight[1:])
    if "MatMul" in kind or "Gemm" in kind:
        # (…, m, k) times (k, n), or the transposed weight of a Gemm: k is what the output does not have.
        return math.prod(outputs[0]) * math.prod(weight) // max(1, outputs[0][-1])
    return 0


def _shapes(entries: Sequence[dict[str, list[int]]]) -> list[list[int]]:
    """Shapes out of entries like ``{"float": [1, 3, 16, 16]}``."""
    return [next(iter(entry.values())) for entry in entries if entry]


def read_litert_trace(entries: Sequence[dict[str, Any]]) -> list[Row]:
    """What the worker told of LiteRT's profiler."""
    return [Row(entry["name"], _kernel(entry["op"]), entry["ns"], position=entry["position"]) for entry in entries]


def _kernel(name: str) -> str:
    """XNNPACK calls kernels without a name, such as table lookups of INT8, "Invalid Unary Op"; nothing is wrong with them."""
    return name.removeprefix("Invalid ")


def read_etdump(path: Path) -> list[Row]:
    """The median time of each op in an ETDump.

    ExecuTorch's reader needs torch and warns freely, so it runs in a process of its own.

    Raises:
        RuntimeFailure: it cannot read the file.
    """
    script = (
        "import json, sys, statistics, warnings; warnings.simplefilter('ignore'); sys.path.extend(json.loads(sys.argv[2]))\n"
        "from executorch.devtools import Inspector\n"
        "from executorch.devtools.inspector import TimeScale\n"
        "inspector = Inspector(etdump_path=sys.argv[1], source_time_scale=TimeScale.NS, target_time_scale=TimeScale.NS)\n"
        "blocks = [block for block in inspector.event_blocks if block.name == 'Execute']\n"
        "rows = [(event.name, event.perf_data.raw) for block in blocks for event in block.events if event.perf_data]\n"
        "print('\\n' + json.dumps([(name, statistics.median(raw)) for name, raw in rows]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(path), json.dumps([entry for entry in sys.path if entry])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ETDUMP_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeFailure(f"ExecuTorch's reader refused the ETDump: {last_line(done.stderr)}; is it of another version?")
    rows = json.loads(done.stdout.decode().strip().splitlines()[-1])
    # "Convolution (NHWC, F32) IGEMM #2": the number only tells equal names apart. XNNPACK's clock has steps of a microsecond.
    return [Row(name, _kernel(re.sub(r" #\d+$", "", name)), ns) for name, ns in rows if name not in FRAMES]


def with_work(rows: Sequence[Row], work: Sequence[Work]) -> list[Row]:
    """The rows of XNNPACK with the work of the file's ops: by position, or else by order; none where the numbers differ.

    Of kernels without products only the `KERNELS` are found, as LiteRT has them.
    """
    inside = [each for each in work if each.macs and each.delegated]
    places = [i for i, row in enumerate(rows) if row.position < 0 and WITH_MACS.match(row.op)]
    found = dict(zip(places, inside, strict=True)) if len(places) == len(inside) else {}
    found |= _by_kind(rows, work)
    found |= {i: work[row.position] for i, row in enumerate(rows) if 0 <= row.position < len(work)}
    return [
        replace(row, module=found[i].module, macs=found[i].macs, moved_bytes=found[i].moved_bytes) if i in found else row
        for i, row in enumerate(rows)
    ]


def _by_kind(rows: Sequence[Row], work: Sequence[Work]) -> dict[int, Work]:
    """The work of kernels in a delegate of LiteRT, by their place: where there are as many of a kind as ops in the file."""
    found: dict[int, Work] = {}
    for kernel in dict.fromkeys(KERNELS.values()):
        inside = [each for each in work if each.delegated and KERNELS.get(each.op) == kernel]
        places = [i for i, row in enumerate(rows) if row.position < 0 and re.match(rf"{kernel}\b", row.op)]
        if len(places) == len(inside):
            found |= zip(places, inside, strict=True)
    return found
