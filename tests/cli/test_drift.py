"""`edgefold verify --drift` and `--agree`: real runtimes, value by value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]

MODEL = """
import torch
from torch import nn

from edgefold.models.blocks import HetConv2d


class Net(nn.Module):
    input_size = (3, 12, 12)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.het = HetConv2d(16, 16, 3, p=4, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.het(x)) + x
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture
def bundle(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONNX and ExecuTorch, INT8, made to agree."""
    import edgefold.device_bench as device_bench

    short = partial(device_bench.BenchOptions, processes=1, min_samples=2, min_time_s=0.01)
    monkeypatch.setattr(device_bench, "BenchOptions", lambda **options: short(**{**options, "max_secs": 1.0}))
    (tmp_path / "net.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 3, 12, 12)).astype(np.float32))
    what = ("-f", "onnx", "-f", "executorch", "-p", "int8", "--agree", "--observer", "minmax", "--no-explain")
    ended = cli("ship", f"{tmp_path}/net.py:Net", "--calibration", tmp_path / "x.npy", *what, "-o", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    return tmp_path / "out"


def test_runtimes_that_agree_are_bit_identical(cli: Cli, bundle: Path) -> None:
    work = bundle.parent
    ended = cli("verify", bundle, f"{work}/net.py:Net", "--calibration", work / "x.npy", "--drift", "--json")
    assert ended.code == 0, ended.stderr
    drift = ended.data["drift"]["int8"]
    assert drift["runtimes"] == ["torch", "onnx", "executorch"]
    assert {"stem", "het", "head"} <= {row["name"] for row in drift["rows"]}
    pairs = [
        one for row in drift["rows"] for one in row["differences"] if (one["first"], one["second"]) == ("onnx", "executorch")
    ]
    assert len(pairs) == len(drift["rows"]) >= 5
    assert [one["max_steps"] for one in pairs] == [0] * len(pairs)

    table = cli("verify", bundle, f"{work}/net.py:Net", "--calibration", work / "x.npy", "--drift")
    assert f"of {len(pairs)} quantized values {len(pairs)} bit-identical" in table.stdout


def test_drift_of_float_files_is_refused(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    ended = cli("verify", tiny / "tiny.onnx", f"{tmp_path}/net.py:Net", "--drift")
    assert ended.code == 2
    assert "--drift compares integer artifacts, found only fp32" in ended.stderr
