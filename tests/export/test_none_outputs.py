"""Outputs that are ``None``, as those that only training uses: left out, under the names that the others have anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgefold.artifact import Format
from edgefold.errors import ModelError
from edgefold.export.capture import capture
from edgefold.export.program import QuantizedProgram
from edgefold.export.verify import verify
from edgefold.pipeline import export_model, fold, quantize_model


class Partly(nn.Module):
    """Returns ``kind`` of an image and nothing else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 3), kind

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.conv(x))
        return {
            "pair": (y, None),
            "triple": (y, None, y.mean((2, 3))),
            "dict": {"aux": None, "out": y, "pooled": y.mean((2, 3))},
            "nothing": (None, None),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "names"),
    [("pair", ("output",)), ("triple", ("output_0", "output_2")), ("dict", ("out", "pooled"))],
)
def test_none_is_left_out(kind: str, names: tuple[str, ...]) -> None:
    module, x = Partly(kind).eval(), torch.randn(1, 3, 6, 6)
    program = fold(module, x).program
    assert program.output_names == names
    found = program.graph(x)
    assert len(found) == len(names)
    torch.testing.assert_close(found[0], torch.relu(module.conv(x)))


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing but None"):
        capture(Partly("nothing").eval(), torch.randn(1, 3, 6, 6))


def test_such_a_network_is_quantized_written_for_any_batch_and_verified(tmp_path: Path) -> None:
    module, inputs = Partly("dict").eval(), torch.randn(16, 3, 6, 6)
    program = quantize_model(module, inputs[:1], calibration=inputs)
    models: tuple[nn.Module | QuantizedProgram, ...] = (module, program)
    for number, model in enumerate(models):
        example = inputs[:1] if model is module else None
        artifact = export_model(model, example, format=Format.ONNX, dynamic_batch=True, out=tmp_path / f"{number}.onnx")
        assert [spec.name for spec in artifact.outputs] == ["out", "pooled"]
        assert verify(artifact, model, inputs).passed
