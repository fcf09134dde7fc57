"""Where the time of an inference goes: the ops of a model with the PyTorch modules that they come from.

A pass of its own, since looking at ops slows them down: the shares count, not the sum. ONNX Runtime tells each node, whose
name begins with its module's path in the files that Edgefold writes. ExecuTorch tells ops in an ETDump, XNNPACK's inside the
delegate included; those carry no module, but convolutions and matrix products run in the order of the program, so they get
the modules of its own. LiteRT's interpreter tells nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefold.artifact import Artifact, Format
from edgefold.device_bench.cases import GRACE_S, PROFILE_JOB, make_case
from edgefold.device_bench.inspection import mac_modules
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.method import START_S, placed
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners import open_runner
from edgefold.errors import RuntimeFailure, UnsupportedError
from edgefold.runtime.protocol import last_line, read_answer

ETDUMP_TIMEOUT_S = 300.0
# Names under which XNNPACK and ExecuTorch tell ops with multiply-accumulates; everything else is matched by nothing.
WITH_MACS = re.compile(r"^(?:Convolution|Deconvolution|Fully Connected|Batch Matrix Multiply)")
# Rows of an ETDump that hold other rows.
FRAMES = ("Method::init", "Program::load_method", "Method::execute", "DELEGATE_CALL", "OPERATOR_CALL")


@dataclass(frozen=True, slots=True)
class OpTime:
    """One op. ``module`` is the path of the PyTorch module, empty where the file does not say; ``share`` is of the sum of all
    ops."""

    name: str
    op: str
    module: str
    ns: int
    share: float


@dataclass(frozen=True, slots=True)
class OpProfile:
    """The ops of one artifact in the order of execution."""

    artifact: str
    artifact_sha256: str
    format: Format
    runtime: str
    device: str
    ops: tuple[OpTime, ...]

    @property
    def slowest(self) -> tuple[OpTime, ...]:
        """The ops by their time, the slowest first."""
        return tuple(sorted(self.ops, key=lambda op: op.ns, reverse=True))


def profile(
    artifact: Artifact | Path | str,
    device: str = "host",
    options: BenchOptions | None = None,
    *,
    ssh_config: Path | None = None,
) -> OpProfile:
    """The times of the ops of an artifact on a device that has Python.

    Raises:
        InputError: the file, the options or the device's name cannot be used.
        UnsupportedError: the runtime does not tell the times of ops.
        RuntimeFailure: the runtime crashed or refused the file.
        DeviceError: the device cannot be reached, or has no Python with the runtime.
    """
    options = options or BenchOptions()
    case = make_case(artifact, seed=options.seed)
    if case.format is Format.TFLITE:
        raise UnsupportedError(
            f"LiteRT does not tell the times of ops, so '{case.name}' cannot be profiled; "
            "profile the .onnx or .pte of the same model"
        )
    with open_runner(device, ssh_config=ssh_config) as runner:
        launcher = Launchers(runner, "python").of(case.format)
        with placed(case, runner, launcher, options) as place, tempfile.TemporaryDirectory(prefix="edgefold-") as local:
            done = runner.run(launcher.argv(place.folder, PROFILE_JOB), timeout_s=options.max_secs + GRACE_S + START_S)
            answer = read_answer(done.returncode, done.stdout, done.stderr, model=case.name, format=case.format)
            if "etdump" in answer:
                dump = Path(local) / "trace.etdp"
                runner.pull(f"{place.folder}/{answer['etdump']}", dump)
                rows = _with_modules(read_etdump(dump), mac_modules(case.path))
            else:
                rows = [(entry["name"], entry["op"], module_of(entry["name"]), int(entry["ns"])) for entry in answer["ops"]]
    total = sum(row[3] for row in rows) or 1
    ops = tuple(OpTime(name, op, module, ns, ns / total) for name, op, module, ns in rows)
    return OpProfile(case.name, case.sha256, case.format, answer["runtime"], device, ops)


def module_of(node: str) -> str:
    """The module's path at the beginning of a node's name (``features.0/Conv_token_3``); empty where there is none."""
    path, slash, _ = node.partition("/")
    return path if slash else ""


def read_etdump(path: Path) -> list[tuple[str, str, int]]:
    """Name, op and median time in ns of each op in an ETDump.

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
    return [(name, re.sub(r" #\d+$", "", name), round(ns)) for name, ns in rows if name not in FRAMES]


def _with_modules(rows: Sequence[tuple[str, str, int]], modules: Sequence[str]) -> list[tuple[str, str, str, int]]:
    """The modules of the ops with multiply-accumulates, by their order; none where the numbers differ."""
    positions = [i for i, row in enumerate(rows) if WITH_MACS.match(row[1])]
    found = dict(zip(positions, modules, strict=True)) if len(positions) == len(modules) else {}
    return [(name, op, found.get(i, ""), ns) for i, (name, op, ns) in enumerate(rows)]
