"""What a CPU's instructions mean for INT8."""

from __future__ import annotations


def int8_outlook(machine: str, features: frozenset[str], *, integer: bool = True) -> tuple[bool, str]:
    """Whether a CPU has instructions made for 8-bit products, and what that means for INT8 artifacts.

    Args:
        machine: as ``uname -m`` says.
        features: of `edgefold.results.DeviceInfo`.
        integer: whether the scheme multiplies integers; with weights alone in integers it does not.
    """
    if not integer:
        return False, "weights are widened to float before they are multiplied: no 8-bit instruction of any CPU is used"
    if machine in ("aarch64", "arm64"):
        if "i8mm" in features:
            return True, "i8mm: 8-bit matrix products in hardware, the fastest that ARM cores have"
        if "asimddp" in features:
            return True, "dotprod: four 8-bit products an instruction and lane; INT8 gains where products take the time"
        return False, "neither dotprod nor i8mm: INT8 saves memory, but expect little speed over fp32"
    vnni = sorted(features & {"avx512_vnni", "avx_vnni", "amx_int8"})
    if vnni:
        return True, f"{', '.join(vnni)}: 8-bit dot products in hardware; INT8 gains where products take the time"
    if "avx2" in features:
        return False, "AVX2 without VNNI: 8-bit products take three instructions; expect a small gain over fp32"
    return False, f"no known 8-bit instructions on this {machine} CPU: INT8 may be slower than fp32"
