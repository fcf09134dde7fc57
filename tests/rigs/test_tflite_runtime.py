"""TFLite files also run under LiteRT's old name, tflite-runtime 2.14.0, which boards still have: an environment of its own,
numpy < 2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgefold.artifact import Format
from edgefold.runtime.protocol import WORKER, read_answer
from edgefold.runtime.session import execute, save_inputs

pytestmark = pytest.mark.rig


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny-int8.tflite"])
@pytest.mark.parametrize("mode", ["run", "bench", "memory"])
def test_the_worker_answers_with_the_old_runtime(old_python: Path, tiny: Path, tmp_path: Path, name: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (3, 1, 16, 16, 3)).astype(np.float32)
    stacked = np.rint(values * 127).astype(np.int8) if "int8" in name else values
    names = save_inputs(tmp_path, [stacked])
    budget = {"min_samples": 3, "min_time_s": 0.0, "warmup_max_s": 1.0, "max_s": 5.0}
    job = {"mode": mode, "format": "tflite", "model": str(tiny / name), "threads": 1, "inputs": names, **budget}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run([str(old_python), "-I", str(WORKER), str(tmp_path / "job.json")], capture_output=True, timeout=120)
    answer = read_answer(done.returncode, done.stdout, done.stderr, model=name, format=Format.TFLITE)
    assert answer["runtime"] == "tflite-runtime 2.14.0"
    output = np.load(tmp_path / answer["outputs"][0])
    (expected,) = execute(tiny / name, [stacked])
    expected = expected[: len(output)]
    if "int8" in name:
        assert np.abs(output.astype(int) - expected.astype(int)).max() <= 1
    else:
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_16_bit_activations_run_in_the_old_runtime(old_python: Path, tmp_path: Path) -> None:
    import torch
    from torch import nn

    import edgefold

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU6(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    images = torch.randn(4, 3, 16, 16)
    artifact = edgefold.export_model(
        net, images[:1], format="tflite", precision="int16x8", calibration=images, timing=False, out=tmp_path / "net"
    )
    (expected,) = edgefold.run(artifact, images.numpy())
    names = save_inputs(tmp_path, [images.numpy()[:, None]])
    job = {"mode": "run", "format": "tflite", "model": str(artifact.path), "threads": 1, "inputs": names}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run([str(old_python), "-I", str(WORKER), str(tmp_path / "job.json")], capture_output=True, timeout=120)
    answer = read_answer(done.returncode, done.stdout, done.stderr, model=artifact.path.name, format=Format.TFLITE)
    output = np.load(tmp_path / answer["outputs"][0]).reshape(expected.shape)
    np.testing.assert_allclose(output, expected, atol=1e-3 * float(np.abs(expected).max()))
