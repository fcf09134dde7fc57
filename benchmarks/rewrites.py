"""What single rewrites of a graph are worth: files with and without each, in turns.

Of every case two files are exported with ``timing=False``, one of them with the rewrite replaced by one that does nothing, and
run against each other in one process (one thread, turns A B B A, see `edgefold.device_bench.race`). A ratio is with over without,
with its 95 % interval; below 1 the rewrite pays. The largest difference of the two outputs is given in units of the range of
the output: rewrites of integers may round a tie to the other side.

    python benchmarks/rewrites.py [--cores 1] [--cases NAME ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from block_nets import make_network
from record import write_result
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Artifact, Format, Precision
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import open_runner
from edgefold.export.passes.infra import GraphPass
from edgefold.runtime import run

NAME: Final = "rewrites"
CALIBRATED: Final = 16
_EMITTERS: Final = "edgefold.export.emitters"
_NOTHING: Final[GraphPass[Any]] = GraphPass("nothing", lambda model: (model, False))


def _never(*_: Any) -> bool:
    return False


def pooled(kernel: int, stride: int, padding: int = 0) -> nn.Module:
    """An average pooling between two 1x1 convolutions of 64 channels."""
    return nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.AvgPool2d(kernel, stride, padding), nn.Conv2d(64, 64, 1))


def multiplied(kernel: int, stride: int, count: int) -> nn.Module:
    """A depthwise convolution of several outputs a channel between two 1x1 convolutions of 64 and ``count`` times 64 channels."""
    wide = 64 * count
    down = nn.Conv2d(64, wide, kernel, stride, kernel // 2, groups=64)
    return nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), down, nn.ReLU(), nn.Conv2d(wide, wide, 1))


class SmallBranches(nn.Module):
    """A stem and two residual blocks of 32 channels, whose branches have tiny weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(32, 32, 3, 1, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(32, 32, 3, 1, 1) for _ in range(2)])
        with torch.no_grad():
            for value in self.blocks.parameters():
                value.mul_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32, height, width) to the same shape."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


def hard_swished() -> nn.Module:
    """Two 3x3 convolutions of 32 channels with a hard-swish between them."""
    return nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.Hardswish(), nn.Conv2d(32, 32, 3, 1, 1))


@dataclass(frozen=True, slots=True)
class Case:
    """A network with seeded weights, the shape of its input, the files that are compared, and the rewrite: where its name is
    bound, and what does nothing in its place."""

    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    files: Sequence[tuple[Format, Precision]]
    rewrite: str
    nothing: Any = _NOTHING


_POOLS: Final = f"{_EMITTERS}.prepare.INTEGER_POOLS"
_INT8: Final = tuple((format, Precision.INT8) for format in Format)
_FLOATS_TOO: Final = (*((format, Precision.FP32) for format in Format), *_INT8)
_MULTIPLIED: Final = "edgefold.export.lower.multiplied.split_multiplied"
_BOTH: Final = _INT8[:2]  # without the rewrite ExecuTorch refuses a file of integers that pools with padding
CASES: Final[dict[str, Case]] = {
    "average pooling 3x3, stride 1, padding 1": Case(lambda: pooled(3, 1, 1), (1, 64, 28, 28), _BOTH, _POOLS),
    "average pooling 3x3, stride 2, padding 1": Case(lambda: pooled(3, 2, 1), (1, 64, 28, 28), _BOTH, _POOLS),
    "average pooling 2x2": Case(lambda: pooled(2, 2), (1, 64, 28, 28), _INT8, _POOLS),
    "average pooling 3x3 that counts its padding, in floats": Case(
        lambda: pooled(3, 1, 1), (1, 64, 28, 28), ((Format.EXECUTORCH, Precision.FP32),), f"{_EMITTERS}.prepare.COUNTED_PADDING"
    ),
    "channels of a float image, LiteRT": Case(
        lambda: nn.Conv2d(3, 16, 3, 2, 1),
        (1, 3, 160, 160),
        ((Format.TFLITE, Precision.INT8),),
        f"{_EMITTERS}.tflite.FLOAT_TRANSPOSES",
    ),
    "channels of a float image, ExecuTorch": Case(
        lambda: nn.Conv2d(3, 16, 3, 2, 1),
        (1, 3, 160, 160),
        ((Format.EXECUTORCH, Precision.INT8),),
        f"{_EMITTERS}.executorch.FLOAT_TRANSPOSES",
    ),
    "hard-swish as a table": Case(
        hard_swished, (1, 32, 28, 28), ((Format.EXECUTORCH, Precision.INT8),), f"{_EMITTERS}.prepare.HARD_SWISH_TABLES"
    ),
    "depthwise 3x3 of two outputs a channel": Case(
        lambda: multiplied(3, 1, 2), (1, 64, 28, 28), _FLOATS_TOO, _MULTIPLIED, lambda module: {}
    ),
    "depthwise 7x7, stride 2, of two outputs a channel": Case(
        lambda: multiplied(7, 2, 2), (1, 64, 28, 28), _FLOATS_TOO, _MULTIPLIED, lambda module: {}
    ),
    "summands of tiny branches": Case(
        SmallBranches, (1, 32, 28, 28), _INT8, "edgefold.quantize.calibrate.coarsened", lambda graph, annotation, found: found
    ),
    "shuffles between group convolutions": Case(
        lambda: make_network("shuffle:4"), (1, 1, 28, 28), _INT8, "edgefold.export.lower.lower.free_groups", _never
    ),
}


def export(module: nn.Module, samples: Tensor, format: Format, precision: Precision, out: Path) -> Artifact:
    """One file of the network."""
    calibration = samples if precision is Precision.INT8 else None
    return edgefold.export_model(
        module, samples[:1], format=format, precision=precision, calibration=calibration, timing=False, out=out
    )


def measure(name: str, case: Case, cores: str | None) -> list[dict[str, Any]]:
    """The figures of one case, one for each file."""
    torch.manual_seed(0)
    module = case.network().eval()
    samples = torch.randn(CALIBRATED, *case.shape[1:])
    rows = []
    for format, precision in case.files:
        with tempfile.TemporaryDirectory(prefix="edgefold-") as folder, open_runner("host") as host:
            made = export(module, samples, format, precision, Path(folder) / f"with{format.suffix}")
            with patch(case.rewrite, case.nothing):
                plain = export(module, samples, format, precision, Path(folder) / f"without{format.suffix}")
            outputs = [run(artifact, samples[:1].numpy())[0] for artifact in (made, plain)]
            cases = [make_case(file, seed=0) for file in (made, plain)]
            turns = race(cases, host, Launchers(host), RaceOptions(processes=4, cores=cores))
        rows.append(
            {
                "case": name,
                "format": format.value,
                "precision": precision.value,
                "with_median_ns": round(turns.median_ns(0)),
                "without_median_ns": round(turns.median_ns(1)),
                "time_ratio": {key: round(value, 4) for key, value in asdict(turns.ratio(0, 1)).items()},
                "largest_difference_of_range": float(f"{np.abs(outputs[0] - outputs[1]).max() / np.ptp(outputs[1]):.3g}"),
                "blocks": turns.blocks,
                "runtime": turns.runtime,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measures the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cores", help="pin the races to these cores, e.g. 1")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="NAME", default=list(CASES), help="default: all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in chosen.cases for row in measure(name, CASES[name], chosen.cores)]
    if chosen.cases == list(CASES):
        command = f"python benchmarks/rewrites.py{f' --cores {chosen.cores}' if chosen.cores else ''}"
        write_result(NAME, {"threads": 1, "cores": chosen.cores, "files": rows}, command=command)


if __name__ == "__main__":
    main()
