"""A device's description and state, from what its own shell says.

One POSIX script asks for everything in one go, so that a slow connection is used once; it runs as it is on the host, over ssh
and over adb. Its answer is sections of raw text, ``@name`` before each; the functions below read them. What a device does not
tell is ``None``.
"""

from __future__ import annotations

import re
from dataclasses import replace

from edgefold.results import CoreInfo, DeviceInfo

# readlink of the shell's own program: under user-mode emulation it is the emulator, whatever uname says.
PROBE = r"""
echo @uname; uname -m; uname -s; uname -r
echo @exe; readlink /proc/$$/exe
echo @cpuinfo; cat /proc/cpuinfo
echo @memory; head -n 1 /proc/meminfo
echo @load; cat /proc/loadavg
echo @cores; for c in /sys/devices/system/cpu/cpu[0-9]*; do
f=$c/cpufreq; set -- "${c##*/cpu}"
for k in governor min_freq cur_freq max_freq; do set -- "$@" "$(cat $f/scaling_$k || echo -)"; done; echo "$@"; done
echo @possible; cat /sys/devices/system/cpu/possible
echo @thermal; for z in /sys/class/thermal/thermal_zone*; do echo "$(cat $z/type) $(cat $z/temp)"; done
echo @os; cat /etc/os-release
echo @model; cat /proc/device-tree/model; echo
echo @product; cat /sys/class/dmi/id/product_name
if [ -d /system/bin ] && command -v getprop; then
echo @getprop; getprop
echo @battery; dumpsys battery
echo @thermalservice; dumpsys thermalservice
fi
echo @bits; getconf LONG_BIT
echo @end
"""

FEATURES = (
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
    "sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8",
)  # fmt: skip
ARM_CORES = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4",
}  # fmt: skip
# Android's names, by the machine and the bits of its programs: the kernel may be of 64 bits where they are not.
ABIS = {
    ("aarch64", 64): "arm64-v8a", ("arm64", 64): "arm64-v8a", ("aarch64", 32): "armeabi-v7a", ("armv7l", 32): "armeabi-v7a",
    ("armv8l", 32): "armeabi-v7a", ("x86_64", 64): "x86_64", ("x86_64", 32): "x86", ("i686", 32): "x86",
    ("riscv64", 64): "riscv64",
}  # fmt: skip
# Zones whose name says that they watch the CPU; other zones (battery, charger, modem) run at temperatures of their own.
CPU_ZONE = re.compile(r"cpu|soc|x86_pkg|coretemp|big|little|cluster|acpitz", re.IGNORECASE)


def sections(text: str) -> dict[str, str]:
    """The probe's answer by section; empty where one is missing."""
    parts = re.split(r"^@(\w+)\r?$", text, flags=re.MULTILINE)
    return {parts[i]: parts[i + 1].strip("\r\n\0 ") for i in range(1, len(parts) - 1, 2)}


def parse_device(text: str, url: str) -> DeviceInfo:
    """The device as its answer to `PROBE` shows it."""
    part = sections(text)
    lines = [*part.get("uname", "").splitlines(), "", "", ""]
    machine, system, kernel = (line.strip() for line in lines[:3])
    cpu, features = parse_cpuinfo(part.get("cpuinfo", ""))
    info = DeviceInfo(
        url=url,
        machine=machine,
        system=system,
        cpu=cpu or machine,
        features=features,
        cores=parse_cores(part.get("cores", "")),
        memory_bytes=_memory(part.get("memory", "")),
        model=part.get("model", "").strip("\0\n ") or part.get("product") or None,
        os_version=_field(part.get("os", ""), r'^PRETTY_NAME="?(.*?)"?$') or kernel or None,
        temperature_c=parse_thermal_zones(part.get("thermal", "")),
        load_1min=_number(part.get("load", "").split(" ")[0]),
        emulated="qemu" in part.get("exe", ""),
        abi=abi_of(machine, part.get("bits", "")),
    )
    return _with_android(info, part) if part.get("getprop") else info


def _with_android(info: DeviceInfo, part: dict[str, str]) -> DeviceInfo:
    """The same with what only Android knows."""
    props = parse_getprop(part["getprop"])
    battery, battery_c = parse_battery(part.get("battery", ""))
    status, cpu_c = parse_thermalservice(part.get("thermalservice", ""))
    maker, model = props.get("ro.product.manufacturer", ""), props.get("ro.product.model", "")
    virtual = props.get("ro.kernel.qemu") == "1" or props.get("ro.boot.qemu") == "1" or props.get("ro.hardware") == "ranchu"
    release = props.get("ro.build.version.release")
    return replace(
        info,
        system="Android",
        model=f"{maker} {model}".strip() or info.model,
        soc=props.get("ro.soc.model") or props.get("ro.board.platform") or None,
        os_version=f"Android {release}" if release else info.os_version,
        temperature_c=next((value for value in (cpu_c, info.temperature_c, battery_c) if value is not None), None),
        thermal_status=status,
        battery_percent=battery,
        emulated=info.emulated or virtual,
        abi=props.get("ro.product.cpu.abi") or info.abi,
    )


def abi_of(machine: str, bits: str) -> str | None:
    """What a machine's programs are built for, by Android's name; ``bits`` is 32, 64, or empty where the device does not tell."""
    known = int(bits) if bits.isdecimal() else 64 if "64" in machine else 32
    return ABIS.get((machine, known), machine or None)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The name of the CPU (each kind of core once, ``4x Cortex-A55 + 4x Cortex-A76``) and the features that matter for
    inference."""
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]+)", text, re.MULTILINE)
    if parts:
        kinds = {part: parts.count(part) for part in parts}
        name = " + ".join(f"{count}x {ARM_CORES.get(part, 'ARM ' + part)}" for part, count in kinds.items())
    else:
        name = _field(text, r"^model name\s*:\s*(.*)$") or _field(text, r"^Hardware\s*:\s*(.*)$") or ""
    found = set((_field(text, r"^(?:Features|flags)\s*:\s*(.*)$") or "").split())
    return name, tuple(feature for feature in FEATURES if feature in found)


def parse_cores(text: str) -> tuple[CoreInfo, ...]:
    """Lines of ``index governor min current max`` in kHz; ``-`` where the device does not tell."""
    cores = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdecimal():
            low, now, high = (int(word) if word.isdecimal() else None for word in words[2:])
            cores.append(CoreInfo(int(words[0]), None if words[1] == "-" else words[1], low, now, high))
    return tuple(sorted(cores, key=lambda core: core.index))


def parse_thermal_zones(text: str) -> float | None:
    """The hottest CPU zone in degrees Celsius (of all zones where none names the CPU); lines of ``type millidegrees``."""
    zones = re.findall(r"^(\S.*?) (-?\d+)\s*$", text, re.MULTILINE)
    # Sensors that are off report 0, minus 40 or nonsense.
    readings = [(name, int(value) / 1000) for name, value in zones if 0 < int(value) < 150_000]
    cpu = [value for name, value in readings if CPU_ZONE.search(name)]
    return max(cpu or [value for _, value in readings], default=None)


def parse_getprop(text: str) -> dict[str, str]:
    """Android's properties: lines of ``[key]: [value]``."""
    return dict(re.findall(r"^\[(.*?)\]: \[(.*?)\]\r?$", text, re.MULTILINE))


def parse_battery(text: str) -> tuple[int | None, float | None]:
    """Charge in percent and temperature in degrees Celsius, of ``dumpsys battery``."""
    level, tenths = _field(text, r"^\s*level: (\d+)"), _field(text, r"^\s*temperature: (-?\d+)")
    return (int(level) if level else None), (int(tenths) / 10 if tenths else None)


def parse_thermalservice(text: str) -> tuple[int | None, float | None]:
    """Thermal status (0 none to 6 shutdown) and the hottest CPU in degrees Celsius, of ``dumpsys thermalservice``."""
    status = _field(text, r"^\s*Thermal Status: (\d+)")
    # mType 0 is CPU; the section of the HAL is current, the cached one may be old.
    current = text.split("Current temperatures from HAL:")[-1].split("Current cooling devices")[0]
    readings = [float(value) for value in re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=0,", current)]
    return (int(status) if status else None), max(readings, default=None)


def _memory(text: str) -> int | None:
    kilobytes = _field(text, r"^MemTotal:\s*(\d+) kB")
    return int(kilobytes) * 1024 if kilobytes else None


def _field(text: str, pattern: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1).strip() if match else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
