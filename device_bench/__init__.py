"""Measures artifacts on devices: latency with its uncertainty, memory, and what a reader must know before trusting either.

`bench` gives a Measurement, `bench_devices` one for each of several devices, `compare` says whether one artifact is faster
than another on the same device, `check_baseline` whether it became slower than a stored result; `sustained` shows what heat
does. `count_instructions` gives a cost on ARM cores without one, `check_counts` says whether it grew. `devices` lists what can
be reached, `build_runner` builds what runs on devices without Python, `remember` and `history` keep results.
"""

from edgefold.device_bench.baseline import against_baseline, check_baseline
from edgefold.device_bench.benchmark import bench, bench_many
from edgefold.device_bench.comparison import compare, compare_measurements
from edgefold.device_bench.count_gate import CountComparison, against_counts, check_counts
from edgefold.device_bench.counts import InstructionCount, count_instructions
from edgefold.device_bench.diagnosis import SlownessReport, diagnose
from edgefold.device_bench.endurance import SustainedResult, sustained
from edgefold.device_bench.files import load_counts, load_measurements, save_measurements
from edgefold.device_bench.fleet import DeviceResult, bench_devices
from edgefold.device_bench.listing import DeviceStatus, devices
from edgefold.device_bench.native_build import build_runner
from edgefold.device_bench.opprofile import OpProfile, OpTime, profile
from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.roofline import Roofline
from edgefold.device_bench.store import HistoryEntry, history, recall, remember, remembered
from edgefold.device_bench.tools import bench_with_tool
from edgefold.device_bench.trend import by_series, series_name, sparkline, trend_svg

__all__ = [
    "BenchOptions",
    "CountComparison",
    "DeviceResult",
    "DeviceStatus",
    "HistoryEntry",
    "InstructionCount",
    "OpProfile",
    "OpTime",
    "Roofline",
    "SlownessReport",
    "SustainedResult",
    "against_baseline",
    "against_counts",
    "bench",
    "bench_devices",
    "bench_many",
    "bench_with_tool",
    "build_runner",
    "by_series",
    "check_baseline",
    "check_counts",
    "compare",
    "compare_measurements",
    "count_instructions",
    "devices",
    "diagnose",
    "history",
    "load_counts",
    "load_measurements",
    "profile",
    "recall",
    "remember",
    "remembered",
    "save_measurements",
    "series_name",
    "sparkline",
    "sustained",
    "trend_svg",
]
