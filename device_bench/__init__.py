"""Measures artifacts on devices: latency with its uncertainty, memory, and what a reader must know before trusting either.

`bench` gives a Measurement, `compare` says whether one artifact is faster than another on the same device.
"""

from edgefold.device_bench.bench import bench, bench_many
from edgefold.device_bench.compare import compare, compare_measurements
from edgefold.device_bench.devices import DeviceStatus, devices
from edgefold.device_bench.native_build import build_runner
from edgefold.device_bench.options import BenchOptions

__all__ = ["BenchOptions", "DeviceStatus", "bench", "bench_many", "build_runner", "compare", "compare_measurements", "devices"]
