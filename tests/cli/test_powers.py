"""`edgefold quantize --scheme log2`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Cli = Callable[..., Any]

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.zeros(1, 3, 12, 12)
"""


@pytest.fixture
def net(cli: Cli) -> str:
    from pathlib import Path

    Path("net.py").write_text(NET)
    return "net.py:make"


def test_it_shows_both_for_each_layer_and_the_network(cli: Cli, net: str) -> None:
    base = ("quantize", net, "--scheme", "log2", "--calibration", "random")
    ended = cli(*base)
    assert ended.code == 0, ended.stderr
    assert "with log2 weights (exponents of 4 bits)" in ended.stdout
    assert "so there is no file" in ended.stdout
    data = cli(*base, "--json").data
    assert [layer["name"] for layer in data["study"]["layers"]] == ["0", "2"]
    few = cli(*base, "--exponent-bits", "1", "--json").data
    assert few["study"]["exponent_bits"] == 1
    assert few["study"]["log2_db"] < data["study"]["log2_db"] < data["study"]["int8_db"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("quantize", "NET", "--scheme", "log2", "--explain"), "--explain has nothing to do"),
        (("quantize", "NET", "--scheme", "log2", "-f", "onnx"), "--format has nothing to do"),
        (("quantize", "NET", "--exponent-bits", "3"), "--exponent-bits is for --scheme log2"),
        (("export", "NET", "-f", "onnx", "-p", "log2"), "precision 'log2' has no form in onnx (it is a study in torch"),
        (("ship", "NET", "-p", "log2"), "precision 'log2' has no form in onnx (it is a study in torch"),
        (
            ("matrix", "--models", "NET", "-o", "out", "-p", "log2"),
            "precision 'log2' has no form in onnx (it is a study in torch",
        ),
    ],
)
def test_refused_in_one_sentence(cli: Cli, net: str, options: tuple[str, ...], words: str) -> None:
    ended = cli(*(net if option == "NET" else option for option in options))
    assert ended.code == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
