"""TFLite files also run under LiteRT's old name, tflite-runtime 2.14.0, which boards still have: an environment of its own,
numpy < 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.export.program import QuantizedProgram
from edgefold.quantize.graph import output_nodes
from edgefold.quantize.scheme import Q
from edgefold.runtime.protocol import WORKER, read_answer
from edgefold.runtime.session import execute, save_inputs
from edgefold.schemes import SCHEMES

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


# The worker on many files in one process: a line of JSON for each folder with a job.
MANY = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import worker
for name in sys.argv[2:]:
    folder = Path(name)
    try:
        answer = worker.work(json.loads((folder / "job.json").read_text()), folder)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(dict(answer, folder=folder.name)), flush=True)
"""
Io = Literal["float32", "int8", "uint8"]
Layout = Literal["nchw", "nhwc"]
# Every precision with float32 ends, those of integers with integer ends too; each choice of ends with INT8.
ENDS: list[tuple[Io, Layout, bool]] = [
    ("float32", "nchw", True),
    ("uint8", "nhwc", False),
    ("int8", "nchw", True),
    ("float32", "nhwc", False),
]
VARIANTS: list[tuple[Precision, Io, Layout, bool]] = [
    (precision, *ends)
    for precision, scheme in SCHEMES.items()
    if Format.TFLITE in scheme.formats
    for ends in ENDS[: 4 if precision is Precision.INT8 else 2 if scheme.integer_ends else 1]
]
# Largest difference of float outputs, as a share of their range. Old and new kernels round sums in another order; where outputs
# are on a grid, or come from one, a difference at a boundary is one step further on.
TOLERANCES = {
    Precision.FP32: 1e-5,
    Precision.FP16: 1e-5,
    Precision.INT8_WEIGHT_ONLY: 1e-5,
    Precision.INT16X8: 1e-4,
}
STEPS = 2


class Mixed(nn.Module):
    """Most of the ops that our files have, in few layers; gives an image and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + functional.relu6(self.depthwise(x)) * self.gate(x)
        x = torch.cat([self.grouped(functional.max_pool2d(x, 3, 1, 1)), functional.silu(self.point(x))], 1)
        return functional.interpolate(x, scale_factor=2), torch.softmax(self.head(x.mean((2, 3))), 1)


# Each precision, and each choice of ends; the slow ones are other pairs of the two.
FEW = [variant for variant in VARIANTS if variant[0] is Precision.INT8 or variant[1:] == ENDS[0]]
OTHERS = [variant for variant in VARIANTS if variant not in FEW]


@pytest.fixture(scope="module", params=[FEW, pytest.param(OTHERS, marks=pytest.mark.slow)])
def variants(request: pytest.FixtureRequest) -> list[tuple[Precision, Io, Layout, bool]]:
    found: list[tuple[Precision, Io, Layout, bool]] = request.param
    return found


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, variants: list[tuple[Precision, Io, Layout, bool]]
) -> list[tuple[Path, list[float]]]:
    """A folder for each variant, with the file, a job and its input; and the steps of the outputs' grids, if they have one."""
    base = tmp_path_factory.mktemp("variants")
    torch.manual_seed(0)
    net, images = Mixed().eval(), torch.randn(8, 3, 16, 16)
    folded = edgefold.fold(net, images[:1])
    quantized = {
        precision: edgefold.quantize_model(
            folded,
            images[:1],
            calibration=images if scheme.calibrated else None,
            scheme=precision,
            observer="minmax" if scheme.calibrated else "auto",
        )
        for precision, scheme in SCHEMES.items()
        if scheme.rounded and any(precision is variant[0] for variant in variants)
    }
    made = []
    for precision, io, layout, any_batch in variants:
        folder = base / f"{precision}-{io}-{layout}-{'any' if any_batch else 1}"
        is_float = precision not in quantized
        artifact = edgefold.export_model(
            folded if is_float else quantized[precision],
            images[:1] if is_float else None,
            precision=precision if is_float else None,
            format="tflite",
            io=io,
            layout=layout,
            dynamic_batch=any_batch,
            timing=False,
            out=folder / "net",
        )
        batch = images[:3] if any_batch else images[:1]
        value = (batch if layout == "nchw" else batch.permute(0, 2, 3, 1)).numpy()[None]
        spec = artifact.inputs[0]
        if spec.dtype != "float32":
            limits = np.iinfo(spec.dtype)
            value = np.clip(np.rint(value / spec.scale) + spec.zero_point, limits.min, limits.max).astype(spec.dtype)
        names = save_inputs(folder, [value])
        job = {"mode": "run", "format": "tflite", "model": artifact.path.name, "threads": 1, "inputs": names}
        (folder / "job.json").write_text(json.dumps(job))
        made.append((folder, [] if is_float else steps_of(quantized[precision])))
    return made


def steps_of(quantized: QuantizedProgram) -> list[float]:
    """The step of each output's grid; none where outputs are not quantized."""
    outputs = output_nodes(quantized.program.graph)
    return [node.meta[Q].scale for node in outputs if Q in node.meta and node.meta[Q].dtype is torch.int8]


def answers(python: Path | str, folders: list[Path]) -> dict[str, dict[str, Any]]:
    """The worker's answers under a Python, with the outputs themselves, by the folders' names."""
    argv = [str(python), "-I", "-c", MANY, str(WORKER.parent), *map(str, folders)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    found = {}
    for answer in map(json.loads, done.stdout.splitlines()):
        folder = next(each for each in folders if each.name == answer["folder"])
        found[folder.name] = dict(answer, values=[np.load(folder / name) for name in answer.get("outputs", [])])
    assert len(found) == len(folders), done.stderr
    return found


def test_every_kind_of_file_gives_the_same_in_the_old_runtime(
    old_python: Path, folders: list[tuple[Path, list[float]]], variants: list[tuple[Precision, Io, Layout, bool]]
) -> None:
    places = [folder for folder, _ in folders]
    ours, theirs = answers(sys.executable, places), answers(old_python, places)
    assert {name: answer["error"] for name, answer in (ours | theirs).items() if "error" in answer} == {}
    assert {answer["runtime"] for answer in theirs.values()} == {"tflite-runtime 2.14.0"}
    wrong = {}
    for (precision, *_), (folder, steps) in zip(variants, folders, strict=True):
        for index, (new, old) in enumerate(zip(ours[folder.name]["values"], theirs[folder.name]["values"], strict=True)):
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
            span = np.ptp(new.astype(np.float64))
            assert span > 0
            step = 1.0 if new.dtype != np.float32 else steps[index] if steps else span / 255
            allowed = TOLERANCES[precision] * span if precision in TOLERANCES else STEPS * step
            difference = np.abs(new.astype(np.float64) - old).max()
            if difference > allowed:
                wrong[folder.name, new.ndim] = (difference, allowed)
    assert wrong == {}


def test_a_linear_layer_with_activations_of_run_time_runs_in_the_old_runtime(old_python: Path, tmp_path: Path) -> None:
    """As FULLY_CONNECTED it would read no scale of the weights at all, and give the bias alone."""
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5)).eval(), torch.randn(1, 3, 4, 4)
    folder = tmp_path / "linear"
    artifact = edgefold.export_model(
        net, images, format="tflite", precision=Precision.INT8_DYNAMIC, timing=False, out=folder / "net"
    )
    names = save_inputs(folder, [images.numpy()[None]])
    job = {"mode": "run", "format": "tflite", "model": artifact.path.name, "threads": 1, "inputs": names}
    (folder / "job.json").write_text(json.dumps(job))
    with torch.no_grad():
        expected = net(images).numpy()
    for python in (old_python, sys.executable):
        (answer,) = answers(python, [folder]).values()
        assert np.abs(answer["values"][0].reshape(1, 5) - expected).max() < 0.03 * np.ptp(expected)
