"""ARM instruction counts under emulation: a cost that repeats on any x86 machine.

What is given is the median of several inferences in one process; five processes with one file agreed within a hundredth of a
percent. The inferences in one process differ (``spread``): in LiteRT and ExecuTorch by less than one in 10,000 or not at all, in
ONNX Runtime by up to 0.24 % (`benchmarks/results/instruction_counts.json`; why was not looked into).

The native runner runs in QEMU's user mode with a counting plugin (`native/counter.c`). A count is a regression gate for
folding and INT8 on ARM cores without a board. It is no latency and no prediction of one: an emulator knows no caches, no
pipeline and no memory bandwidth.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.artifact import Artifact, Format
from edgefold.device_bench.benchmark import host_outputs
from edgefold.device_bench.cases import Case, make_case, write_case
from edgefold.device_bench.native_bundle import NATIVE, NativeBundle, load_bundle
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.parity import compare_outputs, is_right
from edgefold.errors import RuntimeFailure, UsageError, unknown_name
from edgefold.results import Code
from edgefold.runtime.protocol import read_answer
from edgefold.runtime.session import from_file

RUNS = 6
COUNT_JOB = "count.json"
TIMEOUT_S = 1800.0
BASE_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEW_FEATURES = f"{BASE_FEATURES} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# What /proc/cpuinfo says of each core that QEMU knows: part number and features. The runtimes choose their kernels by it.
CPUS = {
    "cortex-a53": ("0xd03", BASE_FEATURES),
    "cortex-a72": ("0xd08", BASE_FEATURES),
    "cortex-a76": ("0xd0b", NEW_FEATURES),
    "neoverse-n1": ("0xd0c", NEW_FEATURES),
}


@dataclass(frozen=True, slots=True)
class InstructionCount:
    """Instructions of one inference on one emulated core, by kind (a fused multiply-add is counted as ``simdfp`` too).

    ``counts`` is the median of the runs after the first, ``spread`` the largest less the smallest of their totals, as a share.
    """

    artifact: str
    artifact_sha256: str
    format: Format
    runtime: str
    cpu: str
    counts: dict[str, int]
    first: dict[str, int]
    spread: float
    codes: tuple[Code, ...]

    @property
    def instructions(self) -> int:
        """All instructions of one inference."""
        return self.counts["insns"]


def count_instructions(artifact: Artifact | Path | str, cpu: str = "cortex-a76", *, seed: int = 0) -> InstructionCount:
    """Counts the instructions of one inference with one thread.

    Raises:
        InputError: the file or the CPU's name cannot be used, or a tool (qemu-user, a C compiler, the native runner) is missing.
        RuntimeFailure: the runtime crashed or refused the file.
    """
    if cpu not in CPUS:
        raise unknown_name("CPU", cpu, CPUS)
    bundle = load_bundle()
    if bundle is None:
        raise UsageError("counting needs the native runner, which was not built; build it with: edgefold runner build")
    qemu, compiler = _tool("qemu-aarch64", "qemu-user"), _tool("gcc", "gcc")
    case = make_case(artifact, seed=seed)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        work = Path(temporary)
        plugin = work / "counter.so"
        _compile(compiler, plugin)
        _describe_cpu(work / "root", cpu)
        folder = work / "case"
        folder.mkdir()
        write_case(case, folder, BenchOptions(), {"runs": RUNS})
        job = json.loads((folder / "bench.json").read_text())
        (folder / COUNT_JOB).write_text(json.dumps({**job, "mode": "count", "limit_s": TIMEOUT_S}))
        answer = _emulate(qemu, cpu, plugin, work, bundle, case)
        outputs = [np.load(folder / name, allow_pickle=False) for name in answer["outputs"]]
        marks = parse_marks((work / "counts").read_text())
    runs = per_run(marks)
    totals = sorted(run["insns"] for run in runs[1:])
    middle = sorted(runs[1:], key=lambda run: run["insns"])[len(totals) // 2]
    return InstructionCount(
        artifact=case.name,
        artifact_sha256=case.sha256,
        format=case.format,
        runtime=answer["runtime"],
        cpu=cpu,
        counts=middle,
        first=runs[0],
        spread=(totals[-1] - totals[0]) / totals[0],
        codes=(Code.EMULATED, *_wrong(case, outputs)),
    )


def parse_marks(text: str) -> dict[int, dict[str, int]]:
    """The counts so far at each marker."""
    lines = re.findall(r"^mark (\d+) (.*)$", text, re.MULTILINE)
    return {int(number): {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", rest)} for number, rest in lines}


def per_run(marks: dict[int, dict[str, int]]) -> list[dict[str, int]]:
    """What each run took: markers 2k and 2k + 1 stand before and after run k.

    Raises:
        RuntimeFailure: a marker is missing.
    """
    if len(marks) < 4 or set(marks) != set(range(len(marks))) or len(marks) % 2:
        raise RuntimeFailure(
            f"the instruction counter gave {len(marks)} markers, expected {2 * RUNS}; is it another version of QEMU?"
        )
    return [{key: marks[2 * k + 1][key] - marks[2 * k][key] for key in marks[0]} for k in range(len(marks) // 2)]


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"counting needs '{name}', which is not installed; on Debian: apt-get install {package}")
    return found


def _compile(compiler: str, plugin: Path) -> None:
    done = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", str(NATIVE / "counter.c"), "-o", str(plugin)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeFailure(f"compiling the instruction counter failed: {done.stderr.splitlines()[0] if done.stderr else '?'}")


def _describe_cpu(root: Path, cpu: str) -> None:
    """Files that QEMU shows in place of the host's own; without them a runtime sees an x86 CPU, or none."""
    part, features = CPUS[cpu]
    (root / "proc").mkdir(parents=True)
    text = f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    (root / "proc" / "cpuinfo").write_text(f"{text}CPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n")
    cores = root / "sys" / "devices" / "system" / "cpu"
    cores.mkdir(parents=True)
    for name in ("online", "possible", "present"):
        (cores / name).write_text("0\n")


def _emulate(qemu: str, cpu: str, plugin: Path, work: Path, bundle: NativeBundle, case: Case) -> dict[str, Any]:
    program, _ = bundle.programs[case.format]
    argv = [qemu, "-cpu", cpu, "-plugin", f"{plugin},out={work / 'counts'}", "-L", str(work / "root")]
    argv += [str(bundle.folder / bundle.loader), "--library-path", str(bundle.folder), str(bundle.folder / program)]
    try:
        done = subprocess.run(
            [*argv, str(work / "case" / COUNT_JOB)], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailure(
            f"counting '{case.name}' took longer than {TIMEOUT_S:g} s and was stopped; use a smaller model"
        ) from error
    return read_answer(done.returncode, done.stdout, done.stderr, model=case.name, format=case.format)


def _wrong(case: Case, outputs: Sequence[NDArray[Any]]) -> tuple[Code, ...]:
    """Whether the emulated run computed something else than this machine does."""
    real = [from_file(spec, output) for spec, output in zip(case.output_specs, outputs, strict=True)]
    parity = compare_outputs(case.output_specs, real, host_outputs(case))
    right = bool(parity) and all(is_right(each, case.precision) for each in parity)
    return () if right else (Code.OUTPUT_MISMATCH,)
