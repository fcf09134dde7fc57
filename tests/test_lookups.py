"""With the lookups of `lookups` the converters write the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
import edgefold
if sys.argv[1] == "once":
    from tests.lookups import look_up_once
    look_up_once()
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1)).eval()
images = torch.randn(4, 3, 8, 8)
for format in ("onnx", "tflite", "executorch"):
    for precision in ("fp32", "int8"):
        data = images if precision == "int8" else None
        out = sys.argv[2] + f"/{format}-{precision}"
        print(edgefold.export_model(
            net, images[:1], format=format, precision=precision, calibration=data, timing=False, out=out
        ).sha256)
"""


@pytest.mark.slow
def test_files_are_the_same_byte_by_byte(tmp_path: Path) -> None:
    found = []
    for name in ("once", "each time"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", CODE, name, str(tmp_path / name)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        found.append(result.stdout.split())
    assert len(found[0]) == 6
    assert found[0] == found[1]
