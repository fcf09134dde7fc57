"""Arguments of models on the command line: pairs, and JSON objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgefold.cli.sources import arguments
from edgefold.errors import UsageError
from edgefold.models.registry import get_model


def test_pairs_and_objects() -> None:
    assert arguments(["width=32", "conv=dual", "blocks=[1, 2]"]) == {"width": 32, "conv": "dual", "blocks": [1, 2]}
    assert arguments(['{"width": 32, "conv": "dual"}', "width=16"]) == {"width": 16, "conv": "dual"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("width", "argument 'width' is neither KEY=VALUE nor a JSON object"),
        ("[1]", "neither KEY=VALUE nor a JSON object"),
        ("{width: 32}", r"no JSON object \(Expecting property name"),
    ],
)
def test_what_is_neither(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arguments([given])


def test_kwargs_on_the_command_line(cli: Callable[..., Any]) -> None:
    made = cli("fold", "hetnet", "--kwargs", '{"width": 8, "blocks": [1], "p": 2}', "--json")
    assert made.code == 0, made.stderr
    assert made.data == cli("fold", "hetnet", "--arg", "width=8", "-a", "blocks=[1]", "-a", "p=2", "--json").data
    wrong = cli("fold", "hetnet", "--kwargs", '{"widht": 8}')
    assert wrong.code == 2
    assert "did you mean 'width'" in wrong.stderr


def test_what_was_around_the_weights_is_said(cli: Callable[..., Any], tmp_path: Path) -> None:
    state = get_model("hetnet", width=8, blocks=[1]).state_dict()
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    made = cli("fold", "hetnet", "-a", "width=8", "-a", "blocks=[1]", "--weights", tmp_path / "w.pt", "--json")
    assert made.code == 0, made.stderr
    assert "taken from 'model_state_dict'." in made.stderr
    assert "the prefix 'module.'" in made.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("fold", "hetnet", "-a", "resolution=28.5"), "hetnet: resolution is 28.5, expected an integer"),
        (("fold", "mobilenet_v1", "-a", "width=Infinity"), "width is inf, expected a positive number"),
        (("fold", "mobilenet_v3", "-a", "width=1e30"), "network 'mobilenet_v3' cannot be made with width=1e+30"),
        (
            ("fold", "hetnet", "-a", "p=1000000000000000000000000000000"),
            "expected less than 2^63; from in_channels on",
        ),
        (("prune", "hetnet", "--latency-ms", "-1", "-o", "x"), "a latency of -1.0 ms, expected a number above 0"),
        (("prune", "hetnet", "--latency-ms", "nan", "-o", "x"), "a latency of nan ms, expected a number above 0"),
        (("prune", "hetnet", "--flops", "1.5", "-o", "x"), "1.5 of the multiply-accumulates, expected a share"),
        (("prune", "hetnet", "--sparsity", "nan", "-o", "x"), "a sparsity of nan, expected a share"),
        (("prune", "hetnet", "--flops", "0.5", "--keep", "-1", "-o", "x"), "keep is -1.0, expected a share"),
    ],
)
def test_impossible_numbers_are_bad_usage(cli: Callable[..., Any], given: tuple[str, ...], message: str) -> None:
    ended = cli(*given)
    assert ended.code == 2, ended.stderr
    assert message in ended.stderr
    assert "internal error" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()[-1]) < 400
