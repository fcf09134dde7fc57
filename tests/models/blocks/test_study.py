"""The networks of the block study have every block in them, and its rows can be completed later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import block_nets
import block_picture
import block_study
import pytest
import torch
from torch import nn

from edgefold.artifact import Format, Precision
from edgefold.models import blocks

# What no network of the study is made of: a base class, the slow form of HetConv, and poolings that end every network.
ELSEWHERE = {"MaskedConv2d", "NaiveHetConv2d", "GlobalAveragePool2d", "GlobalMaxPool2d"}


def test_every_block_is_in_a_network_that_runs() -> None:
    found: set[str] = set()
    for name in block_nets.NAMES:
        network = block_nets.make_network(name)
        assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
        found |= {type(module).__name__ for module in network.modules()}
    classes = {name for name in blocks.__all__ if isinstance(kind := getattr(blocks, name), type) and issubclass(kind, nn.Module)}
    assert classes - found == ELSEWHERE


def test_the_names_tell_the_settings() -> None:
    assert block_nets.setting("channel-local-sliding:4") == {"block": "channel-local-sliding", "group_size": 4}
    assert block_nets.setting("standard+spatial") == {"block": "standard", "attention": "spatial"}
    local = block_nets.make_network("channel-local-sliding:4")
    windows = {module.window for module in local.modules() if isinstance(module, blocks.ChannelLocalConv2d)}
    assert windows == {"sliding"}
    families = dict.fromkeys(map(block_nets.family, block_nets.NAMES))
    assert len(families) <= len(block_picture.PALETTE)  # a colour each


class Cached:
    """Stands for a `Maker` that has the weights of the first seed only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Format] = []
        self.data = type("Data", (), {"test": None})()

    def has_weights(self, name: str, seed: int) -> bool:
        return seed == 0

    def files(self, name: str, seed: int, formats: list[Format], precisions: list[Precision]) -> dict[str, Path]:
        self.asked += formats
        return {f"{form}-{precision}": self.folder / f"{form}" for form in formats for precision in precisions}


def test_rows_of_earlier_runs_get_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_study, "file_top1", lambda path, test: {"tflite": 0.5, "executorch": 0.7}[path.name])
    maker: Any = Cached(tmp_path)
    rows: list[dict[str, Any]] = [{"seed": seed, "fp32_top1": 0.9, "int8_top1": {"onnx": 0.8 + seed / 10}} for seed in (0, 1)]
    for row in rows:
        assert block_study.lacks(row) == [Format.TFLITE, Format.EXECUTORCH]
        block_study.complete("standard", row, maker)
    assert rows[0]["int8_top1"] == {"onnx": 0.8, "tflite": 0.5, "executorch": 0.7}
    assert rows[1]["int8_top1"] == {"onnx": 0.9, "tflite": None, "executorch": None}
    assert "weights of the run are gone" in rows[1]["remark"]
    assert maker.asked == [Format.TFLITE, Format.EXECUTORCH]  # what is there is not made again
    means = block_study.with_means({"seeds": rows})["int8_top1"]
    assert means["onnx"] == {"mean": 0.85, "stdev": 0.070711, "seeds": 2}
    assert means["tflite"] == {"mean": 0.5, "stdev": None, "seeds": 1}
    assert block_picture.accuracy({"fp32_top1": {}, "int8_top1": means}, "executorch-int8")["mean"] == 0.7
