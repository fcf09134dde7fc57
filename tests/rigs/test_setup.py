"""All rigs together are set up in three minutes, downloads aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.rig

LIMIT_S = 180


def test_the_rigs_are_set_up_in_three_minutes(board: Path, phone: str, native: Path, old_python: Path, rig: Path) -> None:
    steps = json.loads((rig / "setup.json").read_text())
    assert {name.partition(",")[0] for name in steps} >= {"board", "phone"}
    # A build may have waited for packages, so that its clock tells nothing; a start waits for nothing but the rig itself.
    seconds = {name: taken["cpu_s" if name.endswith(", built") else "clock_s"] for name, taken in steps.items()}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= LIMIT_S, seconds
