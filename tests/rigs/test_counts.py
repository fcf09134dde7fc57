"""Instruction counts repeat, and show what a core can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefold.device_bench import InstructionCount, count_instructions
from edgefold.results import Code

pytestmark = pytest.mark.rig

# tiny: 3x3 convolutions 3 -> 8 -> 4 channels on 16x16 pixels
MACS = 16 * 16 * 9 * (3 * 8 + 8 * 4)


@pytest.fixture(scope="module")
def counts(native: Path, counting: None, tiny: Path) -> dict[tuple[str, str], InstructionCount]:
    """Counts of the tiny models by file and CPU."""
    names = ("tiny.tflite", "tiny-int8.tflite")
    return {(name, cpu): count_instructions(tiny / name, cpu) for name in names for cpu in ("cortex-a72", "cortex-a76")}


def test_a_count_is_marked_as_emulated_and_its_outputs_are_checked(counts: dict[tuple[str, str], InstructionCount]) -> None:
    assert {count.codes for count in counts.values()} == {(Code.EMULATED,)}


def test_int8_uses_dot_products_where_the_core_has_them(counts: dict[tuple[str, str], InstructionCount]) -> None:
    old, new = counts["tiny-int8.tflite", "cortex-a72"], counts["tiny-int8.tflite", "cortex-a76"]
    assert old.counts["dot"] == 0
    # One instruction makes sixteen products; padding of channels makes some more.
    assert MACS / 16 < new.counts["dot"] < 8 * MACS / 16
    assert new.instructions < 0.7 * old.instructions


def test_fp32_uses_fused_multiply_adds(counts: dict[tuple[str, str], InstructionCount]) -> None:
    assert MACS / 4 <= counts["tiny.tflite", "cortex-a76"].counts["fmla"] < 2 * MACS / 4


def test_counts_repeat_within_a_hundredth_of_a_percent(counts: dict[tuple[str, str], InstructionCount], tiny: Path) -> None:
    first = counts["tiny.tflite", "cortex-a76"].instructions
    again = [count_instructions(tiny / "tiny.tflite", "cortex-a76").instructions for _ in range(4)]
    assert max(abs(count - first) for count in again) <= 1e-4 * first
