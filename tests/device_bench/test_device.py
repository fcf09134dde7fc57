"""What devices say about themselves, in the words of real ones."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgefold.device_bench.device import (
    PROBE,
    parse_battery,
    parse_cores,
    parse_cpuinfo,
    parse_device,
    parse_thermal_zones,
    parse_thermalservice,
)
from edgefold.device_bench.runners import open_runner
from edgefold.results import CoreInfo

PHONE = """@uname
aarch64
Linux
5.10.198-android13
@exe
/system/bin/sh
@cpuinfo
processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp cpuid asimdrdm asimddp i8mm
CPU part\t: 0xd05
processor\t: 1
CPU part\t: 0xd41
processor\t: 2
CPU part\t: 0xd41
@memory
MemTotal:        7654321 kB
@load
1.50 1.20 0.90 2/1234 5678
@cores
1 schedutil 500000 1000000 2400000
0 - - - -
@thermal
battery 29100
cpu-0-0 41000
cpu-1-0 43500
modem 0
@model

@getprop
[ro.build.version.release]: [14]
[ro.product.manufacturer]: [Acme]
[ro.product.model]: [One]
[ro.soc.model]: [S5]
[ro.product.cpu.abi]: [arm64-v8a]
@battery
Current Battery Service state:
  level: 17
  temperature: 291
@thermalservice
IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=CPU0, mStatus=0}
Current temperatures from HAL:
\tTemperature{mValue=36.2, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=38.5, mType=0, mName=CPU1, mStatus=0}
\tTemperature{mValue=60.0, mType=3, mName=SKIN, mStatus=0}
Current cooling devices from HAL:
@end
"""


def test_a_phone() -> None:
    info = parse_device(PHONE, "adb://1")
    assert (info.machine, info.system, info.model) == ("aarch64", "Android", "Acme One")
    assert (info.soc, info.os_version) == ("S5", "Android 14")
    assert info.abi == "arm64-v8a"
    assert info.cpu == "1x Cortex-A55 + 2x Cortex-A78"
    assert info.features == ("asimd", "asimddp", "asimdhp", "i8mm")
    assert info.cores == (CoreInfo(0), CoreInfo(1, "schedutil", 500_000, 1_000_000, 2_400_000))
    assert (info.temperature_c, info.thermal_status) == (38.5, 2)
    assert (info.battery_percent, info.load_1min) == (17, 1.5)
    assert info.memory_bytes == 7654321 * 1024
    assert not info.emulated


def test_emulators_are_recognised() -> None:
    user_mode = PHONE.replace("/system/bin/sh", "/usr/bin/qemu-aarch64-static")
    assert parse_device(user_mode, "x").emulated
    whole = PHONE.replace("[ro.soc.model]: [S5]", "[ro.kernel.qemu]: [1]")
    assert parse_device(whole, "x").emulated


def test_a_device_that_says_nothing() -> None:
    info = parse_device("", "ssh://board")
    assert (info.machine, info.cores, info.temperature_c, info.memory_bytes, info.load_1min) == ("", (), None, None, None)


@pytest.mark.parametrize(
    ("machine", "bits", "abi"),
    [
        ("aarch64", "64", "arm64-v8a"),
        ("aarch64", "32", "armeabi-v7a"),  # a kernel of 64 bits under programs of 32
        ("aarch64", "", "arm64-v8a"),
        ("armv7l", "", "armeabi-v7a"),
        ("x86_64", "64", "x86_64"),
        ("mips64", "64", "mips64"),
    ],
)
def test_what_programs_are_built_for(machine: str, bits: str, abi: str) -> None:
    assert parse_device(f"@uname\n{machine}\nLinux\n6.1\n@bits\n{bits}\n@end\n", "x").abi == abi


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu-thermal 51200\nbattery 29000", 51.2),
        ("x86_pkg_temp 40000\nacpitz 27800", 40.0),
        ("battery 29000\nskin 31000", 31.0),
        ("cpu-thermal -40000\ncpu-off 0\n", None),
        ("", None),
    ],
)
def test_the_hottest_cpu_zone_counts(text: str, expected: float | None) -> None:
    assert parse_thermal_zones(text) == expected


def test_parts() -> None:
    assert parse_battery("level: 5") == (5, None)
    assert parse_battery("Can't find service: battery") == (None, None)
    assert parse_thermalservice("") == (None, None)
    assert parse_cores("0 performance 1 2\nnonsense\n") == ()
    assert parse_cpuinfo("model name\t: AMD EPYC\nflags\t\t: fpu avx2 fma zzz") == ("AMD EPYC", ("avx2", "fma"))


def test_the_probe_is_plain_shell() -> None:
    for shell in ("dash", "bash"):
        if shutil.which(shell):
            assert subprocess.run([shell, "-n", "-c", PROBE], capture_output=True).stderr == b""


def test_this_machine() -> None:
    with open_runner("host") as runner:
        info = runner.info()
    assert info.machine == subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip()
    assert info.cores
    assert info.memory_bytes
    assert info.memory_bytes > 2**20
