"""`--dynamic-batch` from the command line to the answer of `inspect` and `verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_export_inspect_verify(cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "any.onnx"
    made = cli("export", "hetnet-fmnist", "-f", "onnx", "--dynamic-batch", "--no-timing", "-o", out)
    assert made.code == 0, made.stderr
    assert "input x: any×1×28×28" in made.stdout
    inside = cli("inspect", out, "--json").data
    assert inside["inputs"][0]["shape"] == [-1, 1, 28, 28]
    report = cli("verify", out, "hetnet-fmnist", "--json").data
    assert report["passed"]
    assert report["batches"] == [1, 3]
