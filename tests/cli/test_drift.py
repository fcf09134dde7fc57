"""`edgefold verify --drift` and `--agree`: real runtimes, value by value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefold.export.drift as drift_maps
from edgefold.quantize.drift import DriftReport

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
def bundle(cli: Cli, tmp_path: Path, quick: None, formats: list[str]) -> Path:
    """INT8 in the formats, made to agree."""
    (tmp_path / "net.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 3, 12, 12)).astype(np.float32))
    what = (*(word for name in formats for word in ("-f", name)), "-p", "int8", "--agree", "--observer", "minmax", "--no-explain")
    ended = cli("ship", f"{tmp_path}/net.py:Net", "--calibration", tmp_path / "x.npy", *what, "-o", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    return tmp_path / "out"


@pytest.mark.parametrize("formats", [["onnx"], pytest.param(["onnx", "executorch"], marks=pytest.mark.slow)], ids="-".join)
def test_runtimes_that_agree_are_bit_identical(
    cli: Cli, bundle: Path, formats: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = bundle.parent
    measure_drift = drift_maps.measure_drift
    measured: list[DriftReport] = []

    def measured_once(*args: Any, **kwargs: Any) -> DriftReport:
        """Both commands below show one and the same measurement."""
        if not measured:
            measured.append(measure_drift(*args, **kwargs))
        return measured[0]

    monkeypatch.setattr(drift_maps, "measure_drift", measured_once)
    ended = cli("verify", bundle, f"{work}/net.py:Net", "--calibration", work / "x.npy", "--drift", "--json")
    assert ended.code == 0, ended.stderr
    drift = ended.data["drift"]["int8"]
    assert drift["runtimes"] == ["torch", *formats]
    assert {"stem", "het", "head"} <= {row["name"] for row in drift["rows"]}
    pairs = [
        one for row in drift["rows"] for one in row["differences"] if [one["first"], one["second"]] == drift["runtimes"][-2:]
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
