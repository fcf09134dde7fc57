"""What the counter writes and what is made of it; the counter itself runs with the rigs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefold.device_bench.counts import count_instructions, parse_marks, per_run
from edgefold.errors import RuntimeFailure, UsageError

TEXT = """mark 0 insns=100 dot=1
mark 1 insns=180 dot=5
mark 2 insns=200 dot=5
noise
mark 3 insns=260 dot=8
end 0 insns=300 dot=8
"""


def test_a_run_is_what_lies_between_its_markers() -> None:
    assert per_run(parse_marks(TEXT)) == [{"insns": 80, "dot": 4}, {"insns": 60, "dot": 3}]


@pytest.mark.parametrize("text", ["", "mark 0 insns=1\nmark 1 insns=2\n", TEXT.replace("mark 2", "mark 7")])
def test_missing_markers_are_an_error(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="is it another version of QEMU"):
        per_run(parse_marks(text))


def test_what_is_missing_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_RUNNER", str(tmp_path))
    with pytest.raises(UsageError, match=r"unknown CPU 'cortex-a75'; did you mean 'cortex-a7[26]'"):
        count_instructions(tiny / "tiny.onnx", "cortex-a75")
    with pytest.raises(UsageError, match="counting needs the native runner, which was not built"):
        count_instructions(tiny / "tiny.onnx")
