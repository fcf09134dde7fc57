"""Options that do not go with a precision are refused, in one sentence and before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

MODEL = "hetnet-fmnist"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", MODEL, "-f", "onnx", "-p", "fp16", "--exclude", "head"), "--exclude is for integers"),
        (("export", MODEL, "-f", "onnx", "--equalize"), "--equalize is for integers, and precision 'fp32' has none"),
        (("ship", MODEL, "-p", "fp32", "-p", "fp16", "--observer", "mse"), "--observer is for integers"),
        (("export", MODEL, "-f", "onnx", "--portable"), "--portable is for integers, and precision 'fp32' has none"),
        (("export", MODEL, "-f", "onnx", "--calibration", "random"), "precision 'fp32' takes no calibration data"),
        (("export", MODEL, "-f", "onnx", "-p", "int8-dynamic", "--calibration", "random"), "takes no calibration data"),
        (("export", MODEL, "-f", "onnx", "--max-batch", "4"), "give --dynamic-batch too, or leave it out"),
        (("ship", MODEL, "--max-batch", "4"), "give --dynamic-batch too, or leave it out"),
        (("export", MODEL, "-f", "onnx", "-p", "int16x8"), "only TFLite has kernels"),
        (("ship", MODEL, "-f", "onnx", "-f", "executorch", "-p", "int8", "-p", "int16x8"), "only TFLite has kernels"),
        (("export", MODEL, "-f", "executorch", "-p", "int8-weight-only"), "XNNPACK takes int8 weights with integer activations"),
        (("export", MODEL, "-f", "onnx", "-p", "int8-dynamic", "--observer", "mse"), "leave --observer mse out"),
        (("export", MODEL, "-f", "onnx", "--device", "phone"), "unknown device 'phone'"),
        (("ship", MODEL, "-f", "onnx", "-p", "fp32", "--device", "phone"), "unknown device 'phone'"),
        (("matrix", "--models", MODEL, "-o", "out", "--device", "phone"), "unknown device 'phone'"),
    ],
)
def test_refused(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    ended = cli(*arguments)
    assert ended.code == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        *(("--io", "int8"), ("--dynamic-batch",), ("--observer", "mse"), ("--layout", "nhwc"), ("--agree",), ("--equalize",)),
        *(("--portable",), ("--threads", "2"), ("--max-secs", "5"), ("--no-explain",), ("--max-batch", "4"), ("--trust",)),
    ],
)
def test_a_recipe_takes_no_option_that_it_would_ignore(cli: Cli, options: tuple[str, ...]) -> None:
    Path("run.toml").write_text(f'[model]\nname = "{MODEL}"\n')
    ended = cli("ship", "run.toml", *options)
    assert ended.code == 2
    assert "a recipe says itself what is shipped and how" in ended.stderr


@pytest.mark.parametrize(
    "section",
    [
        '[ship]\nprecisions = ["log2"]\n',
        '[ship]\nformats = ["onnx"]\nprecisions = ["int16x8"]\n',
        '[prune]\nlatency_ms = 1.0\nformat = "onnx"\nprecision = "int16x8"\n',
    ],
)
def test_a_recipe_is_refused_before_its_first_stage(cli: Cli, section: str) -> None:
    Path("run.toml").write_text(f'[model]\nname = "{MODEL}"\n{section}')
    ended = cli("ship", "run.toml")
    assert ended.code == 2
    assert "has no form in onnx" in ended.stderr
    assert [path.name for path in Path().iterdir()] == ["run.toml"]


@pytest.mark.parametrize("command", ["export", "ship", "fold"])
def test_help_offers_what_a_file_can_have(cli: Cli, command: str) -> None:
    page = cli(command, "--help").stdout
    assert "<fp32|fp16|int8|int8-full|int8-dynamic|int8-weight-only|int16x8>" in page
    assert "log2" not in page
