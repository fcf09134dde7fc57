"""The roofline of a device: what it can compute and move at best, and which of the two holds an op back.

Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", 2009. An op with ``macs``
multiply-accumulates that moves ``moved_bytes`` takes at least max(2 macs / operations_per_s, moved_bytes / bytes_per_s). Both
limits are measured on the device itself with the number of threads of the run: a float32 matrix product and a copy that no cache
holds. Integer kernels can compute more than the first says, so what is called memory-bound here is so in integers all the more.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgefold.artifact import Format
from edgefold.device_bench.cases import GRACE_S
from edgefold.device_bench.launch import Launcher
from edgefold.device_bench.method import START_S
from edgefold.device_bench.opprofile import OpTime
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.base import Runner
from edgefold.errors import DeviceError
from edgefold.runtime.protocol import read_answer

JOB = "roofline.json"


@dataclass(frozen=True, slots=True)
class Roofline:
    """The limits of a device; an operation is half a multiply-accumulate."""

    operations_per_s: float
    bytes_per_s: float
    threads: int

    @property
    def ridge(self) -> float:
        """Operations a byte below which the memory is the limit."""
        return self.operations_per_s / self.bytes_per_s

    def least_ns(self, op: OpTime) -> float:
        """What an op takes at least; 0 where its work is not known."""
        return 1e9 * max(2 * op.macs / self.operations_per_s, op.moved_bytes / self.bytes_per_s)

    def reached(self, op: OpTime) -> float:
        """How near an op comes to its limit: 1 is as fast as the device can. More than 1: caches held the data."""
        return self.least_ns(op) / max(1, op.ns)

    def memory_bound(self, op: OpTime) -> bool:
        """Whether the memory, not the arithmetic, is the limit of an op; ``False`` where its work is not known."""
        return op.moved_bytes > 0 and 2 * op.macs < self.ridge * op.moved_bytes


def measure_roofline(runner: Runner, launcher: Launcher, options: BenchOptions, form: Format) -> Roofline:
    """Measures the limits of an open device; takes about two seconds.

    Raises:
        DeviceError: the device cannot be reached any more, or told nonsense.
        RuntimeFailure: its worker failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        folder = Path(temporary)
        job = {"mode": "roofline", "threads": options.threads, "cores": options.core_list(), "limit_s": GRACE_S, **launcher.job()}
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        for extra in launcher.files():
            (folder / extra.name).symlink_to(extra)
        remote = runner.push(folder)
    try:
        done = runner.run(launcher.argv(remote, JOB), timeout_s=GRACE_S + START_S)
        answer = read_answer(done.returncode, done.stdout, done.stderr, model="roofline", format=form)
        found = Roofline(float(answer["operations_per_s"]), float(answer["bytes_per_s"]), options.threads)
    finally:
        runner.remove(remote)
    if not (found.operations_per_s > 0 and found.bytes_per_s > 0):
        raise DeviceError(f"device '{runner.url}' told {found.operations_per_s} operations a second; measure it again")
    return found
