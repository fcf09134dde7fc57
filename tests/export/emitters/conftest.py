"""Small networks, a program of them in any precision, and each format run in its real runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgefold.artifact import Artifact, Format, Precision
from edgefold.export.capture import capture
from edgefold.export.emitters import EmitOptions, get_emitter
from edgefold.export.plan import LoweringPlan
from edgefold.export.program import LoweredProgram, Program
from edgefold.models.blocks import SqueezeExcite
from edgefold.models.nets.hetnet import hetnet
from edgefold.pipeline import fold
from edgefold.quantize.calibrate import attach, calibrate

DEFAULT_OPTIONS = EmitOptions()
Array = NDArray[np.generic]


class Residual(nn.Module):
    """The ops of the built-in network: conv, group conv, 1x1 conv, adds, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.group = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.group(x) + self.point(x) + x)
        x = torch.relu(self.down(x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Mobile(nn.Module):
    """Inverted residual with ReLU6 and hard-swish, max and average pooling, concat, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(8, 24, 1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        x = nn.functional.hardswish(self.stem(x))
        y = nn.functional.relu6(self.depth(nn.functional.relu6(self.expand(x))))
        y = x + self.project(y)
        y = torch.cat([nn.functional.max_pool2d(y, 2), nn.functional.avg_pool2d(y, 2)], dim=1)
        y = self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))
        return y


class Gated(nn.Module):
    """What bakes a batch size into a graph: a gate, a shuffle of channels, adaptive pooling and flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.gate = SqueezeExcite(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.depth(self.gate(torch.relu(self.stem(x)))))
        first, second = x.chunk(2, 1)
        batch, channels, height, width = x.shape
        x = torch.cat([second, first], 1).reshape(batch, 4, 4, height, width).transpose(1, 2)
        x = x.reshape(batch, channels, height, width)
        y: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))
        return y


class Segment(nn.Module):
    """Two inputs and two image outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(2, 8, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.left(image)) + torch.relu(self.right(depth))
        return {"mask": y, "edges": nn.functional.max_pool2d(y, 2)}


class Pools(nn.Module):
    """Adaptive average pooling to 1x1, 2x2, 7x7, and to a size that does not divide the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([nn.functional.adaptive_avg_pool2d(x, size).flatten(1) for size in ((1, 1), (2, 2), (7, 7), (3, 4))], 1)


class Heads(nn.Module):
    """Two heads on two scales, joined over all places, as detectors have them: scores (B, 80, 3), boxes (B, 80, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU6())
        self.scores, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        fine = self.body(image)
        scales = (fine, self.down(fine))
        scores = torch.cat([self.scores(x).permute(0, 2, 3, 1).flatten(1, 2) for x in scales], 1)
        boxes = torch.cat([self.boxes(x).permute(0, 2, 3, 1).reshape(len(image), -1, 4) for x in scales], 1)
        return {"scores": scores.sigmoid(), "boxes": boxes}


_NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((1, 3, 16, 16),)),
    "mobile": (Mobile, ((1, 3, 16, 16),)),
    "gated": (Gated, ((1, 3, 16, 16),)),
    "pools": (Pools, ((1, 3, 14, 14),)),
    "heads": (Heads, ((1, 3, 16, 16),)),
    "hetnet": (partial(hetnet, width=8, blocks=(1, 1, 1)), ((2, 1, 28, 28),)),
    "segment": (Segment, ((1, 3, 8, 12), (1, 2, 8, 12))),
}


def _make_net(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A seeded network in eval mode and its example inputs."""
    kind, shapes = _NETS[name]
    torch.manual_seed(seed)
    return kind().eval(), tuple(torch.randn(shape) for shape in shapes)


@pytest.fixture(scope="session")
def program_of() -> Callable[[str], Program]:
    """The captured float program of a network of `_NETS`, made once."""
    made: dict[str, Program] = {}

    def get(name: str) -> Program:
        if name not in made:
            module, inputs = _make_net(name)
            # Masks and BatchNorms are gone before a network is quantized.
            made[name] = fold(module, inputs).program if name == "hetnet" else capture(module, inputs)
        return made[name]

    return get


@pytest.fixture(scope="session")
def quantized_of(program_of: Callable[[str], Program]) -> Callable[[str], Program]:
    """The captured program of a network of `_NETS` with scales, made once."""
    made: dict[str, Program] = {}

    def get(name: str) -> Program:
        if name not in made:
            made[name] = _quantize(program_of(name))
        return made[name]

    return get


def _quantize(program: Program) -> Program:
    """The program with scales from four random minibatches."""
    torch.manual_seed(5)
    batches = [tuple(torch.randn_like(tensor) for tensor in program.example_inputs) for _ in range(4)]
    graph = attach(program.graph, calibrate(program.graph, batches))
    return Program(graph, program.example_inputs, program.input_names, program.output_names)


def _emit(
    program: Program, format: Format, out: Path, precision: Precision = Precision.FP32, options: EmitOptions | None = None
) -> Artifact:
    """Write a program as it is, without any lowering."""
    plan = LoweringPlan(format, precision, "host", (), 0)
    return get_emitter(format).emit(LoweredProgram(program, format, precision, plan), options or EmitOptions(), out)


def _run(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run a file in its runtime, in this process; inputs and outputs by name, as the file has them."""
    return {".onnx": _run_onnx, ".tflite": _run_tflite, ".pte": _run_executorch}[path.suffix](path, inputs)


def _run_onnx(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


def _run_tflite(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    from ai_edge_litert.interpreter import Interpreter

    results: dict[str, Array] = Interpreter(str(path), num_threads=1).get_signature_runner()(**inputs)
    return results


def _run_executorch(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imports of the package itself
        from executorch.runtime import Runtime
    from edgefold.export.emitters.metadata import decode

    program = Runtime.get().load_program(path)
    described = program.load_method("edgefold_metadata")
    method = program.load_method("forward")
    assert described is not None
    assert method is not None
    _, specs, outputs = decode(str(described.execute([])[0]))
    values = method.execute([torch.from_numpy(inputs[spec.name]) for spec in specs])
    return {spec.name: value.numpy() for spec, value in zip(outputs, values, strict=True)}


@pytest.fixture(scope="session")
def make_net() -> Callable[..., tuple[nn.Module, tuple[Tensor, ...]]]:
    """See `_make_net`."""
    return _make_net


@pytest.fixture(scope="session")
def emit() -> Callable[..., Artifact]:
    """See `_emit`."""
    return _emit


@pytest.fixture(scope="session")
def run() -> Callable[..., dict[str, Array]]:
    """See `_run`."""
    return _run


@pytest.fixture(scope="session")
def emitted(
    program_of: Callable[[str], Program], quantized_of: Callable[[str], Program], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    """A file of a network of `_NETS` by name, format, precision and options, written once; tests must not change it."""
    folder = tmp_path_factory.mktemp("emitted")
    made: dict[tuple[object, ...], Artifact] = {}

    def get(name: str, format: Format, precision: Precision = Precision.FP32, options: EmitOptions = DEFAULT_OPTIONS) -> Artifact:
        key = (name, format, precision, options)
        if key not in made:
            program = program_of(name) if precision in (Precision.FP32, Precision.FP16) else quantized_of(name)
            ends = "" if options == DEFAULT_OPTIONS else f"-{options.io}-{options.layout}-{options.dynamic_batch}"
            made[key] = _emit(program, format, folder / f"{name}-{precision}{ends}{format.suffix}", precision, options)
        return made[key]

    return get
